"""What a `qubes.xml` says, as it says it: the vocabulary that reading and writing share.

`qubes.xml` is the state file of Qubes OS 4: root `<qubes version="3.0">`; in it `labels`, `pools`,
`properties` of the system, `domains`. A `domain` has a class, `properties`, `features`, `devices`,
`tags` and a `volume-config`. A property's value is its text, or its attribute `ref`.
Ours alone, and no part of what Qubes OS writes: `notes` in a `domain`.

bytes → `qubes_xml_read.read` → `Description` → `qubes_xml_plan.plan` → operations of the model, and
back: `qubes_xml_write.describe`, `qubes_xml_write.write`. All of it is pure.

Nothing in a description has been checked but its form: every field of it is untrusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from caisson.errors import ValueRefusedError
from caisson.model.volumes import HOST, KERNELS, LAYERS
from caisson.names import PoolName

VERSION: Final = "3.0"

POOLS: Final[Mapping[PoolName, Mapping[str, str]]] = {
    LAYERS: {"driver": "file-reflink", "dir_path": "/var/lib/qubes"},
    HOST: {"driver": "caisson-host"},
    KERNELS: {"driver": "linux-kernel", "dir_path": "/var/lib/qubes/vm-kernels"},
}
"""Our pools as the file describes them: a Qubes OS has two of that name and purpose itself."""

PICTURES: Final = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
"""Control characters that XML 1.0 cannot hold, even as references → what stands for them.

The values of the model are ASCII, so the symbols that Unicode has for these characters (U+2400 to
U+241F) mean nothing else in the file, and come back as what they stand for. Qubes OS shows the
symbol. Notes are in any script, but hold no such characters: they are written as they are.
"""


class QubesXmlError(ValueRefusedError):
    """A `qubes.xml` that cannot be taken over.

    Args:
        message: what is wrong.
        hint: the remedy.
        line: where, counted from 1; 0 where it is about the whole file.
    """

    def __init__(self, message: str, hint: str | None = None, *, line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message, hint)
        self.line = line


@dataclass(frozen=True, slots=True)
class Entry:
    """A property, a feature, or a tag, which has no value."""

    name: str
    value: str = ""
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class LabelEntry:
    """A label; `id` is `label-N`."""

    id: str
    color: str
    name: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """A pool; its attributes are its driver and the driver's options."""

    name: str
    attributes: Mapping[str, str]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class VolumeEntry:
    """A volume of a domain."""

    name: str
    attributes: Mapping[str, str]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that has no place here: a device, or an element that nobody knows."""

    what: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Domain:
    """A qube; `id` is `domain-N`."""

    id: str
    klass: str
    properties: tuple[Entry, ...] = ()
    features: tuple[Entry, ...] = ()
    tags: tuple[Entry, ...] = ()
    volumes: tuple[VolumeEntry, ...] = ()
    devices: tuple[Unknown, ...] = ()
    unknown: tuple[Unknown, ...] = ()
    notes: str = ""
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Description:
    """A whole file."""

    labels: tuple[LabelEntry, ...] = ()
    pools: tuple[PoolEntry, ...] = ()
    properties: tuple[Entry, ...] = ()
    domains: tuple[Domain, ...] = ()
    unknown: tuple[Unknown, ...] = ()
