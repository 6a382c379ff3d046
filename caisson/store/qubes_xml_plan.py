"""From what a `qubes.xml` says to operations of the model: every value passes the model's checks.

Identities come first (uuid, qid, name are kept), then values, then references, then what is
global: so that a reference finds its target, and a loop of network qubes is seen whole. Tags and
features are those of the file and no others.

What cannot be taken over is left out and told. A reference to a qube that is left out becomes
empty, never the default: a qube whose network is left out is offline, not on the default network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from caisson.errors import (
    CaissonError,
    InternalError,
    PermissionDeniedError,
    ValueRefusedError,
)
from caisson.model import (
    AddLabel,
    AddQube,
    Change,
    Host,
    Klass,
    Op,
    Property,
    PropertyType,
    Qube,
    SetProperty,
    SetVolume,
    System,
    VolumeState,
    parsing,
    render,
)
from caisson.model.declarations import PROPERTIES
from caisson.model.labels import BUILT_IN, REFERENCE
from caisson.model.life_plans import QID_MAX
from caisson.model.numbers import DISPID_MAX
from caisson.model.volumes import HOST, INITIAL_VOLUMES, KERNEL, LAYERS, fitting, placed, sized
from caisson.names import DOM0, PoolName, PropertyName, QubeName, shown
from caisson.store.qubes_xml import (
    POOLS,
    Description,
    Domain,
    Entry,
    LabelEntry,
    QubesXmlError,
    VolumeEntry,
)
from caisson.store.qubes_xml_write import SETTINGS

_CLASSES = {klass.value: klass for klass in Klass}
_DRIVERS = {name: {about["driver"]} for name, about in POOLS.items()}
_DRIVERS[LAYERS].add("file")
_BY_CLASS = ("snap_on_start", "save_on_stop")
_SAYS_NOTHING = frozenset({"", "False", "None"})
_LARGEST_NUMBER = (1 << 63) - 1


class Kind(StrEnum):
    """What is left out."""

    CLASS = "class"
    CONTENT = "content"
    DEVICE = "device"
    FEATURE = "feature"
    KERNEL = "kernel"
    LABEL = "label"
    POOL = "pool"
    PROPERTY = "property"
    REFERENCE = "reference"
    UNKNOWN = "unknown"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One thing that cannot be taken over.

    Args:
        kind: what kind of thing.
        what: the thing and its place, for a person; what the file says is made harmless.
        line: its line in the file.
    """

    kind: Kind
    what: str
    line: int

    def __str__(self) -> str:
        return f"{self.what} (line {self.line})"


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a description.

    Args:
        ops: what a model and a store without any qube have to apply, in order.
        left_out: what is not among it.
        system: what it makes.
    """

    ops: tuple[Op, ...]
    left_out: tuple[LeftOut, ...]
    system: System

    @property
    def change(self) -> Change:
        """The operations as one change."""
        return Change(ops=self.ops)


def plan(untrusted: Description, has_kernel: Callable[[str], bool]) -> Plan:
    """Plan to make a system without qubes the described one.

    Args:
        untrusted: what a file says.
        has_kernel: tells whether the machine has a kernel of that version.

    Raises:
        QubesXmlError: a value that the model refuses; the message names qube, value and line.
    """
    planner = _Planner(untrusted, has_kernel)
    planner.run()
    left_out = sorted(planner.left_out, key=lambda each: each.line)
    return Plan(tuple(planner.ops), tuple(left_out), planner.system)


@dataclass(frozen=True, slots=True)
class _Wish:
    """A property to set."""

    qube: Qube | None
    declared: Property
    entry: Entry

    @property
    def what(self) -> str:
        """For a person."""
        whose = "the system" if self.qube is None else f"qube `{self.qube.name}`"
        return f"property `{self.declared.name}` of {whose}"

    @property
    def turn(self) -> tuple[bool, bool, bool, bool]:
        """What is given at creation, values, what must be there, references; then the system's."""
        declared = self.declared
        refers = declared.type is PropertyType.QUBE
        return self.qube is None, refers, not declared.write_once, not declared.required


