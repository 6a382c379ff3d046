"""Devices as text (sheet `admin-api`, section 2.7): identities, and assignments to qubes.

Two forms of an identity: `BACKEND:PORT:DEVID` in answers, and one with `+` and `_` that qrexec
takes as an argument. The second loses a `*` within a device id, so identities are compared in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from caisson.errors import AssignmentModeError, ProtocolError, ValueRefusedError
from caisson.model import parsing
from caisson.names import Name, QubeName, shown

ANY: Final = "*"
_ANY_ARGUMENT: Final = "_"
_UNKNOWN: Final = "?******"
_UNKNOWN_ARGUMENT: Final = "_" * 7
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)='((?:[ -&(-\[\]-~]|\\')*)'")
_FIELDS = frozenset(
    {"device_id", "port_id", "devclass", "backend_domain", "mode", "frontend_domain"}
)
_FRONTEND = re.compile(r"(xvd|sd)[a-z]{1,2}")
_NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class DeviceClass(StrEnum):
    """The classes of devices."""

    BLOCK = "block"
    MIC = "mic"
    PCI = "pci"
    USB = "usb"


class Mode(StrEnum):
    """How an assigned device gets to its qube."""

    MANUAL = "manual"
    ASK = "ask-to-attach"
    AUTO = "auto-attach"
    REQUIRED = "required"


ASSIGNED: Final = frozenset({Mode.ASK, Mode.AUTO, Mode.REQUIRED})
"""The modes of an assignment; a device that is only attached is `manual`."""


class PortId(Name):
    """The place at which a device is connected to its backend."""

    what = "device port"
    pattern = re.compile(r"[A-Za-z0-9._-]+")
    expected = "use letters, digits, `.`, `_` and `-`"
    longest = 255
    refusal = ProtocolError


class DeviceId(Name):
    """What a device says about itself: fields joined by `:`."""

    what = "device id"
    pattern = re.compile(r"[A-Za-z0-9._:?*@-]+")
    expected = "use letters, digits, `.`, `_`, `:`, `?`, `*`, `@` and `-`"
    longest = 1024
    refusal = ProtocolError


@dataclass(frozen=True, slots=True)
class Device:
    """Which device; what is None may be any.

    Args:
        backend: the qube that has it.
        port: where it is connected.
        devid: what it is.
    """

    backend: QubeName | None
    port: PortId | None
    devid: DeviceId | None = None

    def __str__(self) -> str:
        """The identity, as in answers."""
        return ":".join(ANY if part is None else part for part in self._parts)

    @property
    def argument(self) -> str:
        """The identity, as an argument of a qrexec service."""
        return "+".join(
            _ANY_ARGUMENT if part is None else _encoded(part.replace(":", "+"))
            for part in self._parts
        )

    @property
    def _parts(self) -> tuple[str | None, str | None, str | None]:
        return self.backend, self.port, self.devid

    @classmethod
    def parse_argument(cls, untrusted: str) -> Device:
        """Parse an argument; the device id may be left out.

        Raises:
            ProtocolError: it is none.
        """
        fields = [_decoded(word) for word in untrusted.split("+")]
        if len(fields) < 2:  # noqa: PLR2004 - backend and port
            raise ProtocolError(
                f"`{shown(untrusted)}` does not identify a device",
                hint="use `BACKEND+PORT+DEVICE_ID`",
            )
        backend, port, *devid = fields
        return cls.of_words(backend, port, ":".join(devid) if devid else ANY)

    @classmethod
    def of_words(cls, backend: str, port: str, devid: str) -> Device:
        """Check the three parts of an identity.

        Raises:
            ProtocolError: one of them is not valid.
        """
        return cls(
            None if backend == ANY else qube_name(backend),
            None if port == ANY else PortId.parse(port),
            None if devid == ANY else DeviceId.parse(devid),
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device that belongs to a qube.

    Args:
        device: which.
        devclass: its class.
        mode: how it gets there.
        frontend: the qube that gets it, where that is told.
        options: of the class, in their text form.
    """

    device: Device
    devclass: DeviceClass
    mode: Mode = Mode.MANUAL
    frontend: QubeName | None = None
    options: Mapping[str, str] = field(default_factory=lambda: _NO_OPTIONS)

    def __str__(self) -> str:
        """Serialized, as in answers and payloads."""
        device = self.device
        pairs = {
            "device_id": device.devid or ANY,
            "port_id": device.port or ANY,
            "devclass": self.devclass,
            "backend_domain": device.backend or ANY,
            "mode": self.mode,
        }
        if self.frontend is not None:
            pairs["frontend_domain"] = self.frontend
        pairs |= {f"_{key}": value for key, value in self.options.items()}
        return " ".join(f"{key}='{_escaped(value)}'" for key, value in pairs.items())

    @classmethod
    def parse(cls, device: Device, devclass: DeviceClass, untrusted: bytes) -> Assignment:
        """Parse a payload; what it says about the device must agree with the argument.

        Args:
            device: what the argument says.
            devclass: what the method says.
            untrusted: the payload; empty for a manual attachment without options.

        Raises:
            ProtocolError: it is malformed, or contradicts the argument.
            AssignmentModeError: no such mode.
            ValueRefusedError: an option that the class does not have, or a bad value of one.
        """
        untrusted_pairs = parse_pairs(untrusted)
        unknown = {key for key in untrusted_pairs if not key.startswith("_")} - _FIELDS
        if unknown:
            raise ProtocolError(f"key `{shown(min(unknown))}` is not part of an assignment")
        named = Device.of_words(
            untrusted_pairs.get("backend_domain", device.backend or ANY),
            untrusted_pairs.get("port_id", device.port or ANY),
            untrusted_pairs.get("device_id", device.devid or ANY),
        )
        said = untrusted_pairs.get("devclass", devclass)
        if said != devclass or (device.devid is not None and named.argument != device.argument):
            raise _contradiction()
        if (named.backend, named.port) != (device.backend, device.port):
            raise _contradiction()
        frontend = untrusted_pairs.get("frontend_domain")
        options = {k[1:]: v for k, v in untrusted_pairs.items() if k.startswith("_")}
        return cls(
            named,
            devclass,
            mode_of(untrusted_pairs.get("mode", Mode.MANUAL)),
            None if frontend is None else qube_name(frontend),
            MappingProxyType(_checked(devclass, options)),
        )


