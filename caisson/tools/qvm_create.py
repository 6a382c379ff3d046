"""`qvm-create`: create a qube."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import command, terminal
from caisson.tools.command import UsageError
from caisson.tools.properties import wire_name, wire_value

PROPERTY_FAILED = 2
IMPORT_FAILED = 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-create",
        "Create a qube.",
        "exit codes: 0 created; 1 not created; 2 a property was refused, the qube is gone again;\n"
        "3 the root volume could not be imported",
    )
    made.add_argument("name", metavar="VMNAME", nargs="?", help="name of the new qube")
    made.add_argument("--class", "-C", dest="klass", metavar="CLASS", help="class (default: AppVM)")
    made.add_argument("--template", "-t", metavar="VMNAME", help="template (default: the system's)")
    made.add_argument("--label", "-l", metavar="LABEL", help="label, such as `red`; mandatory")
    made.add_argument(
        "--property",
        "--prop",
        dest="properties",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a property of the new qube; may be repeated",
    )
    made.add_argument(
        "--pool",
        "-p",
        dest="pools",
        metavar="VOLUME=POOL",
        action="append",
        default=[],
        help="keep a volume in this pool; may be repeated",
    )
    made.add_argument("-P", dest="one_pool", metavar="POOL", help="keep all volumes in this pool")
    made.add_argument("--standalone", action="store_true", help="short for --class StandaloneVM")
    made.add_argument("--disp", action="store_true", help="short for --class DispVM --label red")
    source = made.add_mutually_exclusive_group()
    source.add_argument("--root-copy-from", "-r", metavar="FILE", help="fill the root volume")
    source.add_argument("--root-move-from", "-R", metavar="FILE", help="the same, then remove FILE")
    made.add_argument("--help-classes", action="store_true", help="list the classes and exit")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Create the qube."""
    if arguments.help_classes:
        print("\n".join(client.lines("admin.vmclass.List")))
        return 0
    if not arguments.name:
        raise UsageError("the name of the new qube is missing", "say `qvm-create VMNAME -l LABEL`")
    klass, label = _class_and_label(arguments)
    properties = [_pair(word, "--property") for word in arguments.properties]
    pools = [_pair(word, "--pool") for word in arguments.pools]
    if pools and arguments.one_pool:
        raise UsageError("`-P` and `--pool` exclude each other")
    if arguments.root_copy_from or arguments.root_move_from:
        terminal.complain(
            CaissonError(
                "importing a root volume is not available in this version",
                "create the qube without `-r` and `-R`",
            )
        )
        return IMPORT_FAILED
    words = [f"name={arguments.name}", f"label={label}"]
    words += [f"pool={arguments.one_pool}"] if arguments.one_pool else []
    words += [f"pool:{volume}={pool}" for volume, pool in pools]
    if any(" " in word or not word.isascii() for word in words):
        raise UsageError(
            "a name, label or pool contains a space or a letter beyond ASCII",
            "use letters, digits, `.`, `_` and `-`",
        )
    create = "CreateInPool" if pools or arguments.one_pool else "Create"
    client.call(
        f"admin.vm.{create}.{klass}",
        arguments.template or "",
        payload=" ".join(words).encode(),
    )
    return _set_properties(client, arguments.name, properties)


def _class_and_label(arguments: argparse.Namespace) -> tuple[str, str]:
    implied = "StandaloneVM" if arguments.standalone else "DispVM" if arguments.disp else None
    if implied and arguments.klass not in (None, implied):
        raise UsageError(f"`--class {arguments.klass}` contradicts the short form for `{implied}`")
    label = arguments.label or ("red" if arguments.disp else None)
    if label is None:
        raise UsageError("`--label` is missing", "say `--label red`, or another label")
    return arguments.klass or implied or "AppVM", label


def _pair(word: str, option: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UsageError(f"`{option} {word}` is not of the form `NAME=VALUE`")
    return key, value


def _set_properties(client: Client, name: str, properties: list[tuple[str, str]]) -> int:
    """Set the properties; a qube that would lack one is taken back."""
    try:
        for key, value in properties:
            prop = wire_name(key)
            client.call("admin.vm.property.Set", prop, name, wire_value(prop, value))
    except CaissonError as error:
        client.call("admin.vm.Remove", destination=name)
        terminal.complain(error)
        terminal.say(f"qube `{name}` was not created")
        return PROPERTY_FAILED
    return 0


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
