"""What is: every qube, label and stored property, and all that follows from them.

`Facts` reads and applies; what may change is decided in `system`.
Look-ups cost the size of their answer, not of the system: 10,000 qubes are fine.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Any
from uuid import UUID

from caisson.errors import (
    CaissonError,
    InternalError,
    InvalidUUIDError,
    LabelNotFoundError,
    NoSuchPropertyError,
    QubeNotFoundError,
)
from caisson.model.addresses import ipv4_of, ipv4_of_disposable, ipv6_of, ipv6_of_disposable
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
    SetProperty,
    SetVolume,
)
from caisson.model.declarations import GLOBAL, PROPERTIES
from caisson.model.klass import Klass, PowerState
from caisson.model.labels import BUILT_IN, REFERENCE, Label
from caisson.model.property import (
    Host,
    Missing,
    Owner,
    Property,
    PropertyType,
    Value,
    render,
)
from caisson.model.qube import ADMIN_UUID, Qube
from caisson.names import DOM0, FeatureName, LabelName, PropertyName, QubeName, shown

DISPID_MAX = 9_999
UUID_PREFIX = "uuid:"
_NETVM = PropertyName("netvm")
_TEMPLATE = PropertyName("template")
_DISPID = PropertyName("dispid")
_ADDRESSES = frozenset({"ip", "ip6"})
_TOLD_PROPERTIES = frozenset(
    {"label", "template", "template_for_dispvms", "default_dispvm", "guivm"}
)
_ISOLATION = {
    "container": "container",
    "pvh": "virtual machine",
    "hvm": "virtual machine",
    "pv": "virtual machine",
}
# What a qube takes from its template, and the broker hears of.
_TOLD_INHERITED = frozenset({"template", "virt_mode", "default_user"})
_TOLD_FEATURES = frozenset({"internal", "servicevm"})

Reference = tuple[Owner, PropertyName]


def _not_running(_qube: Qube, _name: str) -> object | None:
    return None


class Facts:
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
        self._names: dict[QubeName, Qube] = {}
        self._uuids: dict[UUID, Qube] = {}
        self._qids: dict[int, Qube] = {}
        self._dispids: set[int] = set()
        self._addresses: set[str] = set()
        self._lowest = 1
        self._users: dict[QubeName, dict[tuple[UUID | None, PropertyName], None]] = defaultdict(
            dict
        )
        self.qubes: Mapping[QubeName, Qube] = MappingProxyType(self._names)
        self.by_uuid: Mapping[UUID, Qube] = MappingProxyType(self._uuids)
        self.labels: Mapping[LabelName, Label] = MappingProxyType(self._labels)
        self._add_qube(AddQube(ADMIN_UUID, DOM0, Klass.ADMIN, 0))
        self.dom0 = self._names[DOM0]

    # --- qubes ---------------------------------------------------------------------------

    def qube(self, untrusted_reference: str) -> Qube:
        """The qube with that name or `uuid:` reference.

        Raises:
            ValueRefusedError: it is no qube name.
            InvalidUUIDError: it is no canonical UUID.
            QubeNotFoundError: there is none.
        """
        if untrusted_reference.startswith(UUID_PREFIX):
            found = self._uuids.get(_canonical_uuid(untrusted_reference))
        else:
            found = self._names.get(QubeName.parse(untrusted_reference))
        if found is None:
            raise QubeNotFoundError(
                f"no qube `{shown(untrusted_reference)}`", hint="list the qubes with `qvm-ls`"
            )
        return found

    def template_of(self, qube: Qube) -> Qube | None:
        """The template of a qube; None where it has none."""
        return self._names.get(QubeName(qube.stored.get(_TEMPLATE, "")))

    def template_chain(self, qube: Qube) -> Iterator[Qube]:
        """The qube, its template, the template's template."""
        link: Qube | None = qube
        while link is not None:
            yield link
            link = self.template_of(link)

    def netvm_of(self, qube: Qube) -> Qube | None:
        """The network qube of a qube; None where it has no network."""
        if _NETVM not in PROPERTIES[qube.klass]:
            return None
        netvm = self.value(qube, _NETVM)
        return netvm if isinstance(netvm, Qube) else None

    def netvm_chain(self, qube: Qube) -> Iterator[Qube]:
        """The network qubes of a qube, nearest first, the qube itself not included."""
        link = self.netvm_of(qube)
        while link is not None:
            yield link
            link = self.netvm_of(link)

    def clients_of(self, netvm: Qube) -> tuple[Qube, ...]:
        """The qubes whose network qube it is, by choice or by default."""
        clients: list[Qube] = []
        for user, name in self.users_of(netvm):
            if user is not None and name == _NETVM:
                clients.append(user)
            elif user is None and name == "default_netvm":
                clients.extend(self.followers_of(name))
        return tuple(clients)

    def followers_of(self, name: str) -> tuple[Qube, ...]:
        """The qubes for which the default of a property is this global property."""
        return tuple(
            qube
            for qube in self._names.values()
            if any(each not in qube.stored for each in _FOLLOWING[qube.klass].get(name, ()))
        )

    def users_of(self, qube: Qube) -> tuple[Reference, ...]:
        """Where a property stores this qube: the qube with that property, None for global."""
        return tuple(
            (None if uuid is None else self._uuids[uuid], name)
            for uuid, name in self._users.get(qube.name, ())
        )

    # --- properties ----------------------------------------------------------------------

    def properties(self, owner: Owner) -> Mapping[PropertyName, Property]:
        """The declarations for a class of qubes, or of the system."""
        return GLOBAL if owner is None else PROPERTIES[owner.klass]

    def has(self, owner: Owner, name: str) -> bool:
        """Whether that class of qube has the property."""
        return name in self.properties(owner)

    def property(self, owner: Owner, untrusted_name: str) -> Property:
        """The declaration of one property.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name.
        """
        try:
            return self.properties(owner)[PropertyName(untrusted_name)]
        except KeyError:
            whose = "system" if owner is None else f"{owner.klass} `{owner.name}`"
            raise NoSuchPropertyError(
                f"{whose} has no property `{shown(untrusted_name)}`",
                hint="list them with `qubes-prefs`"
                if owner is None
                else f"list them with `qvm-prefs {owner.name}`",
            ) from None

    def stored(self, owner: Owner) -> Mapping[PropertyName, str]:
        """What is stored, as text."""
        return self._globals if owner is None else owner.stored

    def is_default(self, owner: Owner, name: str) -> bool:
        """Whether nothing is stored for the property."""
        declared = self.property(owner, name)
        return not declared.write_once and declared.name not in self.stored(owner)

    def value(self, owner: Owner, name: str) -> Value:
        """The value of a property, stored or by default; None where there is neither.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name.
        """
        declared = self.property(owner, name)
        if declared.attribute is not None and owner is not None:
            return declared.attribute(owner)
        text = self.stored(owner).get(declared.name)
        if text is not None:
            return self._decoded(declared, text)
        default = declared.default(self, owner)
        return None if isinstance(default, Missing) else default

    def default(self, owner: Owner, name: str) -> Value | Missing:
        """The default of a property, whatever is stored; `NO_DEFAULT` where there is none."""
        return self.property(owner, name).default(self, owner)

    def _decoded(self, declared: Property, text: str) -> Value:
        match declared.type:
            case PropertyType.BOOL:
                return text == "True"
            case PropertyType.INT:
                return int(text)
            case PropertyType.QUBE:
                return self._names.get(QubeName(text))
            case PropertyType.LABEL:
                return self._labels[LabelName(text)]
            case PropertyType.STR:
                return declared.decode(text)

    def runtime_value(self, qube: Qube, name: str) -> object | None:
        """What only the running system knows."""
        return self.runtime(qube, name)

    render = staticmethod(render)

    # --- features ------------------------------------------------------------------------

    def feature(self, chain: Iterable[Qube], name: str) -> str | None:
        """The value of a feature at the first qube that has it, be it empty; else None."""
        feature = FeatureName(name)
        return next((qube.features[feature] for qube in chain if feature in qube.features), None)

    # --- labels --------------------------------------------------------------------------

    def label(self, untrusted_reference: str) -> Label:
        """The label with that name, number, or `label-NUMBER`.

        Raises:
            LabelNotFoundError: there is none.
        """
        label = self._labels.get(LabelName(untrusted_reference))
        numbered = REFERENCE.fullmatch(untrusted_reference)
        if label is None and numbered:
            index = int(numbered[1])
            label = next((each for each in self._labels.values() if each.index == index), None)
        if label is None:
            raise LabelNotFoundError(
                f"no label `{shown(untrusted_reference)}`",
                hint="use one of: " + ", ".join(self._labels),
            )
        return label

    # --- what the broker is told ---------------------------------------------------------

    def info(self, power_state: Callable[[Qube], PowerState]) -> dict[str, dict[str, Any]]:
        """All qubes as `internal.GetSystemInfo` tells them under `domains`."""
        return {
            str(name): self.info_of(qube, power_state(qube)) for name, qube in self._names.items()
        }

    def info_of(self, qube: Qube, power_state: PowerState) -> dict[str, Any]:
        """One qube as `internal.GetSystemInfo` tells it (sheet `qrexec`, section 4.2)."""
        label = self.value(qube, "label") if self.has(qube, "label") else None
        return {
            "internal": qube.features.get(FeatureName("internal")),
            "tags": sorted(map(str, qube.tags)),
            "type": qube.klass.value,
            "template_for_dispvms": self._told(qube, "template_for_dispvms") == "True",
            "default_dispvm": self._told(qube, "default_dispvm"),
            "icon": self._told(qube, "icon"),
            "label": label.color if isinstance(label, Label) else None,
            "guivm": self._told(qube, "guivm"),
            "relayvm": self._told(qube, "relayvm"),
            "transport_rpc": self._told(qube, "transport_rpc"),
            "power_state": power_state.value,
            "uuid": str(qube.uuid),
            # Not upstream's: how the qube is walled off, for prompts; and who runs its services.
            "isolation": _ISOLATION.get(self._told(qube, "virt_mode") or ""),
            "default_user": self._told(qube, "default_user"),
        }

    def _told(self, qube: Qube, name: str) -> str | None:
        value = self.value(qube, name) if self.has(qube, name) else None
        return None if value is None else render(value)

    def affected_by(self, change: Change) -> set[QubeName]:
        """The qubes for which `info_of` tells something else once the change is applied.

        Ask before `apply`: a qube that the change removes is then still known.
        """
        names: set[QubeName] = set()
        for op in change.ops:
            match op:
                case AddQube():
                    names.add(op.name)
                case SetProperty(uuid=None) | ResetProperty(uuid=None):
                    if op.name in {"default_dispvm", "default_guivm"}:
                        names.update(qube.name for qube in self.followers_of(op.name))
                case SetProperty(uuid=UUID() as uuid) | ResetProperty(uuid=UUID() as uuid) if (
                    op.name in _TOLD_INHERITED
                ):
                    names.update(self._built_on(uuid))
                case SetProperty() | ResetProperty() if op.name not in _TOLD_PROPERTIES:
                    pass
                case SetFeature() | RemoveFeature() if op.name not in _TOLD_FEATURES:
                    pass
                case (
                    RemoveQube(uuid=UUID() as uuid)
                    | SetProperty(uuid=UUID() as uuid)
                    | ResetProperty(uuid=UUID() as uuid)
                    | SetFeature(uuid=uuid)
                    | RemoveFeature(uuid=uuid)
                    | AddTag(uuid=uuid)
                    | RemoveTag(uuid=uuid)
                ):
                    if uuid in self._uuids:
                        names.add(self._uuids[uuid].name)
                case _:
                    pass
        return names

    def _built_on(self, uuid: UUID) -> set[QubeName]:
        """The qube, and all that have it in their chain of templates."""
        return {
            name
            for name, qube in self._names.items()
            if any(each.uuid == uuid for each in self.template_chain(qube))
        }

    # --- applying ------------------------------------------------------------------------

    def apply(self, change: Change) -> None:
        """Make a plan real in memory. It was checked when it was drawn up: it cannot fail."""
        for op in change.ops:
            self.apply_op(op)

    def load(self, ops: Iterable[Op]) -> None:
        """Take over what a store holds."""
        for op in ops:
            self.apply_op(op)

    def apply_op(self, op: Op) -> None:  # noqa: C901 - one case an operation
        """Apply one operation.

        Raises:
            InternalError: it contradicts what is known, so no plan of ours made it.
        """
        match op:
            case AddQube():
                self._add_qube(op)
            case RemoveQube():
                self._remove_qube(self._known(op.uuid))
            case SetProperty():
                self._store(op.uuid, op.name, op.text)
            case ResetProperty():
                self._unstore(op.uuid, op.name)
            case SetFeature():
                self._known(op.uuid).features[op.name] = op.value
            case RemoveFeature():
                self._known(op.uuid).features.pop(op.name, None)
            case AddTag():
                self._known(op.uuid).tags.add(op.tag)
            case RemoveTag():
                self._known(op.uuid).tags.discard(op.tag)
            case AddLabel():
                self._labels[op.name] = Label(op.name, op.index, op.color)
            case RemoveLabel():
                self._labels.pop(op.name, None)
            case SetVolume():
                self._known(op.uuid).volumes[op.volume.name] = op.volume
            case RemoveVolume():
                self._known(op.uuid).volumes.pop(op.name, None)

    def _known(self, uuid: UUID) -> Qube:
        qube = self._uuids.get(uuid)
        if qube is None:
            raise InternalError(f"an operation on qube `{uuid}`, which does not exist")
        return qube

    def _add_qube(self, op: AddQube) -> None:
        if op.uuid in self._uuids or op.name in self._names or op.qid in self._qids:
            raise InternalError(f"qube `{op.name}` is added a second time")
        qube = Qube(op.uuid, op.name, Klass(op.klass), op.qid)
        self._names[qube.name] = self._uuids[qube.uuid] = self._qids[qube.qid] = qube

    def _remove_qube(self, qube: Qube) -> None:
        for name in tuple(qube.stored):
            self._unstore(qube.uuid, name)
        self._users.pop(qube.name, None)
        del self._names[qube.name], self._uuids[qube.uuid], self._qids[qube.qid]
        self._lowest = min(self._lowest, max(qube.qid, 1))

    def _store(self, uuid: UUID | None, name: PropertyName, text: str) -> None:
        owner = None if uuid is None else self._known(uuid)
        self._unstore(uuid, name)
        stored = self._globals if owner is None else owner.stored
        stored[name] = text
        if self._refers(owner, name):
            self._users[QubeName(text)][uuid, name] = None
        elif name == _DISPID:
            self._dispids.add(int(text))
        elif name in _ADDRESSES:
            self._addresses.add(text)

    def _unstore(self, uuid: UUID | None, name: PropertyName) -> None:
        owner = None if uuid is None else self._known(uuid)
        text = (self._globals if owner is None else owner.stored).pop(name, None)
        if text is None:
            return
        if self._refers(owner, name):
            users = self._users[QubeName(text)]
            users.pop((uuid, name), None)
            if not users:
                del self._users[QubeName(text)]
        elif name == _DISPID:
            self._dispids.discard(int(text))
        elif name in _ADDRESSES:
            self._addresses.discard(text)

    def _refers(self, owner: Owner, name: PropertyName) -> bool:
        declared = self.properties(owner).get(name)
        return declared is not None and declared.type is PropertyType.QUBE

    # --- numbers -------------------------------------------------------------------------

    def _free_qid(self) -> int:
        """The lowest number that no qube has and whose addresses nobody was given."""
        while self._lowest in self._qids:
            self._lowest += 1
        qid = self._lowest
        while qid in self._qids or self._are_given(ipv4_of(qid), ipv6_of(qid)):
            qid += 1
        return qid

    def _free_dispid(self, rng: random.Random) -> int:
        """A number that is free, and its name and addresses with it.

        Not 0: that would give the address of the whole network.
        """
        start = rng.randrange(DISPID_MAX)
        for step in range(DISPID_MAX):
            dispid = (start + step) % DISPID_MAX + 1
            if not (
                dispid in self._dispids
                or QubeName(f"disp{dispid}") in self._names
                or self._are_given(ipv4_of_disposable(dispid), ipv6_of_disposable(dispid))
            ):
                return dispid
        raise CaissonError(
            f"there are {DISPID_MAX} disposables, no number is left",
            hint="shut some of them down first",
        )

    def _are_given(self, *addresses: IPv4Address | IPv6Address) -> bool:
        return not self._addresses.isdisjoint(map(str, addresses))


def _canonical_uuid(untrusted_reference: str) -> UUID:
    untrusted_text = untrusted_reference.removeprefix(UUID_PREFIX)
    try:
        uuid = UUID(untrusted_text)
    except ValueError:
        uuid = None
    if uuid is None or str(uuid) != untrusted_text:
        raise InvalidUUIDError(
            f"`{shown(untrusted_reference)}` is no reference to a qube",
            hint="use `uuid:` and 36 characters in lower case",
        )
    return uuid


def _following(klass: Klass) -> Mapping[str, tuple[PropertyName, ...]]:
    table: dict[str, tuple[PropertyName, ...]] = {}
    for each in PROPERTIES[klass].values():
        if each.follows is not None:
            table[each.follows] = (*table.get(each.follows, ()), each.name)
    return table


_FOLLOWING = {klass: _following(klass) for klass in Klass}
"""Per class: global property → the properties whose default it is."""
