"""Properties as the commands show and set them; the same for qubes and for the system."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from caisson.admin.client import Client, NoAnswerError
from caisson.errors import CaissonError, NoSuchPropertyError, PermissionDeniedError, ProtocolError
from caisson.names import PropertyName, shown
from caisson.tools import terminal
from caisson.tools.command import USAGE, UsageError
from caisson.tools.parallel import at_once

REFERENCES = frozenset(
    {
        "audiovm",
        "clockvm",
        "default_audiovm",
        "default_dispvm",
        "default_guivm",
        "default_netvm",
        "default_template",
        "guivm",
        "management_dispvm",
        "netvm",
        "relayvm",
        "template",
        "updatevm",
    }
)
"""The properties whose value is a qube: `none` stands for no qube, and no qube has that name."""


COMPUTED = frozenset(
    {
        "dns",
        "gateway",
        "gateway6",
        "icon",
        "is_preload",
        "klass",
        "start_time",
        "stubdom_uuid",
        "stubdom_xid",
        "updateable",
        "visible_gateway",
        "visible_gateway6",
        "visible_ip",
        "visible_ip6",
        "visible_netmask",
        "xid",
    }
)
"""The properties of qubes that nobody sets: the daemon resets them without a word."""

Plain = str | int | None
"""A value as JSON has it; a boolean is a number to Python."""


class Shown(NamedTuple):
    """A property with its value, as the daemon tells it."""

    name: str
    default: bool
    kind: str
    text: str

    @property
    def value(self) -> str | None:
        """The text of the value; None for no value."""
        return None if self.text == "" and self.kind != "str" else self.text

    @property
    def plain(self) -> Plain:
        """The value as JSON has it: a number, a boolean, a text, or None."""
        if self.kind == "bool" and self.text in {"True", "False"}:
            return self.text == "True"
        if self.kind == "int" and self.text.removeprefix("-").isdecimal():
            return int(self.text)
        return self.value

    def row(self) -> tuple[str, ...]:
        """Name, flag and value; the flag is `-` set, `D` default, `U` without a value."""
        if self.value is None and self.kind in {"int", "bool"}:
            return (self.name, "U")
        return (
            self.name,
            "D" if self.default else "-",
            "None" if self.value is None else self.text,
        )


def decode(name: str, text: str) -> Shown:
    """Read `default=… type=… VALUE`.

    Raises:
        ProtocolError: the daemon said something else.
    """
    default, space, rest = text.partition(" ")
    kind, second_space, value = rest.partition(" ")
    if not (space and second_space and kind.startswith("type=")):
        raise ProtocolError(f"the daemon's answer about the property `{shown(name)}` is no value")
    return Shown(name, default == "default=True", kind.removeprefix("type="), value)


def decode_line(line: str) -> Shown:
    """Read one line of `GetAll`."""
    name, _, text = line.partition(" ")
    parts = text.split("\\\\")
    return decode(name, "\\".join(p.replace("\\n", "\n").replace("\\r", "\r") for p in parts))


def wire_name(untrusted_name: str) -> str:
    """The name of a property as the daemon knows it: with underscores."""
    return untrusted_name.replace("-", "_")


def wire_value(name: str, value: str) -> bytes:
    """The value of a property as the daemon expects it."""
    if name in REFERENCES and value.lower() == "none":
        return b""
    return value.encode()


class Owner(NamedTuple):
    """Whose properties: a qube's, or with an empty name the system's."""

    qube: str

    @property
    def methods(self) -> str:
        """The prefix of the methods."""
        return "admin.vm.property" if self.qube else "admin.property"

    @property
    def destination(self) -> str:
        """The qube that the methods are called on."""
        return self.qube or "dom0"


def read_all(client: Client, owner: Owner) -> list[Shown]:
    """All properties, by name; one by one where the daemon does not give them together."""
    try:
        lines = client.lines(f"{owner.methods}.GetAll", destination=owner.destination)
        return sorted(map(decode_line, lines), key=lambda prop: prop.name)
    except (ProtocolError, PermissionDeniedError, NoAnswerError):
        pass
    names = client.lines(f"{owner.methods}.List", destination=owner.destination)
    found = at_once(names, lambda name: _read_one(client, owner, name))
    return sorted((prop for prop in found if prop is not None), key=lambda prop: prop.name)


def read(client: Client, owner: Owner, name: str) -> Shown:
    """One property.

    Raises:
        NoSuchPropertyError: the qube has none of that name.
    """
    return decode(name, client.text(f"{owner.methods}.Get", name, owner.destination))


def _read_one(client: Client, owner: Owner, name: str) -> Shown | None:
    """One of a list; None where the caller may not see it."""
    try:
        return read(client, owner, name)
    except (NoSuchPropertyError, PermissionDeniedError, NoAnswerError):
        return None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `qvm-prefs` and `qubes-prefs` share."""
    parser.add_argument("property", metavar="PROPERTY", nargs="?", help="show or set this one only")
    parser.add_argument("value", metavar="VALUE", nargs="?", help="the new value; `none`: no qube")
    parser.add_argument(
        "--unset", "--default", "-D", action="store_true", help="let PROPERTY have its default"
    )
    parser.add_argument(
        "--hide-default", action="store_true", help="list only what differs from its default"
    )
    parser.add_argument(
        "--help-properties", action="store_true", help="list the properties with their meaning"
    )
    parser.add_argument("--get", "-g", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--set", "-s", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace, client: Client, owner: Owner) -> int:
    """Show, set or reset."""
    if arguments.help_properties:
        return _explain(client, owner)
    if arguments.property is None:
        if arguments.unset:
            raise UsageError("`--default` needs the name of a property")
        return _list(client, owner, hide_default=arguments.hide_default)
    name = wire_name(arguments.property)
    try:
        return _one(client, owner, name, arguments)
    except NoSuchPropertyError as error:
        names = client.lines(f"{owner.methods}.List", destination=owner.destination)
        if name in names:
            # It is there, and cannot be changed.
            raise
        terminal.complain(_with_hint(error, names, name))
        return USAGE


def _one(client: Client, owner: Owner, name: str, arguments: argparse.Namespace) -> int:
    if not PropertyName.pattern.fullmatch(name):
        raise NoSuchPropertyError(f"no property can be called `{shown(name)}`")
    if arguments.unset:
        if arguments.value is not None:
            raise UsageError("a value and `--default` exclude each other")
        if owner.qube and name in COMPUTED:
            raise CaissonError(f"property `{name}` is computed: there is nothing to reset")
        client.call(f"{owner.methods}.Reset", name, owner.destination)
        return 0
    if arguments.value is not None:
        payload = wire_value(name, arguments.value)
        client.call(f"{owner.methods}.Set", name, owner.destination, payload)
        return 0
    found = read(client, owner, name)
    if found.value is not None:
        terminal.emit(found.value + "\n")
    return 0


def _list(client: Client, owner: Owner, *, hide_default: bool) -> int:
    rows = [prop.row() for prop in read_all(client, owner)]
    rows = [row for row in rows if not (hide_default and row[1] == "D")]
    width = max((len(row[0]) for row in rows), default=0)
    for name, *rest in rows:
        print(terminal.cell("  ".join([name.ljust(width), *rest])))
    return 0


def _explain(client: Client, owner: Owner) -> int:
    names = client.lines(f"{owner.methods}.List", destination=owner.destination)
    names.sort()
    texts = at_once(
        names, lambda name: client.text(f"{owner.methods}.Help", name, owner.destination)
    )
    print(terminal.table(zip(names, texts, strict=True)), end="")
    return 0


def _with_hint(error: NoSuchPropertyError, names: list[str], name: str) -> CaissonError:
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1)
    hint = f"did you mean `{shown(near[0])}`?" if near else "`--help-properties` lists them"
    return CaissonError(error.message, hint if near else error.hint or hint)
