"""`qvm-service`: switch services inside a qube on and off."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import FeatureNotFoundError
from caisson.names import FeatureName, shown
from caisson.tools import command, terminal
from caisson.tools.command import FAILURE, UsageError
from caisson.tools.qvm_features import listed

_PREFIX = "service."
_VALUES = {
    "on": b"1",
    "1": b"1",
    "yes": b"1",
    "true": b"1",
    "off": b"",
    "0": b"",
    "no": b"",
    "false": b"",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-service",
        "Switch services inside a qube on and off; a running qube sees it at once.",
        "exit codes: 0 done; 1 refused, or the service to show is neither on nor off",
    )
    made.add_argument("name", metavar="VMNAME", help="qube")
    made.add_argument("service", metavar="SERVICE", nargs="?", help="show or switch this one only")
    made.add_argument("value", metavar="VALUE", nargs="?", help="`on` or `off`")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--enable", "-e", action="store_true", help="the same as VALUE `on`")
    how.add_argument("--disable", "-d", action="store_true", help="the same as VALUE `off`")
    how.add_argument(
        "--default",
        "--delete",
        "--unset",
        "-D",
        action="store_true",
        help="leave it to the template and to the qube",
    )
    how.add_argument("--list", "-l", action="store_true", help="list all (the default)")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Show or switch."""
    value = _value(arguments)
    switching = value is not None or arguments.default
    if arguments.service is None:
        if switching:
            raise UsageError("the name of the service is missing")
        services = listed(client, arguments.name, _PREFIX)
        rows = [(name.removeprefix(_PREFIX), _word(text)) for name, text in services]
        print(terminal.table(rows), end="")
        return 0
    if arguments.list:
        raise UsageError("`--list` takes no service")
    feature = _feature(arguments.service)
    if value is not None:
        client.call("admin.vm.feature.Set", feature, arguments.name, value)
        return 0
    try:
        if arguments.default:
            client.call("admin.vm.feature.Remove", feature, arguments.name)
            return 0
        print(_word(client.text("admin.vm.feature.Get", feature, arguments.name)))
    except FeatureNotFoundError:
        return 0 if arguments.default else FAILURE
    return 0


def _feature(untrusted_service: str) -> str:
    """The feature that switches a service."""
    if not FeatureName.pattern.fullmatch(untrusted_service):
        raise UsageError(f"no service is called `{shown(untrusted_service)}`", FeatureName.expected)
    return _PREFIX + untrusted_service


def _value(arguments: argparse.Namespace) -> bytes | None:
    """What to store: `1` is on, nothing is off; None where the service is only shown."""
    given = [arguments.enable, arguments.disable, arguments.default, arguments.list]
    if arguments.value is None:
        return b"1" if arguments.enable else b"" if arguments.disable else None
    if any(given):
        raise UsageError("a value and an option that says the same exclude each other")
    value = _VALUES.get(arguments.value.lower())
    if value is None:
        raise UsageError(f"`{shown(arguments.value)}` is neither `on` nor `off`")
    return value


def _word(text: str) -> str:
    return "on" if text else "off"


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
