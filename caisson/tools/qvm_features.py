"""`qvm-features`: show and set the features of a qube."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import FeatureNotFoundError
from caisson.names import FeatureName
from caisson.tools import command, terminal
from caisson.tools.command import FAILURE, UsageError
from caisson.tools.parallel import at_once


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-features",
        "Show and set the features of a qube.",
        "exit codes: 0 done; 1 refused, or the feature to show is not there",
    )
    made.add_argument("name", metavar="VMNAME", help="qube")
    made.add_argument("feature", metavar="FEATURE", nargs="?", help="show or set this one only")
    made.add_argument("value", metavar="VALUE", nargs="?", help="the new value; empty means no")
    made.add_argument(
        "--unset", "--default", "--delete", "-D", action="store_true", help="remove FEATURE"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Show, set or remove."""
    if arguments.feature is None:
        if arguments.unset:
            raise UsageError("`--unset` needs the name of a feature")
        print(terminal.table(listed(client, arguments.name)), end="")
        return 0
    FeatureName.parse(arguments.feature)
    if arguments.unset:
        return _unset(client, arguments)
    if arguments.value is not None:
        payload = arguments.value.encode()
        client.call("admin.vm.feature.Set", arguments.feature, arguments.name, payload)
        return 0
    try:
        value = client.text("admin.vm.feature.Get", arguments.feature, arguments.name)
    except FeatureNotFoundError:
        return FAILURE
    terminal.emit(value + "\n")
    return 0


def listed(client: Client, name: str, prefix: str = "") -> list[tuple[str, str]]:
    """The features of a qube that begin with the prefix, with their values, sorted."""
    names = client.lines("admin.vm.feature.List", destination=name)
    names = sorted(feature for feature in names if feature.startswith(prefix))
    values = at_once(names, lambda feature: client.text("admin.vm.feature.Get", feature, name))
    return list(zip(names, values, strict=True))


def _unset(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.value is not None:
        raise UsageError("a value and `--unset` exclude each other")
    try:
        client.call("admin.vm.feature.Remove", arguments.feature, arguments.name)
    except FeatureNotFoundError:
        return 0
    return 0


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