class _Planner:
    def __init__(self, untrusted: Description, has_kernel: Callable[[str], bool]) -> None:
        self.system = System(Host(has_kernel=has_kernel))
        self.ops: list[Op] = []
        self.left_out: list[LeftOut] = []
        self._untrusted = untrusted
        self._has_kernel = has_kernel
        self._labels: dict[str, str] = {}
        self._pools: set[PoolName] = set()
        self._absent: set[str] = set()
        self._admin: set[str] = set()
        self._qids: dict[int, QubeName] = {}
        self._dispids: set[int] = set()

    def run(self) -> None:
        """Plan everything."""
        for unknown in self._untrusted.unknown:
            self._leave(Kind.UNKNOWN, unknown.what, unknown.line)
        self._plan_labels()
        self._plan_pools()
        domains = self._kept_domains()
        owners = [(self._owner(domain), domain) for domain in domains]
        wishes = list(self._wishes(None, self._untrusted.properties, 0))
        for qube, domain in owners:
            wishes += self._wishes(qube, domain.properties, domain.line)
        for wish in sorted(wishes, key=lambda wish: wish.turn):
            self._set(wish)
        for qube, domain in owners:
            self._mark(qube, domain)
        for qube, domain in sorted(owners, key=lambda pair: _depth(self.system, pair[0])):
            self._plan_volumes(qube, domain)

    # --- the system ----------------------------------------------------------------------

    def _plan_labels(self) -> None:
        for entry in self._untrusted.labels:
            what = f"label `{shown(entry.name)}`"
            with _about(what, entry.line):
                number = REFERENCE.fullmatch(entry.id)
                if not number or not entry.id.startswith("label-"):
                    raise ValueRefusedError(f"`{shown(entry.id)}` is no id", "use `label-NUMBER`")
                if entry.id in self._labels:
                    raise ValueRefusedError(f"`{entry.id}` is the id of another label")
                self._labels[entry.id] = entry.name
                built_in = next((each for each in BUILT_IN if each.name == entry.name), None)
                if built_in is None:
                    self._add_label(entry, int(number[1]))
                elif (built_in.index, built_in.color) != (int(number[1]), entry.color.lower()):
                    self._leave(Kind.LABEL, f"number and colour of the built-in {what}", entry.line)

    def _add_label(self, entry: LabelEntry, index: int) -> None:
        taken = next((each for each in self.system.labels.values() if each.index == index), None)
        if taken is not None:
            raise ValueRefusedError(f"number {index} is that of label `{taken.name}`")
        for op in self.system.plan_create_label(entry.name, entry.color).ops:
            self._do(AddLabel(op.name, index, op.color) if isinstance(op, AddLabel) else op)

    def _plan_pools(self) -> None:
        for entry in self._untrusted.pools:
            name, driver = PoolName(entry.name), entry.attributes.get("driver", "")
            what = f"pool `{shown(name)}` with driver `{shown(driver)}`"
            if driver not in _DRIVERS.get(name, ()):
                self._leave(Kind.POOL, what, entry.line)
                continue
            self._pools.add(name)
            if text := entry.attributes.get("revisions_to_keep", ""):
                with _about(what, entry.line):
                    number = parsing.number(text)
                    for op in self.system.plan_pool_revisions(self.system.pools[name], number).ops:
                        self._do(op)

    # --- qubes ---------------------------------------------------------------------------

    def _kept_domains(self) -> list[Domain]:
        """Those whose class is known, and whose template is kept."""
        kept = []
        for domain in self._untrusted.domains:
            if domain.klass in _CLASSES:
                kept.append(domain)
            else:
                self._leave_domain(domain, f"class `{shown(domain.klass)}` is not known")
        while True:
            lost = [(each, reason) for each in kept if (reason := self._orphaned(each))]
            if not lost:
                return kept
            for domain, reason in lost:
                self._leave_domain(domain, reason)
                kept.remove(domain)

    def _orphaned(self, domain: Domain) -> str:
        declared = PROPERTIES[_CLASSES[domain.klass]]
        for entry in domain.properties:
            wanted = declared.get(PropertyName(entry.name))
            needed = wanted and wanted.required and wanted.type is PropertyType.QUBE
            if needed and entry.value in self._absent:
                return f"its `{entry.name}` `{shown(entry.value)}` is left out"
        return ""

    def _leave_domain(self, domain: Domain, reason: str) -> None:
        name = _value_of(domain, "name")
        self._absent.add(name)
        self._leave(Kind.CLASS, f"qube `{shown(name)}`: {reason}", domain.line)

    def _owner(self, domain: Domain) -> Qube:
        klass = _CLASSES[domain.klass]
        if klass is Klass.ADMIN:
            _once(DOM0, self._admin, "the admin qube", domain.line)
            return self.system.dom0
        untrusted_name = _value_of(domain, "name")
        with _about(f"qube `{shown(untrusted_name)}`", domain.line):
            name = QubeName.parse(untrusted_name)
            if name in self.system.qubes:
                raise ValueRefusedError("there is another qube of that name")
            uuid = _uuid(_value_of(domain, "uuid"))
            if uuid in self.system.by_uuid:
                raise ValueRefusedError(f"uuid `{uuid}` is that of another qube")
            qid = _number(_value_of(domain, "qid"), "qid", 1, QID_MAX)
            other = self._qids.setdefault(qid, name)
            if other != name:
                raise ValueRefusedError(f"qid {qid} is that of qube `{other}`")
            self._do(AddQube(uuid, name, klass.value, qid))
            return self.system.qubes[name]

    def _wishes(self, qube: Qube | None, entries: Iterable[Entry], line: int) -> Iterator[_Wish]:
        whose = "the system" if qube is None else f"qube `{qube.name}`"
        seen: set[str] = set()
        for entry in entries:
            what = f"property `{shown(entry.name)}` of {whose}"
            _once(entry.name, seen, what, entry.line)
            if not self.system.has(qube, entry.name):
                self._leave(Kind.PROPERTY, f"{what}: there is none of that name", entry.line)
                continue
            declared = self.system.property(qube, entry.name)
            if declared.read_only:
                if render(self.system.value(qube, declared.name)) != entry.value:
                    self._leave(Kind.PROPERTY, f"{what}: it is computed", entry.line)
            elif not (declared.write_once and declared.attribute):
                yield _Wish(qube, declared, entry)
        for declared in self.system.properties(qube).values():
            if declared.required and declared.name not in seen:
                raise QubesXmlError(f"{whose} has no property `{declared.name}`", line=line)

    def _set(self, wish: _Wish) -> None:
        text = self._text(wish)
        if text is None:
            return
        uuid = None if wish.qube is None else wish.qube.uuid
        name = wish.declared.name
        with _about(wish.what, wish.entry.line):
            if wish.declared.write_once:
                self._do(SetProperty(uuid, name, str(self._dispid(text))))
                return
            try:
                change = self.system.plan_set(wish.qube, name, text, lambda _: False)
            except ValueRefusedError:
                # An empty value says "none", which many a default says, too.
                if text or wish.declared.default(self.system, wish.qube) is not None:
                    raise
                return
            for op in change.ops:
                # What else follows from a value (tags, features) the file says itself.
                if isinstance(op, SetProperty) and (op.uuid, op.name) == (uuid, name):
                    self._do(op)

    def _text(self, wish: _Wish) -> str | None:
        """The text to set; None for what is left out."""
        text, declared = wish.entry.value, wish.declared
        if declared.type is PropertyType.LABEL:
            return self._labels.get(text, text)
        if declared.type is PropertyType.QUBE and text in self._absent:
            gone = f"{wish.what}: qube `{shown(text)}` is left out, it is empty now"
            self._leave(Kind.REFERENCE, gone, wish.entry.line)
            return ""
        if declared.normalise is parsing.kernel and text and not self._is_there(wish, text):
            gone = f"{wish.what}: this machine has no kernel `{shown(text)}`"
            self._leave(Kind.KERNEL, gone, wish.entry.line)
            return None
        # Nothing but the name tells that a property names a pool.
        if declared.name.startswith("default_pool") and text not in self._pools:
            gone = f"{wish.what}: there is no pool `{shown(text)}`"
            self._leave(Kind.POOL, gone, wish.entry.line)
            return None
        return text

    def _is_there(self, wish: _Wish, untrusted_version: str) -> bool:
        with _about(wish.what, wish.entry.line):
            return self._has_kernel(parsing.kernel(untrusted_version))

    def _dispid(self, text: str) -> int:
        dispid = _number(text, "dispid", 1, DISPID_MAX)
        if dispid in self._dispids:
            raise ValueRefusedError(f"number {dispid} is that of another disposable")
        self._dispids.add(dispid)
        return dispid

    def _mark(self, qube: Qube, domain: Domain) -> None:
        """Features, tags, notes; and what has no place in the model."""
        for lost in domain.devices:
            self._leave(Kind.DEVICE, f"{lost.what} of qube `{qube.name}`", lost.line)
        for lost in domain.unknown:
            self._leave(Kind.UNKNOWN, f"{lost.what} of qube `{qube.name}`", lost.line)
        seen: set[str] = set()
        for entry in domain.features:
            what = f"feature `{shown(entry.name)}` of qube `{qube.name}`"
            _once(entry.name, seen, what, entry.line)
            with _about(what, entry.line):
                try:
                    change = self.system.plan_feature(qube, entry.name, entry.value)
                except PermissionDeniedError:
                    gone = f"{what}: the system keeps it for itself"
                    self._leave(Kind.FEATURE, gone, entry.line)
                    continue
                for op in change.ops:
                    self._do(op)
        if domain.notes:
            with _about(f"notes of qube `{qube.name}`", domain.line):
                for op in self.system.plan_notes(qube, domain.notes.encode()).ops:
                    self._do(op)
        for entry in domain.tags:
            with _about(f"tag `{shown(entry.name)}` of qube `{qube.name}`", entry.line):
                for op in self.system.plan_tag(qube, entry.name, DOM0).ops:
                    self._do(op)

    # --- volumes -------------------------------------------------------------------------

    def _plan_volumes(self, qube: Qube, domain: Domain) -> None:
        initial = {str(volume.name): volume for volume in INITIAL_VOLUMES[qube.klass]}
        entries: dict[str, VolumeEntry] = {}
        for entry in domain.volumes:
            what = f"volume `{shown(entry.name)}` of qube `{qube.name}`"
            _once(entry.name, entries, what, entry.line)
            if entry.name in initial:
                entries[entry.name] = entry
            else:
                self._leave(Kind.VOLUME, f"{what}: its class has none of that name", entry.line)
        template = self.system.template_of(qube)
        for name, volume in initial.items():
            source = template.volumes.get(volume.name) if template else None
            state = sized(volume, source)
            if name in entries:
                what = f"volume `{name}` of qube `{qube.name}`"
                with _about(what, entries[name].line):
                    state = self._settled(what, state, entries[name])
            self._do(SetVolume(qube.uuid, state))

    def _settled(self, what: str, state: VolumeState, entry: VolumeEntry) -> VolumeState:
        """A volume as it is described; where it is, and what is in it, are our own affair."""
        about = dict(entry.attributes)
        pool, vid, _ = (about.pop(key, "") for key in ("pool", "vid", "source"))
        ours = pool in self._pools and pool in fitting(state.name) and not state.snap_on_start
        state = placed(state, PoolName(pool) if ours else state.pool, self.system.pools)
        settings = {key: about.pop(key) for key in SETTINGS if key in about}
        for key, value in about.items():
            if value not in _SAYS_NOTHING:
                self._leave(Kind.VOLUME, f"`{shown(key)}` of {what}", entry.line)
        if state.name == KERNEL:
            return state
        if state.save_on_stop and vid and state.pool != HOST:
            place = f"volume `{shown(vid)}` in pool `{shown(pool)}`"
            self._leave(Kind.CONTENT, f"content of {what}, which is {place}", entry.line)
        wished: dict[str, Any] = {
            key: parsing.boolean(value)
            if isinstance(getattr(state, key), bool)
            else _number(value, key, 0 if key == "size" else -1, _LARGEST_NUMBER)
            for key, value in settings.items()
        }
        for key in _BY_CLASS:
            if wished.pop(key, getattr(state, key)) != getattr(state, key):
                self._leave(Kind.VOLUME, f"`{key}` of {what}: its class settles it", entry.line)
        return replace(state, **wished)

    def _do(self, op: Op) -> None:
        self.system.apply_op(op)
        self.ops.append(op)

    def _leave(self, kind: Kind, what: str, line: int) -> None:
        self.left_out.append(LeftOut(kind, what, line))


