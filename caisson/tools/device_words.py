"""Devices and assignments as words of the Admin API (sheet `admin-api`, section 2.7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from caisson.errors import ProtocolError
from caisson.names import shown

_UNKNOWN_INTERFACE = "?******"


def argument(backend: str, port: str, device: str = "*") -> str:
    """A device as the argument of a call; `*` is any."""
    fields = [backend, port, *device.split(":")]
    return "+".join("_" * 7 if f == _UNKNOWN_INTERFACE else f.replace("*", "_") for f in fields)


def serialized(words: Mapping[str, str]) -> bytes:
    """Words as a payload: `key='value'`, joined by spaces."""
    quoted = (f"{key}='{_escaped(value)}'" for key, value in words.items())
    return " ".join(quoted).encode("ascii", "backslashreplace")


def _escaped(value: str) -> str:
    return value.replace("'", "\\'")


@dataclass(frozen=True, slots=True)
class Assignment:
    """One line of `admin.vm.device.CLASS.Assigned`."""

    backend: str
    port: str
    device: str
    words: dict[str, str]

    @property
    def argument(self) -> str:
        """The device as the argument of a call."""
        return argument(self.backend, self.port, self.device)


def parse_assignment(line: str) -> Assignment:
    """Read `BACKEND+PORT:DEVID key='value' …`.

    Raises:
        ProtocolError: the line is not of that form.
    """
    head, _, rest = line.partition(" ")
    backend, plus, identity = head.partition("+")
    port, colon, device = identity.partition(":")
    if not plus or not backend or not port:
        raise ProtocolError(f"`{shown(line)}` is no line about a device")
    return Assignment(backend, port, device if colon else "*", dict(_words(rest)))


def _words(text: str) -> Iterator[tuple[str, str]]:
    while text := text.lstrip(" "):
        key, quote, rest = text.partition("='")
        value, end = _value(rest)
        if not quote or end is None:
            raise ProtocolError(f"`{shown(text)}` is not of the form `key='value'`")
        yield key, value
        text = rest[end:]


def _value(text: str) -> tuple[str, int | None]:
    """The value before the closing quote, and where the text goes on; None where none closes."""
    value = ""
    position = 0
    while position < len(text):
        if text.startswith("\\'", position):
            value += "'"
            position += 2
        elif text[position] == "'":
            return value, position + 1
        else:
            value += text[position]
            position += 1
    return value, None
