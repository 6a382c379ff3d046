"""`qvm-volume`: look at the volumes of qubes and change them."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import CaissonError, QubeNotFoundError
from caisson.names import DOM0, shown
from caisson.tools import command, selection, terminal, volumes
from caisson.tools.command import UsageError
from caisson.tools.inventory import NOT_THERE
from caisson.tools.parallel import at_once
from caisson.tools.volumes import Volume

_ROWS = (
    "pool",
    "vid",
    "rw",
    "source",
    "save_on_stop",
    "snap_on_start",
    "size",
    "usage",
    "revisions_to_keep",
    "ephemeral",
    "is_outdated",
)
_SETTABLE = ("rw", "revisions_to_keep", "ephemeral")
_HEADER = ("POOL:VOLUME", "VMNAME", "VOLUME_NAME", "REVERT_POSSIBLE")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-volume",
        "Look at the volumes of qubes and change them.",
        "exit codes: 0 done; 1 refused",
    )
    actions = command.add_actions(made, "ACTION")
    listing = actions.add_parser("list", aliases=["ls", "l"], help="list volumes (the default)")
    listing.add_argument("names", metavar="VMNAME", nargs="*", help="of these qubes only")
    listing.add_argument("--all", action="store_true", help="of all qubes (the default)")
    listing.add_argument(
        "--exclude", metavar="VMNAME", action="append", default=[], help="not of these"
    )
    listing.add_argument("--pool", "-p", metavar="POOL", help="in this pool only")
    info = actions.add_parser("info", aliases=["i"], help="tell all about a volume")
    _add_volume(info)
    info.add_argument(
        "property",
        metavar="PROPERTY",
        nargs="?",
        choices=(*_ROWS, "revisions"),
        help="only this: a row of the table, or `revisions`",
    )
    config = actions.add_parser("config", aliases=["c", "set", "s"], help="change a setting")
    _add_volume(config)
    config.add_argument("property", metavar="PROPERTY", choices=_SETTABLE, help=_either(_SETTABLE))
    config.add_argument("value", metavar="VALUE", help="the new value")
    resize = actions.add_parser("resize", aliases=["extend"], help="make it larger")
    _add_volume(resize)
    resize.add_argument("size", metavar="SIZE", help="in bytes, or with a unit, such as `10GiB`")
    resize.add_argument(
        "--force",
        "-f",
        action="store_true",
        help="leave it to the daemon to refuse a smaller size (for old scripts)",
    )
    revert = actions.add_parser("revert", aliases=["rv", "r"], help="go back to a revision")
    _add_volume(revert)
    revert.add_argument("revision", metavar="REVISION", nargs="?", help="default: the newest")
    _add_data_actions(actions)
    return made


def _add_data_actions(actions: argparse._SubParsersAction[command.ActionParser]) -> None:
    importing = actions.add_parser(
        "import", help="replace the content by that of a file; not available yet"
    )
    _add_volume(importing)
    importing.add_argument("path", metavar="FILE", help="`-` is standard input")
    how = importing.add_mutually_exclusive_group()
    how.add_argument("--size", metavar="SIZE", help="the new size (default: that of FILE)")
    how.add_argument("--no-resize", action="store_true", help="leave the volume at its size")
    clone = actions.add_parser("clone", help="replace the content by that of another volume")
    clone.add_argument("source", metavar="VMNAME:VOLUME", help="the volume to copy")
    clone.add_argument("target", metavar="VMNAME:VOLUME", help="the volume to replace")
    clear = actions.add_parser("clear", help="remove the content")
    _add_volume(clear)


def _add_volume(action: argparse.ArgumentParser) -> None:
    action.add_argument("volume", metavar="VMNAME:VOLUME", help="such as `work:private`")


def _either(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words[:-1]) + f" or `{words[-1]}`"


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Do what the action says."""
    match arguments.action:
        case None | "list" | "ls" | "l":
            _list(arguments, client)
        case "clone":
            target = Volume.parse(arguments.target)
            target.copy_from(client, Volume.parse(arguments.source))
        case _:
            _act(arguments, client, Volume.parse(arguments.volume))
    return 0


