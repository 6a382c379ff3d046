"""The vocabulary of changes: what can happen to the model, and what is told about it.

One vocabulary, interpreted twice: by `System.apply` in memory and by `Store.write` on disk.
An operation carries facts only; every check is made when a plan is drawn up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from uuid import UUID

from caisson.model.volumes import VolumeState
from caisson.names import (
    FeatureName,
    LabelName,
    PoolName,
    PropertyName,
    QubeName,
    Tag,
    VolumeName,
)


@dataclass(frozen=True, slots=True)
class AddQube:
    """A qube comes to be."""

    uuid: UUID
    name: QubeName
    klass: str
    qid: int


@dataclass(frozen=True, slots=True)
class RemoveQube:
    """A qube goes, with its properties, features, tags and volumes."""

    uuid: UUID


@dataclass(frozen=True, slots=True)
class SetProperty:
    """A property is stored; `uuid` is None for a global one."""

    uuid: UUID | None
    name: PropertyName
    text: str


@dataclass(frozen=True, slots=True)
class ResetProperty:
    """A property goes back to its default; `uuid` is None for a global one."""

    uuid: UUID | None
    name: PropertyName


@dataclass(frozen=True, slots=True)
class SetFeature:
    """A feature is stored."""

    uuid: UUID
    name: FeatureName
    value: str


@dataclass(frozen=True, slots=True)
class RemoveFeature:
    """A feature goes."""

    uuid: UUID
    name: FeatureName


@dataclass(frozen=True, slots=True)
class AddTag:
    """A qube gets a tag."""

    uuid: UUID
    tag: Tag


@dataclass(frozen=True, slots=True)
class RemoveTag:
    """A qube loses a tag."""

    uuid: UUID
    tag: Tag


@dataclass(frozen=True, slots=True)
class AddLabel:
    """A label of the user's own comes to be; `color` is `0xrrggbb`."""

    name: LabelName
    index: int
    color: str


@dataclass(frozen=True, slots=True)
class RemoveLabel:
    """A label of the user's own goes."""

    name: LabelName


@dataclass(frozen=True, slots=True)
class SetVolume:
    """The state of one volume is stored as a whole."""

    uuid: UUID
    volume: VolumeState


@dataclass(frozen=True, slots=True)
class RemoveVolume:
    """A volume goes."""

    uuid: UUID
    name: VolumeName


@dataclass(frozen=True, slots=True)
class SetNotes:
    """What a person noted about a qube; the empty text means nothing."""

    uuid: UUID
    text: str


@dataclass(frozen=True, slots=True)
class SetPool:
    """The settings of a pool are stored as a whole."""

    name: PoolName
    revisions_to_keep: int


Op = (
    AddQube
    | RemoveQube
    | SetProperty
    | ResetProperty
    | SetFeature
    | RemoveFeature
    | AddTag
    | RemoveTag
    | AddLabel
    | RemoveLabel
    | SetVolume
    | RemoveVolume
    | SetNotes
    | SetPool
)


@dataclass(frozen=True, slots=True)
class Event:
    """What listeners are told (sheet `admin-api`, section 3).

    Args:
        subject: the qube it is about; None for the application itself.
        name: such as `property-set:netvm`.
        kwargs: rendered values, in the order of the sheet.
    """

    subject: QubeName | None
    name: str
    kwargs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Change:
    """A checked plan: it can be applied as it is, all of it or nothing.

    Args:
        ops: what happens, in order.
        events: told when it has happened.
        before: told when it is about to happen.
    """

    ops: tuple[Op, ...] = ()
    events: tuple[Event, ...] = ()
    before: tuple[Event, ...] = ()

    def __add__(self, other: Change) -> Change:
        return Change(self.ops + other.ops, self.events + other.events, self.before + other.before)
