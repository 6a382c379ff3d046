"""A client of the Admin API written from the sheet alone, as an unmodified one behaves.

Sheet `admin-api`: header bytes of section 1.2, replies and events of 1.3, values of 2.2, the kinds
of refusals of section 4 and the caches of 3.3. It imports nothing of Caisson: a mistake that both
sides shared would go unseen.
"""

from __future__ import annotations

import builtins
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

TYPES = {"str", "int", "bool", "vm", "label"}
PARENTS = {
    "QubesVMInUseError": "QubesVMError",
    "QubesVMNotStartedError": "QubesVMError",
    "QubesVMNotRunningError": "QubesVMNotStartedError",
    "QubesVMNotPausedError": "QubesVMNotStartedError",
    "QubesVMNotSuspendedError": "QubesVMError",
    "QubesVMNotHaltedError": "QubesVMError",
    "QubesVMShutdownTimeoutError": "QubesVMError",
    "QubesNoTemplateError": "QubesVMError",
    "QubesVMAlreadyStartedError": "QubesVMError",
    "QubesMemoryError": "QubesVMError",
    "QubesPropertyValueError": "QubesValueError",
    "QubesValueError": "ValueError",
    "QubesNoSuchPropertyError": "AttributeError",
    "QubesVMNotFoundError": "KeyError",
    "QubesFeatureNotFoundError": "KeyError",
    "QubesTagNotFoundError": "KeyError",
    "QubesLabelNotFoundError": "KeyError",
    "DeviceNotAssigned": "KeyError",
    "DeviceAlreadyAttached": "KeyError",
    "DeviceAlreadyAssigned": "KeyError",
    "QubesVMError": "QubesException",
    "QubesVMInvalidUUIDError": "QubesException",
    "QubesPoolInUseError": "QubesException",
    "QubesNotImplementedError": "QubesException",
    "QubesNotesError": "QubesException",
    "StoragePoolException": "QubesException",
    "BackupCancelledError": "QubesException",
    "BackupAlreadyRunningError": "QubesException",
    "UnrecognizedDevice": "ValueError",
    "UnexpectedDeviceProperty": "ValueError",
    "ProtocolError": "AssertionError",
    "PermissionDenied": "Exception",
}
"""What the client knows a refusal as, and what that is a kind of (section 4)."""
UNSET = object()
"""An int or a bool that has no value: asking for it is an AttributeError."""
Transport = Callable[[str, str, bytes], bytes]
"""Destination, `METHOD+ARG`, payload → everything that came back."""


class NoReplyError(Exception):
    """The daemon dropped the connection without a word."""


class Refused(Exception):  # noqa: N818 - what it is an error of stands in `name`
    """A refusal of the daemon; `name` is its type on the wire."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text

    def is_a(self, kind: str) -> bool:
        """Whether a handler of that kind of exception would catch it."""
        name = self.name
        if name not in PARENTS:
            builtin = hasattr(builtins, name) and name.endswith("Error")
            name = name if builtin else "QubesException"
        while name != kind and name in PARENTS:
            name = PARENTS[name]
        return name == kind


def parse_reply(raw: bytes) -> bytes:
    """The content of a reply (section 1.3); a refusal raises."""
    if not raw:
        raise NoReplyError
    if raw.startswith(b"0\0"):
        return raw[2:]
    assert raw.startswith(b"2\0"), raw
    _, name, _traceback, text, rest = raw.split(b"\0", 4)
    words = tuple(int(w) if w.isdigit() else w for w in rest.decode().split("\0")[:-1])
    raise Refused(name.decode("ascii"), text.decode() % words)


@dataclass(frozen=True)
class Value:
    """A property as the client holds it."""

    default: bool
    kind: str
    value: object

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `default=… type=… VALUE` (section 2.2)."""
        default, kind, raw = text.split(" ", 2)
        assert default in {"default=True", "default=False"}, text
        assert kind.startswith("type="), text
        kind = kind.removeprefix("type=")
        return cls(default == "default=True", kind, decoded(kind, raw))

    @property
    def text(self) -> str:
        """The value as it is sent back in a Set."""
        assert self.value is not UNSET
        return "" if self.value is None else str(self.value)


def decoded(kind: str, raw: str) -> object:
    """A value by its type; what is empty has a meaning of its own for each."""
    assert kind in TYPES, kind
    if kind == "str":
        return raw
    if raw == "":
        return None if kind in {"vm", "label"} else UNSET
    if kind == "int":
        return int(raw)
    return raw == "True" if kind == "bool" else raw


def unescaped(text: str) -> str:
    r"""Undo the escapes of GetAll: `\\` and `\n`."""
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "\\": "\\"}[found[1]], text)


