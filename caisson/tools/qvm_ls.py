"""`qvm-ls`: list qubes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from caisson.admin.client import Client
from caisson.names import DOM0, shown
from caisson.tools import command, selection, terminal
from caisson.tools.command import UsageError

Facts = dict[str, Any]
"""A qube as `caisson.vm.List` tells it."""

FORMATS: dict[str, tuple[str, ...]] = {
    "simple": ("name", "state", "class", "label", "template", "netvm"),
    "network": ("name", "state", "netvm", "ip", "ipback", "gateway"),
    "kernel": ("name", "state", "class", "template", "kernel", "kernelopts"),
    "full": ("name", "state", "class", "label", "qid", "xid", "uuid"),
    "prefs": (
        "name",
        "label",
        "template",
        "netvm",
        "vcpus",
        "initialmem",
        "maxmem",
        "virt_mode",
    ),
    "disk": (
        "name",
        "state",
        "disk",
        "priv_curr",
        "priv_max",
        "priv_used",
        "root_curr",
        "root_max",
        "root_used",
    ),
}
_ALWAYS = frozenset({"name", "state", "class", "uuid"})
_NOT_PROPERTIES = frozenset({"flags", "memory", *FORMATS["disk"], *_ALWAYS})
_FOR_FLAGS = (
    "virt_mode",
    "updateable",
    "provides_network",
    "installed_by_rpm",
    "debug",
    "autostart",
)
_TYPE_LETTERS = {
    "AdminVM": "0",
    "TemplateVM": "t",
    "AppVM": "a",
    "StandaloneVM": "s",
    "DispVM": "d",
    "RemoteVM": "r",
}
_STATE_LETTERS = {
    "Running": "r",
    "Transient": "t",
    "Paused": "p",
    "Suspended": "s",
    "Halting": "h",
    "Dying": "d",
    "Crashed": "c",
    "NA": "?",
}
_MIB = 1024 * 1024


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser("qvm-ls", "List qubes.")
    made.add_argument("names", metavar="VMNAME", nargs="*", help="these only; patterns are fine")
    made.add_argument("--all", action="store_true", help="all qubes (the default)")
    made.add_argument("--exclude", metavar="VMNAME", action="append", default=[], help="not these")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--format", "-o", choices=sorted(FORMATS), help="columns by purpose")
    how.add_argument(
        "--fields", "-O", metavar="FIELD,…", help="columns by name; any property is one"
    )
    how.add_argument("-d", dest="format", action="store_const", const="disk", help="-o disk")
    how.add_argument("-n", dest="format", action="store_const", const="network", help="-o network")
    how.add_argument("-k", dest="format", action="store_const", const="kernel", help="-o kernel")
    shape = made.add_mutually_exclusive_group()
    shape.add_argument("--raw-data", action="store_true", help="no header, `|` between fields")
    shape.add_argument("--raw-list", action="store_true", help="names only, one a line")
    shape.add_argument("--tree", action="store_true", help="each qube below its network qube")
    shape.add_argument("--json", action="store_true", help="a list of objects")
    _add_filters(made)
    made.add_argument("--sort", metavar="FIELD", help="order by this column")
    made.add_argument("--reverse", action="store_true", help="the other way round")
    made.add_argument("--ignore-case", action="store_true", help="order without regard to case")
    return made


def _add_filters(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("filters")
    group.add_argument("--class", dest="klass", metavar="CLASS,…", help="of these classes")
    group.add_argument("--label", metavar="LABEL,…", help="with these labels")
    group.add_argument("--tags", metavar="TAG", nargs="+", default=[], help="with all these tags")
    group.add_argument("--exclude-tags", metavar="TAG", nargs="+", default=[], help="without any")
    group.add_argument("--running", action="store_true", help="that run")
    group.add_argument("--paused", action="store_true", help="that are paused")
    group.add_argument("--halted", action="store_true", help="that are halted")
    group.add_argument("--template-source", metavar="VMNAME,…", help="based on these templates")
    group.add_argument("--netvm-is", metavar="VMNAME,…", help="behind these network qubes")
    group.add_argument("--internal", choices=["y", "n"], help="with the feature `internal`, or not")
    group.add_argument(
        "--servicevm", choices=["y", "n"], help="with the feature `servicevm`, or not"
    )
    group.add_argument("--pending-update", action="store_true", help="with updates to install")
    group.add_argument("--features", metavar="NAME=VALUE", nargs="+", default=[], help="by feature")
    group.add_argument("--prefs", metavar="NAME=VALUE", nargs="+", default=[], help="by property")


def run(arguments: argparse.Namespace, client: Client) -> int:
    """List."""
    fields = _fields(arguments)
    filters = _filters(arguments)
    if arguments.raw_list and not filters.needs and not arguments.sort:
        names = list(selection.listed(client))
        _print_lines(sorted(_named(arguments, names)))
        return 0
    tree_needs = {"netvm"} if arguments.tree else set()
    qubes = _read(client, {*fields, *filters.needs, *tree_needs, *_sort_field(arguments)})
    wanted = set(_named(arguments, list(qubes)))
    rows = [q for q in qubes.values() if q["name"] in wanted and filters.fit(q)]
    rows = _sorted(arguments, client, rows)
    if arguments.raw_list:
        _print_lines(q["name"] for q in rows)
    elif arguments.json:
        _print_json(client, fields, rows)
    else:
        _print_table(arguments, client, fields, rows)
    return 0


def _fields(arguments: argparse.Namespace) -> list[str]:
    if arguments.fields:
        return [word.strip().lower().replace("-", "_") for word in arguments.fields.split(",")]
    fields = list(FORMATS[arguments.format or "simple"])
    if arguments.format is None and not arguments.raw_data and sys.stdout.isatty():
        # A person at a terminal sees which wall stands around each qube.
        fields.append("virt_mode")
    return fields


def _sort_field(arguments: argparse.Namespace) -> tuple[str, ...]:
    return (arguments.sort.lower().replace("-", "_"),) if arguments.sort else ()


class Filters:
    """Conditions that a qube has to meet, and what has to be read to judge them."""

    def __init__(self) -> None:
        self.needs: set[str] = set()
        self._conditions: list[Callable[[Facts], bool]] = []

    def add(self, condition: Callable[[Facts], bool], *needs: str) -> None:
        """Add one."""
        self._conditions.append(condition)
        self.needs.update(needs)

    def fit(self, qube: Facts) -> bool:
        """Whether a qube meets all."""
        return all(condition(qube) for condition in self._conditions)


def _filters(arguments: argparse.Namespace) -> Filters:
    filters = Filters()
    states = [s for s in ("Running", "Paused", "Halted") if getattr(arguments, s.lower())]
    if states:
        filters.add(lambda q: q["state"] in states, "state")
    if arguments.klass:
        classes = arguments.klass.split(",")
        filters.add(lambda q: q["class"] in classes, "class")
    if arguments.tags:
        filters.add(lambda q: set(arguments.tags) <= set(q["tags"]), ".tags")
    if arguments.exclude_tags:
        filters.add(lambda q: set(arguments.exclude_tags).isdisjoint(q["tags"]), ".tags")
    _add_property_filters(filters, arguments)
    _add_feature_filters(filters, arguments)
    return filters


def _add_property_filters(filters: Filters, arguments: argparse.Namespace) -> None:
    for prop, text in (
        ("label", arguments.label),
        ("template", arguments.template_source),
        ("netvm", arguments.netvm_is),
    ):
        if text is not None:
            _add_property_filter(filters, prop, text.split(","))
    for word in arguments.prefs:
        key, value = _pair(word)
        _add_property_filter(filters, key.replace("-", "_"), [value])


def _add_feature_filters(filters: Filters, arguments: argparse.Namespace) -> None:
    for feature in ("internal", "servicevm"):
        if (answer := getattr(arguments, feature)) is not None:
            _add_feature_filter(filters, feature, present=answer == "y")
    if arguments.pending_update:
        _add_feature_filter(filters, "updates-available", present=True)
    for word in arguments.features:
        key, value = _pair(word)
        _add_feature_value_filter(filters, key, value)


def _add_feature_value_filter(filters: Filters, feature: str, value: str) -> None:
    filters.add(lambda q: q["features"].get(feature) == value, ".features")


def _add_property_filter(filters: Filters, prop: str, values: Sequence[str]) -> None:
    filters.add(lambda q: (q["properties"].get(prop) or "") in values, prop)


def _add_feature_filter(filters: Filters, feature: str, *, present: bool) -> None:
    filters.add(lambda q: bool(q["features"].get(feature)) == present, ".features")


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UsageError(f"`{shown(word)}` is not of the form `NAME=VALUE`")
    return key, value


def _read(client: Client, fields: set[str]) -> dict[str, Facts]:
    """All qubes with what the fields need, in one call."""
    import json

    wanted = fields - _NOT_PROPERTIES - {"ipback", "initialmem"}
    if "flags" in fields:
        wanted |= {*_FOR_FLAGS, ".features"}
    return {
        qube["name"]: qube for qube in json.loads(client.call("caisson.vm.List", "+".join(wanted)))
    }


def _named(arguments: argparse.Namespace, names: list[str]) -> list[str]:
    """The names that the command line asks for."""
    known = {name: selection.Listed(name, "", "") for name in names}
    if arguments.names and arguments.all:
        raise UsageError("names and `--all` exclude each other")
    chosen = selection.matching(arguments.names, known) if arguments.names else names
    excluded = set(selection.matching(arguments.exclude, known))
    return [name for name in chosen if name not in excluded]


def _sorted(arguments: argparse.Namespace, client: Client, rows: list[Facts]) -> list[Facts]:
    field = next(iter(_sort_field(arguments)), "name")

    def key(qube: Facts) -> tuple[int, int, str]:
        text = cell(client, qube, field)
        text = text.lower() if arguments.ignore_case else text
        # Numbers go by size, before words.
        return (0, int(text), "") if text.isdigit() else (1, 0, text)

    return sorted(rows, key=key, reverse=arguments.reverse)


def cell(client: Client, qube: Facts, field: str) -> str:
    """The text of one cell; what is missing is `-`."""
    if field in _ALWAYS:
        return str(qube[field])
    if field == "flags":
        return _flags(qube)
    if field == "memory":
        return _memory(client, qube)
    if field in FORMATS["disk"]:
        return _disk(client, qube, field)
    value = qube["properties"].get(field)
    return str(value) if value else "-"


def _flags(qube: Facts) -> str:
    properties, features = qube["properties"], qube["features"]
    letter = _TYPE_LETTERS.get(qube["class"], "?")
    if properties.get("virt_mode") == "hvm":
        letter = letter.upper()
    marks = (
        ("U", properties.get("updateable") == "True"),
        ("N", properties.get("provides_network") == "True"),
        ("R", properties.get("installed_by_rpm") == "True"),
        ("i", bool(features.get("internal"))),
        ("D", properties.get("debug") == "True"),
        ("A", properties.get("autostart") == "True"),
    )
    state = _STATE_LETTERS.get(qube["state"], "-")
    return letter + state + "".join(mark if given else "-" for mark, given in marks)


def _memory(client: Client, qube: Facts) -> str:
    text = client.text("admin.vm.CurrentState", destination=qube["name"])
    facts = dict(word.split("=", 1) for word in text.split())
    kib = int(facts.get("mem", "0"))
    return str(kib // 1024) if kib else "-"


def _disk(client: Client, qube: Facts, field: str) -> str:
    if qube["name"] == DOM0:
        return "-"
    if "volumes" not in qube:
        names = client.lines("admin.vm.volume.List", destination=qube["name"])
        qube["volumes"] = {name: _volume(client, qube["name"], name) for name in names}
    volumes: dict[str, tuple[int, int]] = qube["volumes"]
    if field == "disk":
        return str(sum(usage for usage, _ in volumes.values()) // _MIB)
    which, _, what = field.partition("_")
    usage, size = volumes.get({"priv": "private"}.get(which, which), (0, 0))
    match what:
        case "curr":
            return str(usage // _MIB)
        case "max":
            return str(size // _MIB)
        case _:
            return f"{usage * 100 // size}%" if size else "-"


def _volume(client: Client, qube: str, volume: str) -> tuple[int, int]:
    lines = client.lines("admin.vm.volume.Info", volume, qube)
    facts = dict(line.split("=", 1) for line in lines)
    return int(facts.get("usage") or 0), int(facts.get("size") or 0)


def _print_lines(names: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{terminal.harmless(name)}\n" for name in names))


def _print_json(client: Client, fields: Sequence[str], rows: Sequence[Facts]) -> None:
    import json

    found = [
        {field: None if (text := cell(client, q, field)) == "-" else text for field in fields}
        for q in rows
    ]
    print(json.dumps(found, indent=2))


def _print_table(
    arguments: argparse.Namespace, client: Client, fields: Sequence[str], rows: Sequence[Facts]
) -> None:
    if arguments.raw_data:
        for qube in rows:
            print("|".join(terminal.harmless(cell(client, qube, field)) for field in fields))
        return
    header = [field.upper().replace("_", "-") for field in fields]
    if arguments.tree:
        body = [
            [indent + text if at == 0 else text for at, text in enumerate(line)]
            for indent, qube in _tree(rows)
            for line in [[cell(client, qube, field) for field in fields]]
        ]
    else:
        body = [[cell(client, qube, field) for field in fields] for qube in rows]
    sys.stdout.write(terminal.table([header, *body]))


def _tree(rows: Sequence[Facts]) -> list[tuple[str, Facts]]:
    """The qubes below their network qubes, each with what goes before its name."""
    names = {q["name"] for q in rows}
    below: dict[str | None, list[Facts]] = {}
    for qube in rows:
        netvm = qube["properties"].get("netvm")
        below.setdefault(netvm if netvm in names else None, []).append(qube)
    lines: list[tuple[str, Facts]] = []

    def walk(netvm: str | None, depth: int) -> None:
        for qube in below.get(netvm, []):
            lines.append(("  " * (depth - 1) + "└─" if depth else "", qube))
            walk(qube["name"], depth + 1)

    walk(None, 0)
    return lines


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
