"""The vocabulary of changes: what can happen to the model, and what is told about it.

One vocabulary, interpreted twice: by `System.apply` in memory and by `Store.write` on disk.
An operation carries facts only; every check is made when a plan is drawn up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from uuid import UUID

import msgspec

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


class AddQube(msgspec.Struct, frozen=True):
    """A qube comes to be."""

    uuid: UUID
    name: QubeName
    klass: str
    qid: int


class RemoveQube(msgspec.Struct, frozen=True):
    """A qube goes, with its properties, features, tags and volumes."""

    uuid: UUID


class SetProperty(msgspec.Struct, frozen=True):
    """A property is stored; `uuid` is None for a global one."""

    uuid: UUID | None
    name: PropertyName
    text: str


class ResetProperty(msgspec.Struct, frozen=True):
    """A property goes back to its default; `uuid` is None for a global one."""

    uuid: UUID | None
    name: PropertyName


class SetFeature(msgspec.Struct, frozen=True):
    """A feature is stored."""

    uuid: UUID
    name: FeatureName
    value: str


class RemoveFeature(msgspec.Struct, frozen=True):
    """A feature goes."""

    uuid: UUID
    name: FeatureName


class AddTag(msgspec.Struct, frozen=True):
    """A qube gets a tag."""

    uuid: UUID
    tag: Tag


class RemoveTag(msgspec.Struct, frozen=True):
    """A qube loses a tag."""

    uuid: UUID
    tag: Tag


class AddLabel(msgspec.Struct, frozen=True):
    """A label of the user's own comes to be; `color` is `0xrrggbb`."""

    name: LabelName
    index: int
    color: str


class RemoveLabel(msgspec.Struct, frozen=True):
    """A label of the user's own goes."""

    name: LabelName


class SetVolume(msgspec.Struct, frozen=True):
    """The state of one volume is stored as a whole."""

    uuid: UUID
    volume: VolumeState


class RemoveVolume(msgspec.Struct, frozen=True):
    """A volume goes."""

    uuid: UUID
    name: VolumeName


class SetNotes(msgspec.Struct, frozen=True):
    """What a person noted about a qube; the empty text means nothing."""

    uuid: UUID
    text: str


class SetPool(msgspec.Struct, frozen=True):
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
        about: which qube it is about, also where that is told in `kwargs`; a name may pass to
            another one. None for the application itself; never told.
    """

    subject: QubeName | None
    name: str
    kwargs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    about: UUID | None = None


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