@dataclass(frozen=True)
class Listed:
    """A line of `admin.vm.List`; words that the client does not know are tolerated."""

    name: str
    klass: str
    state: str
    uuid: str

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse `NAME class=C state=S uuid=U`."""
        name, *words = line.split(" ")
        found = dict(word.split("=", 1) for word in words)
        return cls(name, found["class"], found["state"], found["uuid"])


class SheetClient:
    """Calls, as the client's library makes them.

    Args:
        transport: the way to the daemon.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.calls: list[tuple[str, str]] = []

    def call(self, dest: str, method: str, arg: str = "", payload: str | bytes = b"") -> bytes:
        """Call a method; the content of the reply."""
        self.calls.append((dest, f"{method}+{arg}"))
        raw = payload.encode() if isinstance(payload, str) else payload
        return parse_reply(self._transport(dest, f"{method}+{arg}", raw))

    def text(self, dest: str, method: str, arg: str = "", payload: str | bytes = b"") -> str:
        """Call a method whose content is ASCII text."""
        return self.call(dest, method, arg, payload).decode("ascii")

    def lines(self, dest: str, method: str, arg: str = "") -> list[str]:
        """Call a method whose content is a list, each line of it ended."""
        text = self.text(dest, method, arg)
        assert text == "" or text.endswith("\n"), text
        return text.split("\n")[:-1]

    def qubes(self, dest: str = "dom0") -> dict[str, Listed]:
        """All qubes, or the one."""
        found = [Listed.parse(line) for line in self.lines(dest, "admin.vm.List")]
        assert dest == "dom0" or len(found) == 1
        return {each.name: each for each in found}

    def state(self, name: str) -> str:
        """What a qube does."""
        words = self.text(name, "admin.vm.CurrentState").split(" ")
        return dict(word.split("=", 1) for word in words)["power_state"]

    def get(self, owner: str | None, name: str) -> Value:
        """One property; None owns the global ones."""
        return Value.parse(self.text(*_property(owner, "Get"), name))

    def get_all(self, owner: str | None) -> dict[str, Value]:
        """All properties at once; a line is what ends in CR or LF."""
        found = {}
        for line in self.call(*_property(owner, "GetAll")).splitlines():
            name, _, rest = line.decode("ascii").partition(" ")
            found[name] = Value.parse(unescaped(rest))
        return found

    def set(self, owner: str | None, name: str, text: str) -> None:
        """Set a property."""
        self.call(*_property(owner, "Set"), name, text)

    def feature(self, name: str, feature: str, check: str = "Get") -> str | None:
        """A feature, None where there is none: to the client that is a KeyError."""
        try:
            return self.text(name, f"admin.vm.feature.{check}", feature)
        except Refused as refused:
            if not refused.is_a("KeyError"):
                raise
            return None


def _property(owner: str | None, verb: str) -> tuple[str, str]:
    if owner is None:
        return "dom0", f"admin.property.{verb}"
    return owner, f"admin.vm.property.{verb}"


# --- ways to the daemon ----------------------------------------------------------------------


def over_socket(path: Path) -> Transport:
    """The transport of the admin qube: the socket, one connection a call."""

    def send(dest: str, service: str, payload: bytes) -> bytes:
        with connected(path, dest, service, payload) as connection:
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    return send


def connected(path: Path, dest: str, service: str, payload: bytes = b"") -> socket.socket:
    """A connection on which a request was sent and ended."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path))
    connection.sendall(f"{service} dom0 name {dest}\0".encode("ascii") + payload)
    connection.shutdown(socket.SHUT_WR)
    return connection


# --- events ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One event; the subject is empty for those of the system."""

    subject: str
    name: str
    kwargs: dict[str, str]


class EventReader:
    """Reads frames token by token, each up to a NUL and at most 64 KiB long."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self) -> Told | None:
        """The next event; None at the end of the stream."""
        kind = self._token(may_end=True)
        if kind is None:
            return None
        assert kind == "1", kind
        subject, name = self._token(), self._token()
        kwargs = {}
        while key := self._token():
            assert key not in kwargs
            kwargs[key] = self._token() or ""
        return Told(subject or "", name or "", kwargs)

    def until(self, name: str) -> list[Told]:
        """All events up to the one of that name, which is the last."""
        found = []
        while (told := self.read()) is not None:
            found.append(told)
            if told.name == name:
                return found
        raise AssertionError(f"the stream ended before `{name}`")

    def _token(self, *, may_end: bool = False) -> str | None:
        raw = bytearray()
        while byte := self._stream.read(1):
            if byte == b"\0":
                return raw.decode()
            raw += byte
            assert len(raw) <= 65_536
        assert may_end, "the stream ended within an event"
        assert not raw, raw
        return None


class EventStream(EventReader):
    """A stream over the socket."""

    def __init__(self, path: Path, dest: str = "dom0", method: str = "admin.Events") -> None:
        self._connection = connected(path, dest, f"{method}+")
        self._file = self._connection.makefile("rb")
        super().__init__(self._file)
        first = self.read()
        assert first == Told("", "connection-established", {}), first

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


POWER = {
    "domain-pre-start": "Transient",
    "domain-start": "Running",
    "domain-shutdown": "Halted",
    "domain-paused": "Paused",
    "domain-unpaused": "Running",
    "domain-start-failed": "Halted",
}


@dataclass
class Cache:
    """What the client keeps of qubes, and forgets by events (section 3.3).

    Attributes:
        states: power states by qube.
        values: properties by qube, the empty name for those of the system.
        qubes: who exists.
    """

    states: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, Value]] = field(default_factory=dict)
    qubes: set[str] = field(default_factory=set)

    def hear(self, told: Told) -> None:
        """Follow one event."""
        if told.name == "connection-established":
            self.states.clear()
            self.values.clear()
        elif told.name.startswith(("property-set:", "property-reset:")):
            self.values.get(told.subject, {}).pop(told.kwargs["name"], None)
        elif told.name == "domain-add":
            self.qubes.add(told.kwargs["vm"])
        elif told.name == "domain-delete":
            gone = told.kwargs["vm"]
            self.qubes.discard(gone)
            self.states.pop(gone, None)
            self.values.pop(gone, None)
        elif told.name in POWER:
            self.states[told.subject] = POWER[told.name]