def _act(arguments: argparse.Namespace, client: Client, volume: Volume) -> None:
    match arguments.action:
        case "info" | "i":
            _info(client, volume, arguments.property)
        case "config" | "c" | "set" | "s":
            payload = volumes.known_setting(arguments.property, arguments.value)
            volume.call(client, f"Set.{arguments.property}", payload)
        case "resize" | "extend":
            _resize(client, volume, volumes.parse_size(arguments.size), force=arguments.force)
        case "revert" | "rv" | "r":
            _revert(client, volume, arguments.revision)
        case "import":
            _import(arguments, client, volume)
        case "clear":
            with terminal.Progress(f"clearing {volume}"):
                volume.call(client, "Clear")


def _list(arguments: argparse.Namespace, client: Client) -> None:
    qubes = selection.listed(client)
    chosen, excluded, wanted = list(qubes), set[str](), set[str]()
    if arguments.action is not None:
        if arguments.names and arguments.all:
            raise UsageError("names and `--all` exclude each other")
        wanted = set(selection.matching(arguments.names, qubes))
        chosen = [name for name in qubes if name in wanted] if wanted else chosen
        excluded = set(selection.matching(arguments.exclude, qubes))
    names = [name for name in chosen if name not in excluded and name != DOM0]
    pool = getattr(arguments, "pool", None)
    with terminal.Progress("reading volumes"):
        found = at_once(names, lambda name: _rows(client, name, pool, asked=name in wanted))
    rows = [row for some in found for row in some]
    print(terminal.table([_HEADER, *sorted(rows)]), end="")


def _rows(client: Client, name: str, pool: str | None, *, asked: bool) -> list[tuple[str, ...]]:
    """The volumes of one qube; unless it was asked for, one that shows none is passed over."""
    try:
        return _rows_of(client, name, pool)
    except (*NOT_THERE, QubeNotFoundError):
        if asked:
            raise
        return []


def _rows_of(client: Client, name: str, pool: str | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for word in client.lines("admin.vm.volume.List", destination=name):
        volume = Volume(name, word)
        facts = volume.info(client)
        if pool is None or facts.get("pool") == pool:
            revertible = "Yes" if volume.revisions(client) else "No"
            label = f"{facts.get('pool', '')}:{facts.get('vid', '')}"
            rows.append((label, name, word, revertible))
    return rows


def _info(client: Client, volume: Volume, only: str | None) -> None:
    if only == "revisions":
        for revision in volume.revisions(client):
            print(terminal.cell(revision))
        return
    facts = volume.info(client)
    if only is not None:
        if only not in facts:
            raise CaissonError(f"volume `{volume}` does not tell `{only}`")
        terminal.emit(facts[only] + "\n")
        return
    print(terminal.table([(key, facts[key]) for key in _ROWS if key in facts]), end="")
    revisions = volume.revisions(client)
    print("Available revisions (for revert):" + ("" if revisions else " none"))
    for revision in revisions:
        print(f"  {terminal.cell(revision)}")


def _resize(client: Client, volume: Volume, size: int, *, force: bool) -> None:
    current = volume.info(client).get("size", "")
    if not force and current.isdecimal() and size < int(current):
        raise CaissonError(
            f"volume `{volume}` is larger than that: it has {current} bytes",
            "volumes grow only; make a new qube for less",
        )
    with terminal.Progress(f"resizing {volume}"):
        volume.call(client, "Resize", str(size).encode())


def _revert(client: Client, volume: Volume, untrusted_revision: str | None) -> None:
    revision = untrusted_revision
    if revision is None:
        revisions = volume.revisions(client)
        if not revisions:
            raise CaissonError(f"volume `{volume}` has no revision to go back to")
        revision = revisions[-1]
    with terminal.Progress(f"reverting {volume} to {shown(revision)}"):
        volume.call(client, "Revert", revision.encode())


def _import(arguments: argparse.Namespace, client: Client, volume: Volume) -> None:
    wanted = None if arguments.size is None else volumes.parse_size(arguments.size)
    with volumes.opened(arguments.path) as data:
        if wanted is None and not arguments.no_resize and arguments.path != "-":
            wanted = volumes.size_of(data)
        volume.fill(client, data, wanted)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
