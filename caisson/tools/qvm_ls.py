"""`qvm-ls`: list qubes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import command, inventory, ls_columns, selection, terminal
from caisson.tools.command import UsageError
from caisson.tools.inventory import Facts
from caisson.tools.ls_columns import FORMATS, Cells
from caisson.tools.ls_filters import Filters, unknown_word
from caisson.tools.ls_filters import add_options as add_filters


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-ls",
        "List qubes.",
        "flags: class (0 admin, t template, a app, s standalone, d disposable, r remote qube;\n"
        "in capitals: with full emulation); state (r running, t starting, p paused, s suspended,\n"
        "h halting, d dying, c crashed, - halted); U updateable, N network, R from a package,\n"
        "i internal, D debug, A autostart\n"
        "exit codes: 0 listed; 1 failed, or a qube does not exist; 2 a column, or a name in a\n"
        "filter, does not exist",
    )
    made.add_argument("names", metavar="VMNAME", nargs="*", help="these only; patterns are fine")
    made.add_argument("--all", action="store_true", help="all qubes (the default)")
    made.add_argument("--exclude", metavar="VMNAME", action="append", default=[], help="not these")
    how = made.add_mutually_exclusive_group()
    how.add_argument(
        "--format",
        "-o",
        choices=sorted(FORMATS),
        help="columns by purpose (default: simple, and on a terminal VIRT-MODE too)",
    )
    how.add_argument(
        "--fields",
        "-O",
        metavar="FIELD,…",
        help="columns by name: any property, and name, state, class, uuid, flags, memory, "
        "disk, priv-curr, priv-max, priv-used, root-curr, root-max, root-used",
    )
    how.add_argument("-d", dest="format", action="store_const", const="disk", help="-o disk")
    how.add_argument("-n", dest="format", action="store_const", const="network", help="-o network")
    how.add_argument("-k", dest="format", action="store_const", const="kernel", help="-o kernel")
    shape = made.add_mutually_exclusive_group()
    shape.add_argument("--raw-data", action="store_true", help="no header, `|` between fields")
    shape.add_argument("--raw-list", action="store_true", help="names only, one a line")
    shape.add_argument("--tree", action="store_true", help="each qube below its network qube")
    shape.add_argument("--json", action="store_true", help="a list of objects")
    add_filters(made)
    made.add_argument("--sort", metavar="FIELD", help="order by this column")
    made.add_argument("--reverse", action="store_true", help="the other way round")
    made.add_argument("--ignore-case", action="store_true", help="order without regard to case")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """List."""
    if arguments.names and arguments.all:
        raise UsageError("names and `--all` exclude each other")
    filters = Filters(arguments)
    if arguments.raw_list and not filters.needed and not arguments.sort:
        names = selection.listed(client)
        _print_lines(_ordered(arguments, {name: name for name in _named(arguments, names)}))
        return 0
    fields = _fields(arguments)
    order = ls_columns.column(arguments.sort) if arguments.sort else "name"
    qubes = _read(arguments, client, {*fields, order}, filters)
    filters.check(client, qubes)
    _check_columns(client, qubes, {*fields, order} | filters.properties)
    wanted = set(_named(arguments, qubes))
    rows = [qube for qube in qubes.values() if qube.name in wanted and filters.fit(qube)]
    cells = Cells(client, rows, {order} if arguments.raw_list else {*fields, order})
    ranked = _ordered(arguments, {qube.name: cells.text(qube, order) for qube in rows})
    rows = [qubes[name] for name in ranked]
    _print(arguments, cells, fields, rows)
    return 0


def _fields(arguments: argparse.Namespace) -> list[str]:
    if arguments.raw_list:
        return ["name"]
    if arguments.fields:
        return [ls_columns.column(word) for word in arguments.fields.split(",")]
    fields = list(FORMATS[arguments.format or "simple"])
    for_programs = arguments.raw_data or arguments.json
    if arguments.format is None and not for_programs and sys.stdout.isatty():
        # A person at a terminal sees which wall stands around each qube.
        fields.append("virt_mode")
    return fields


def _read(
    arguments: argparse.Namespace, client: Client, needed: set[str], filters: Filters
) -> dict[str, Facts]:
    """All qubes with what the columns, the order and the filters need."""
    wanted = ls_columns.properties_of(needed) | filters.properties
    if arguments.tree:
        wanted.add("netvm")
    plain = arguments.names and not any(map(selection.is_pattern, arguments.names))
    return inventory.read(
        client,
        wanted,
        tags=filters.tags,
        features=filters.features or ls_columns.features_needed(needed),
        only=arguments.names if plain else None,
    )


def _check_columns(client: Client, qubes: dict[str, Facts], columns: set[str]) -> None:
    """Refuse a column that no qube has a property for.

    Raises:
        UsageError: there is one.
    """
    had = {name for qube in qubes.values() for name in qube.properties}
    doubtful = sorted(columns - ls_columns.EVERYWHERE - had)
    if not doubtful:
        return
    one_of_each = {qube.klass: qube.name for qube in qubes.values()}
    try:
        for name in one_of_each.values():
            had.update(client.lines("admin.vm.property.List", destination=name))
    except CaissonError:
        # Who may not know the properties gets what there is to see.
        return
    for name in doubtful:
        if name not in had:
            raise unknown_word("column", name, had | ls_columns.EVERYWHERE)


def _named(arguments: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The names that the command line asks for."""
    known = {name: selection.Listed(name, "", "") for name in names}
    chosen = selection.matching(arguments.names, known) if arguments.names else list(known)
    excluded = set(selection.matching(arguments.exclude, known))
    return [name for name in chosen if name not in excluded]