@contextmanager
def _about(what: str, line: int) -> Iterator[None]:
    """Say in an error what it is about."""
    try:
        yield
    except InternalError:
        raise
    except CaissonError as error:
        raise QubesXmlError(f"{what}: {error.message}", error.hint, line=line) from error


def _once(name: str, seen: set[str] | dict[str, VolumeEntry], what: str, line: int) -> None:
    if name in seen:
        raise QubesXmlError(f"{what} is there twice", line=line)
    if isinstance(seen, set):
        seen.add(name)


def _value_of(domain: Domain, name: str) -> str:
    return next((entry.value for entry in domain.properties if entry.name == name), "")


def _depth(system: System, qube: Qube) -> int:
    """How many templates a qube is built on."""
    return sum(1 for _ in system.template_chain(qube))


def _uuid(untrusted_text: str) -> UUID:
    try:
        uuid = UUID(untrusted_text)
    except ValueError:
        uuid = None
    if uuid is None or str(uuid) != untrusted_text.lower():
        raise ValueRefusedError(f"`{shown(untrusted_text)}` is no uuid", "give it as 36 characters")
    return uuid


def _number(untrusted_text: str, what: str, low: int, high: int) -> int:
    number = parsing.number(untrusted_text)
    if not low <= number <= high:
        raise ValueRefusedError(f"{what} `{number}` is out of range", f"use {low} to {high}")
    return number
