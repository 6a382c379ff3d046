"""Operations as rows: what each one writes, and how rows become operations again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from caisson.model.changes import (
    AddLabel,
    AddQube,
    AddTag,
    Op,
    RemoveFeature,
    RemoveLabel,
    RemoveQube,
    RemoveTag,
    RemoveVolume,
    ResetProperty,
    SetFeature,
    SetNotes,
    SetPool,
    SetProperty,
    SetVolume,
)
from caisson.model.qube import ADMIN_UUID
from caisson.model.volumes import Revision, VolumeState
from caisson.names import FeatureName, LabelName, PoolName, PropertyName, QubeName, Tag, VolumeName

_Kept = TypeVar("_Kept")
_Made = TypeVar("_Made")
Statement = tuple[str, tuple[Any, ...]]
_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Revision(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    layers: tuple[str, ...]
    created: int


class _Volume(msgspec.Struct, forbid_unknown_fields=True):
    layers: tuple[str, ...]
    dirty: str | None
    revisions: tuple[_Revision, ...]
    snap_on_start: bool
    save_on_stop: bool
    rw: bool
    size: int
    revisions_to_keep: int
    pool: str


_decode_volume = msgspec.json.Decoder(_Volume).decode


def statement(op: Op) -> Statement:  # noqa: C901, PLR0911, PLR0912 - one case an operation
    """The statement that keeps one operation."""
    match op:
        case AddQube(uuid, name, klass, qid):
            return "INSERT INTO qube VALUES (?, ?, ?, ?)", (uuid.bytes, name, klass, qid)
        case RemoveQube(uuid):
            return "DELETE FROM qube WHERE uuid = ?", (uuid.bytes,)
        case SetProperty(uuid, name, text):
            if uuid is None:
                return "INSERT OR REPLACE INTO global_property VALUES (?, ?)", (name, text)
            return "INSERT OR REPLACE INTO property VALUES (?, ?, ?)", (uuid.bytes, name, text)
        case ResetProperty(uuid, name):
            if uuid is None:
                return "DELETE FROM global_property WHERE name = ?", (name,)
            return "DELETE FROM property WHERE qube = ? AND name = ?", (uuid.bytes, name)
        case SetFeature(uuid, name, value):
            return "INSERT OR REPLACE INTO feature VALUES (?, ?, ?)", (uuid.bytes, name, value)
        case RemoveFeature(uuid, name):
            return "DELETE FROM feature WHERE qube = ? AND name = ?", (uuid.bytes, name)
        case AddTag(uuid, tag):
            return "INSERT OR REPLACE INTO tag VALUES (?, ?)", (uuid.bytes, tag)
        case RemoveTag(uuid, tag):
            return "DELETE FROM tag WHERE qube = ? AND tag = ?", (uuid.bytes, tag)
        case AddLabel(name, index, color):
            return "INSERT INTO label VALUES (?, ?, ?)", (name, index, color)
        case RemoveLabel(name):
            return "DELETE FROM label WHERE name = ?", (name,)
        case SetVolume(uuid, volume):
            kept = _volume_text(volume)
            return "INSERT OR REPLACE INTO volume VALUES (?, ?, ?)", (uuid.bytes, volume.name, kept)
        case RemoveVolume(uuid, volume_name):
            return "DELETE FROM volume WHERE qube = ? AND name = ?", (uuid.bytes, volume_name)
        case SetNotes(uuid, ""):
            return "DELETE FROM notes WHERE qube = ?", (uuid.bytes,)
        case SetNotes(uuid, text):
            return "INSERT OR REPLACE INTO notes VALUES (?, ?)", (uuid.bytes, text)
        case SetPool(name, revisions_to_keep):
            return "INSERT OR REPLACE INTO pool VALUES (?, ?)", (name, revisions_to_keep)


def operations(connection: sqlite3.Connection) -> Iterator[Op]:
    """All that is kept, as operations: labels and qubes first, then what refers to them.

    What is the same in many rows is one object in all operations.
    """
    uuids = {ADMIN_UUID.bytes: ADMIN_UUID}
    text = _Once(str)
    for name, number, color in connection.execute("SELECT * FROM label ORDER BY number"):
        yield AddLabel(LabelName(name), number, color)
    # `dom0` is in the table for the sake of what refers to it; every model has it anyway.
    for raw, name, klass, qid in connection.execute(
        "SELECT * FROM qube WHERE uuid != ? ORDER BY qid", (ADMIN_UUID.bytes,)
    ):
        uuid = uuids[raw] = UUID(bytes=raw)
        yield AddQube(uuid, QubeName(name), text[klass], qid)
    property_name = _Once(PropertyName)
    for name, value in connection.execute("SELECT * FROM global_property"):
        yield SetProperty(None, property_name[name], value)
    for raw, name, value in connection.execute("SELECT * FROM property"):
        yield SetProperty(uuids[raw], property_name[name], text[value])
    feature_name = _Once(FeatureName)
    for raw, name, value in connection.execute("SELECT * FROM feature"):
        yield SetFeature(uuids[raw], feature_name[name], text[value])
    tag = _Once(Tag)
    for raw, name in connection.execute("SELECT * FROM tag"):
        yield AddTag(uuids[raw], tag[name])
    volume = _Once(_volume)
    for raw, name, state in connection.execute("SELECT * FROM volume"):
        yield SetVolume(uuids[raw], volume[name, state])
    for raw, notes in connection.execute("SELECT * FROM notes"):
        yield SetNotes(uuids[raw], notes)
    for name, revisions_to_keep in connection.execute("SELECT * FROM pool"):
        yield SetPool(PoolName(name), revisions_to_keep)


class _Once(dict[_Kept, _Made]):
    """What was made of each kept value, made once."""

    def __init__(self, make: Callable[[_Kept], _Made]) -> None:
        self._make = make

    def __missing__(self, kept: _Kept) -> _Made:
        made = self[kept] = self._make(kept)
        return made


def _volume_text(volume: VolumeState) -> str:
    return _encode(
        _Volume(
            layers=tuple(map(str, volume.layers)),
            dirty=volume.dirty,
            revisions=tuple(
                _Revision(each.id, tuple(map(str, each.layers)), each.created)
                for each in volume.revisions
            ),
            snap_on_start=volume.snap_on_start,
            save_on_stop=volume.save_on_stop,
            rw=volume.rw,
            size=volume.size,
            revisions_to_keep=volume.revisions_to_keep,
            pool=str(volume.pool),
        )
    ).decode()


def _volume(row: tuple[str, str]) -> VolumeState:
    name, state = row
    kept = _decode_volume(state)
    return VolumeState(
        name=VolumeName(name),
        layers=kept.layers,
        dirty=kept.dirty,
        revisions=tuple(Revision(each.id, each.layers, each.created) for each in kept.revisions),
        snap_on_start=kept.snap_on_start,
        save_on_stop=kept.save_on_stop,
        rw=kept.rw,
        size=kept.size,
        revisions_to_keep=kept.revisions_to_keep,
        pool=PoolName(kept.pool),
    )
