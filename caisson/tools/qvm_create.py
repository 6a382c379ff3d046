"""`qvm-create`: create a qube."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import cloning, command, selection, terminal, volumes
from caisson.tools.command import FAILURE, UsageError, pairs
from caisson.tools.properties import wire_name, wire_value
from caisson.tools.volumes import Volume

PROPERTY_FAILED = 2
IMPORT_FAILED = 3
_ROOT = "root"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-create",
        "Create a qube.",
        "A StandaloneVM whose root lies in pool `host`, as a copy of a template there does, keeps\n"
        "`/rw`, `/home` and `/usr/local` only: its root is this machine's own system. You are\n"
        "warned of it.\n"
        "exit codes: 0 created; 1 not created; 2 a property was refused, the qube is gone again;\n"
        "3 the root volume could not be imported, the qube is gone again",
    )
    made.add_argument("name", metavar="VMNAME", nargs="?", help="name of the new qube")
    made.add_argument("--class", "-C", dest="klass", metavar="CLASS", help="class (default: AppVM)")
    made.add_argument(
        "--template",
        "-t",
        metavar="VMNAME",
        help="template (default: the system's); a StandaloneVM becomes a copy of it",
    )
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
    volumes.add_pool_of_each(made)
    made.add_argument("-P", dest="one_pool", metavar="POOL", help="keep all volumes in this pool")
    made.add_argument(
        "--standalone",
        action="store_true",
        help="short for --class StandaloneVM; its root is empty unless it is a copy (-t)",
    )
    made.add_argument("--disp", action="store_true", help="short for --class DispVM --label red")
    source = made.add_mutually_exclusive_group()
    source.add_argument(
        "--root-copy-from", "-r", metavar="FILE", help="fill the root volume; not available yet"
    )
    source.add_argument("--root-move-from", "-R", metavar="FILE", help="the same, then remove FILE")
    made.add_argument("--help-classes", action="store_true", help="list the classes and exit")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Create the qube."""
    if arguments.help_classes:
        print("\n".join(map(terminal.cell, client.lines("admin.vmclass.List"))))
        return 0
    if not arguments.name:
        raise UsageError("the name of the new qube is missing", "say `qvm-create VMNAME -l LABEL`")
    properties = pairs(arguments.properties)
    code = FAILURE
    try:
        with _new_qube(arguments, client):
            code = IMPORT_FAILED
            _fill_root(arguments, client)
            code = PROPERTY_FAILED
            for key, value in properties:
                prop = wire_name(key)
                payload = wire_value(prop, value)
                client.call("admin.vm.property.Set", prop, arguments.name, payload)
    except UsageError:
        raise
    except CaissonError as error:
        terminal.complain(error)
        return code
    if arguments.root_move_from:
        _remove_file(arguments.root_move_from)
    return 0


def _new_qube(arguments: argparse.Namespace, client: Client) -> AbstractContextManager[None]:
    """Create it; if what follows fails, it is removed again."""
    klass, label = _class_and_label(arguments)
    pools = dict(pairs(arguments.pools))
    if klass == cloning.STANDALONE and arguments.template:
        wish = cloning.Wish(
            arguments.template,
            arguments.name,
            klass=klass,
            label=label,
            pool=arguments.one_pool,
            pools=pools,
            without=frozenset({"private"}),
        )
        return cloning.cloned(client, wish)
    method, payload = cloning.creation(arguments.name, label, arguments.one_pool, pools)
    template = arguments.template or ""
    return cloning.created(client, arguments.name, f"{method}.{klass}", template, payload)


def _class_and_label(arguments: argparse.Namespace) -> tuple[str, str]:
    implied = cloning.STANDALONE if arguments.standalone else "DispVM" if arguments.disp else None
    if implied and arguments.klass not in (None, implied):
        raise UsageError(f"`--class {arguments.klass}` contradicts the short form for `{implied}`")
    label = arguments.label or ("red" if arguments.disp else None)
    if label is None:
        raise UsageError("`--label` is missing", "say `--label red`, or another label")
    return selection.known_class(arguments.klass or implied or "AppVM"), label


def _fill_root(arguments: argparse.Namespace, client: Client) -> None:
    path = arguments.root_copy_from or arguments.root_move_from
    if path is None:
        return
    with volumes.opened(path) as data:
        Volume(arguments.name, _ROOT).fill(client, data, volumes.size_of(data))


def _remove_file(path: str) -> None:
    from pathlib import Path

    try:
        Path(path).unlink()
    except OSError as error:
        terminal.complain(CaissonError(f"cannot remove `{path}`: {error.strerror}"))


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