def _ordered(arguments: argparse.Namespace, texts: dict[str, str]) -> list[str]:
    """The names in the order of the texts that they have in the column."""

    def key(name: str) -> tuple[int, int, str, str]:
        text = texts[name].lower() if arguments.ignore_case else texts[name]
        # Numbers go by size, before words.
        return (0, int(text), "", name) if text.isdecimal() else (1, 0, text, name)

    return sorted(texts, key=key, reverse=arguments.reverse)


def _print(
    arguments: argparse.Namespace, cells: Cells, fields: Sequence[str], rows: Sequence[Facts]
) -> None:
    if arguments.raw_list:
        _print_lines(qube.name for qube in rows)
    elif arguments.raw_data:
        _print_lines("|".join(cells.row(qube, fields)) for qube in rows)
    elif arguments.json:
        _print_json(cells, fields, rows)
    elif arguments.tree:
        body = [_indented(indent, cells.row(qube, fields)) for indent, qube in _tree(rows)]
        sys.stdout.write(terminal.table([ls_columns.header(fields), *body]))
    else:
        body = [cells.row(qube, fields) for qube in rows]
        sys.stdout.write(terminal.table([ls_columns.header(fields), *body]))


def _print_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{terminal.cell(line)}\n" for line in lines))


def _print_json(cells: Cells, fields: Sequence[str], rows: Sequence[Facts]) -> None:
    import json

    found = [{field: cells.value(qube, field) for field in fields} for qube in rows]
    print(json.dumps(found, indent=2))


def _indented(indent: str, row: list[str]) -> list[str]:
    return [indent + row[0], *row[1:]]


def _tree(rows: Sequence[Facts]) -> list[tuple[str, Facts]]:
    """The qubes below their network qubes, each with what goes before its name."""
    names = {qube.name for qube in rows}
    below: dict[str | None, list[Facts]] = {}
    for qube in rows:
        netvm = qube.text("netvm")
        below.setdefault(netvm if netvm in names else None, []).append(qube)
    lines: list[tuple[str, Facts]] = []

    def walk(netvm: str | None, depth: int) -> None:
        for qube in below.get(netvm, []):
            lines.append(("  " * (depth - 1) + "└─" if depth else "", qube))
            walk(qube.name, depth + 1)

    walk(None, 0)
    return lines


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