def mode_of(untrusted: str) -> Mode:
    """The mode of that name.

    Raises:
        AssignmentModeError: there is none.
    """
    try:
        return Mode(untrusted)
    except ValueError:
        raise AssignmentModeError(
            f"assignment mode `{shown(untrusted)}` does not exist",
            hint="use one of: " + ", ".join(sorted(ASSIGNED)),
        ) from None


def qube_name(untrusted: str) -> QubeName:
    """A qube in an identity.

    Raises:
        ProtocolError: it is no name of a qube.
    """
    try:
        return QubeName.parse(untrusted)
    except ValueRefusedError as error:
        raise ProtocolError(error.message, error.hint) from None


def parse_pairs(untrusted: bytes) -> dict[str, str]:
    r"""Parse `key='value'` pairs, joined by spaces; `\'` in a value is an apostrophe.

    Raises:
        ProtocolError: they are malformed.
    """
    try:
        untrusted_text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("an assignment is not ASCII") from None
    untrusted_pairs: dict[str, str] = {}
    at = 0
    while at < len(untrusted_text):
        found = _PAIR.match(untrusted_text, at)
        if found is None or (found.end() < len(untrusted_text)) != untrusted_text.startswith(
            " ", found.end()
        ):
            raise ProtocolError(
                f"`{shown(untrusted_text[at:])}` is not of the form `key='value'`",
                hint="join pairs by one space",
            )
        key, value = found[1], found[2].replace("\\'", "'")
        if key in untrusted_pairs:
            raise ProtocolError(f"key `{shown(key)}` is given twice")
        untrusted_pairs[key] = value
        at = found.end() + 1
    if untrusted_text.endswith(" "):
        raise ProtocolError("an assignment ends in a space")
    return untrusted_pairs


def _one_of(*words: str) -> Callable[[str], str]:
    def parse_value(untrusted: str) -> str:
        if untrusted not in words:
            raise ValueRefusedError(
                f"value `{shown(untrusted)}` does not exist", hint="use one of: " + ", ".join(words)
            )
        return untrusted

    return parse_value


def _yes_or_no(untrusted: str) -> str:
    return "yes" if parsing.boolean(untrusted) else "no"


def _frontend_device(untrusted: str) -> str:
    if not _FRONTEND.fullmatch(untrusted):
        raise ValueRefusedError(
            f"`{shown(untrusted)}` is not the name of a block device", hint="use `xvdi`, `sda`, …"
        )
    return untrusted


_OPTIONS: Final[Mapping[DeviceClass, Mapping[str, Callable[[str], str]]]] = {
    DeviceClass.BLOCK: {
        "frontend-dev": _frontend_device,
        "read-only": _yes_or_no,
        "devtype": _one_of("disk", "cdrom"),
    },
    DeviceClass.MIC: {},
    DeviceClass.PCI: {"no-strict-reset": _yes_or_no, "permissive": _yes_or_no},
    DeviceClass.USB: {},
}


def _checked(devclass: DeviceClass, untrusted: Mapping[str, str]) -> dict[str, str]:
    known = _OPTIONS[devclass]
    for key in untrusted:
        if key not in known:
            raise ValueRefusedError(
                f"devices of class `{devclass}` have no option `{shown(key)}`",
                hint="use some of: " + ", ".join(known) if known else None,
            )
    return {key: known[key](value) for key, value in untrusted.items()}


def _contradiction() -> ProtocolError:
    return ProtocolError("the payload is about another device than the argument")


def _escaped(value: str) -> str:
    return value.replace("'", "\\'")


def _encoded(part: str) -> str:
    return part.replace(_UNKNOWN, _UNKNOWN_ARGUMENT).replace(ANY, _ANY_ARGUMENT)


def _decoded(untrusted: str) -> str:
    if untrusted == _ANY_ARGUMENT:
        return ANY
    return _UNKNOWN if untrusted == _UNKNOWN_ARGUMENT else untrusted
