"""The model in memory: every qube, label and stored property, and the indexes kept with them.

`Records` applies operations; it checks nothing, since a plan was checked when it was drawn up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar
from uuid import UUID

from caisson.errors import InternalError
from caisson.model.changes import (
    AddLabel,
    AddQube,
    AddTag,
    Change,
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
from caisson.model.declarations import GLOBAL, PROPERTIES
from caisson.model.klass import Klass
from caisson.model.labels import BUILT_IN, Label
from caisson.model.property import Host, Owner, PropertyType
from caisson.model.qube import ADMIN_UUID, Qube
from caisson.model.volumes import BUILT_IN_POOLS, PoolState
from caisson.names import DOM0, LabelName, PoolName, PropertyName, QubeName, Tag

_DISPID = PropertyName("dispid")
_ADDRESSES = frozenset({"ip", "ip6"})


def _not_running(_qube: Qube, _name: str) -> object | None:
    return None


class Records:
    """The model in memory.

    Args:
        host: the machine, as far as defaults depend on it.
        runtime: answers for `xid`, `start_time`, … of a qube that runs; None where unknown.
    """

    def __init__(
        self,
        host: Host | None = None,
        runtime: Callable[[Qube, str], object | None] = _not_running,
    ) -> None:
        self.host = host or Host()
        self.runtime = runtime
        self._globals: dict[PropertyName, str] = {}
        self._labels = {label.name: label for label in BUILT_IN}
        self._pools = {pool.name: pool for pool in BUILT_IN_POOLS}
        self._names: dict[QubeName, Qube] = {}
        self._uuids: dict[UUID, Qube] = {}
        self._qids: dict[int, Qube] = {}
        self._dispids: dict[int, Qube] = {}
        self._addresses: dict[str, dict[Qube, None]] = {}
        self._lowest = 1
        self.applied = 0
        """How many operations so far: who looks twice can tell whether anything changed."""
        self._tagged: dict[Tag, dict[Qube, None]] = {}
        self._followers: dict[PropertyName, dict[Qube, None]] = defaultdict(dict)
        self._users: dict[QubeName, dict[tuple[Owner, PropertyName], None]] = defaultdict(dict)
        self.qubes: Mapping[QubeName, Qube] = MappingProxyType(self._names)
        self.by_uuid: Mapping[UUID, Qube] = MappingProxyType(self._uuids)
        self.labels: Mapping[LabelName, Label] = MappingProxyType(self._labels)
        self.pools: Mapping[PoolName, PoolState] = MappingProxyType(self._pools)
        self._add_qube(AddQube(ADMIN_UUID, DOM0, Klass.ADMIN, 0))
        self.dom0 = self._names[DOM0]

    def apply(self, change: Change) -> None:
        """Make a plan real in memory. It was checked when it was drawn up: it cannot fail."""
        for op in change.ops:
            self.apply_op(op)

    def load(self, ops: Iterable[Op]) -> None:
        """Take over what a store holds."""
        for op in ops:
            self.apply_op(op)

    def apply_op(self, op: Op) -> None:  # noqa: C901, PLR0912 - one case an operation
        """Apply one operation.

        Raises:
            InternalError: it contradicts what is known, so no plan of ours made it.
        """
        self.applied += 1
        match op:
            case AddTag():
                qube = self._known(op.uuid)
                qube.tags.add(op.tag)
                _enter(self._tagged, op.tag, qube)
            case SetProperty():
                self._store(self._owner(op.uuid), op.name, op.text)
            case SetFeature():
                self._known(op.uuid).features[op.name] = op.value
            case SetVolume():
                self._known(op.uuid).volumes[op.volume.name] = op.volume
            case AddQube():
                self._add_qube(op)
            case RemoveQube():
                self._remove_qube(self._known(op.uuid))
            case ResetProperty():
                self._unstore(self._owner(op.uuid), op.name)
            case RemoveFeature():
                self._known(op.uuid).features.pop(op.name, None)
            case RemoveTag():
                qube = self._known(op.uuid)
                qube.tags.discard(op.tag)
                _strike(self._tagged, op.tag, qube)
            case AddLabel():
                self._labels[op.name] = Label(op.name, op.index, op.color)
            case RemoveLabel():
                self._labels.pop(op.name, None)
            case RemoveVolume():
                self._known(op.uuid).volumes.pop(op.name, None)
            case SetNotes():
                self._known(op.uuid).notes = op.text
            case SetPool():
                self._set_pool(op)

    def _known(self, uuid: UUID) -> Qube:
        qube = self._uuids.get(uuid)
        if qube is None:
            raise InternalError(f"an operation on qube `{uuid}`, which does not exist")
        return qube

    def _owner(self, uuid: UUID | None) -> Owner:
        return None if uuid is None else self._known(uuid)

    def _set_pool(self, op: SetPool) -> None:
        if op.name not in self._pools:
            raise InternalError(f"an operation on pool `{op.name}`, which does not exist")
        changed = replace(self._pools[op.name], revisions_to_keep=op.revisions_to_keep)
        self._pools[op.name] = changed

    def _add_qube(self, op: AddQube) -> None:
        if op.uuid in self._uuids or op.name in self._names or op.qid in self._qids:
            raise InternalError(f"qube `{op.name}` is added a second time")
        qube = Qube(op.uuid, op.name, Klass(op.klass), op.qid)
        self._names[qube.name] = self._uuids[qube.uuid] = self._qids[qube.qid] = qube
        for followed in FOLLOWED[qube.klass].values():
            self._followers[followed][qube] = None

    def _remove_qube(self, qube: Qube) -> None:
        for name in tuple(qube.stored):
            self._unstore(qube, name)
        for followed in FOLLOWED[qube.klass].values():
            del self._followers[followed][qube]
        for tag in qube.tags:
            _strike(self._tagged, tag, qube)
        self._users.pop(qube.name, None)
        del self._names[qube.name], self._uuids[qube.uuid], self._qids[qube.qid]
        self._lowest = min(self._lowest, max(qube.qid, 1))

    def _store(self, owner: Owner, name: PropertyName, text: str) -> None:
        self._unstore(owner, name)
        stored = self._globals if owner is None else owner.stored
        stored[name] = text
        if self._refers(owner, name):
            self._users[QubeName(text)][owner, name] = None
        if owner is None:
            return
        if name in FOLLOWED[owner.klass]:
            self._followers[FOLLOWED[owner.klass][name]].pop(owner, None)
        elif name == _DISPID:
            self._dispids[int(text)] = owner
        elif name in _ADDRESSES:
            _enter(self._addresses, text, owner)

    def _unstore(self, owner: Owner, name: PropertyName) -> None:
        text = (self._globals if owner is None else owner.stored).pop(name, None)
        if text is None:
            return
        if self._refers(owner, name):
            users = self._users[QubeName(text)]
            users.pop((owner, name), None)
            if not users:
                del self._users[QubeName(text)]
        if owner is None:
            return
        if name in FOLLOWED[owner.klass]:
            self._followers[FOLLOWED[owner.klass][name]][owner] = None
        elif name == _DISPID:
            self._dispids.pop(int(text), None)
        elif name in _ADDRESSES:
            _strike(self._addresses, text, owner)

    def _refers(self, owner: Owner, name: PropertyName) -> bool:
        declared = (GLOBAL if owner is None else PROPERTIES[owner.klass]).get(name)
        return declared is not None and declared.type is PropertyType.QUBE


Key = TypeVar("Key")


def _enter(index: dict[Key, dict[Qube, None]], key: Key, qube: Qube) -> None:
    index.setdefault(key, {})[qube] = None


def _strike(index: dict[Key, dict[Qube, None]], key: Key, qube: Qube) -> None:
    entry = index.get(key, {})
    entry.pop(qube, None)
    if not entry:
        index.pop(key, None)


FOLLOWED: Mapping[Klass, Mapping[PropertyName, PropertyName]] = {
    klass: {each.name: each.follows for each in table.values() if each.follows is not None}
    for klass, table in PROPERTIES.items()
}
"""Per class: a property → the global property that is its default."""
