"""What may become: every change is planned here, with every check, before anything happens.

Sheet `admin-api`, sections 2.2 to 2.4 (order of checks, errors), 3.2 and 3.3 (events), 6 (names).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from uuid import UUID

from caisson.errors import (
    CaissonError,
    FeatureNotFoundError,
    InvalidLabelError,
    InvalidTagError,
    LabelInUseError,
    LabelNotFoundError,
    LabelValueError,
    NoSuchPropertyError,
    NotHaltedError,
    NotImplementedHereError,
    PropertyValueError,
    ProtocolError,
    QubeExistsError,
    QubeInUseError,
    QubeNotFoundError,
    TagNotFoundError,
    ValueRefusedError,
)
from caisson.model import checks, features, parsing, tags
from caisson.model.changes import (
    AddLabel,
    AddQube,
    AddTag,
    Change,
    Event,
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
from caisson.model.declarations import PROPERTIES
from caisson.model.facts import Facts
from caisson.model.klass import Klass
from caisson.model.labels import BUILT_IN, Label
from caisson.model.property import Missing, Owner, Property, PropertyType, Running, Value, told
from caisson.model.property import render as rendered
from caisson.model.qube import Qube
from caisson.model.volumes import (
    HOST,
    INITIAL_VOLUMES,
    KERNEL,
    KERNELS,
    LAYERS,
    POOLS,
    ROOT,
    VolumeState,
)
from caisson.names import (
    FeatureName,
    LabelName,
    PoolName,
    PropertyName,
    QubeName,
    Tag,
    VolumeName,
    shown,
)

QID_MAX = 10_000
_COLOR = re.compile(r"0x[0-9a-fA-F]{6}")
_LABEL_REFERENCE = re.compile(r"(?:label-)?([0-9]{1,9})")
_NO_POOLS: Mapping[VolumeName, PoolName] = MappingProxyType({})
_TEMPLATED = frozenset({Klass.APP, Klass.DISPOSABLE})
_CREATED = _TEMPLATED | {Klass.TEMPLATE, Klass.STANDALONE}
_DEFAULT_TEMPLATE = {Klass.APP: "default_template", Klass.DISPOSABLE: "default_dispvm"}

_FOLLOWED_BY: Mapping[str, tuple[str, ...]] = {
    "label": ("icon",),
    "template_for_dispvms": ("icon",),
    "provides_network": ("gateway", "gateway6"),
    "ip": ("visible_ip", "gateway"),
    "ip6": ("visible_ip6", "gateway6"),
    "netvm": (
        "visible_ip",
        "visible_gateway",
        "visible_netmask",
        "visible_ip6",
        "visible_gateway6",
    ),
}
"""Computed properties that change with another one of the same qube."""

_TAGGED = {"guivm": "guivm-", "audiovm": "audiovm-"}


class System(Facts):
    """The model: what is, and what may become of it."""

    # --- properties ----------------------------------------------------------------------

    def plan_set(self, owner: Owner, name: str, untrusted_value: str, running: Running) -> Change:
        """Plan to store a property.

        Args:
            owner: the qube; None for a global property.
            name: the property.
            untrusted_value: its text as on the wire.
            running: tells whether a qube runs.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name, or it is set once.
            ValueRefusedError: the value does not fit the type.
            PropertyValueError: it does not fit the property, or the property is computed.
            CaissonError: the rest of the system forbids it.
        """
        declared = self._changeable(owner, name)
        value = self._parsed(declared, untrusted_value)
        if declared.read_only:
            raise PropertyValueError(
                f"property `{declared.name}` is computed", hint="change what it follows from"
            )
        if declared.check is not None:
            declared.check(self, owner, value, running)
        kwargs = {"name": str(declared.name), "newvalue": told(value)} | self._old(owner, declared)
        set_it = Change(
            ops=(SetProperty(_uuid(owner), declared.name, rendered(value)),),
            before=(_event(owner, f"property-pre-set:{declared.name}", kwargs),),
            events=(_event(owner, f"property-set:{declared.name}", kwargs),),
        )
        return set_it + self._consequences(owner, declared, value)

    def plan_reset(self, owner: Owner, name: str, running: Running) -> Change:
        """Plan to let a property have its default; the default must pass the same checks.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name, or it is set once.
            ValueRefusedError: it has to be stored.
            CaissonError: the rest of the system forbids the default.
        """
        declared = self._changeable(owner, name)
        if declared.required:
            raise ValueRefusedError(
                f"property `{declared.name}` has no default", hint="set it to another value"
            )
        if declared.read_only or self.is_default(owner, declared.name):
            return Change()
        default = declared.default(self, owner)
        value = None if isinstance(default, Missing) else default
        if declared.check is not None:
            declared.check(self, owner, value, running)
        kwargs = {"name": str(declared.name)} | self._old(owner, declared)
        reset_it = Change(
            ops=(ResetProperty(_uuid(owner), declared.name),),
            before=tuple(
                _event(owner, f"property-{step}:{declared.name}", kwargs)
                for step in ("pre-reset", "pre-del")
            ),
            events=tuple(
                _event(owner, f"property-{step}:{declared.name}", kwargs)
                for step in ("reset", "del")
            ),
        )
        return reset_it + self._consequences(owner, declared, value)

    def _changeable(self, owner: Owner, name: str) -> Property:
        declared = self.property(owner, name)
        if declared.write_once:
            raise NoSuchPropertyError(
                f"property `{declared.name}` is given at creation, it cannot change",
                hint="make another qube",
            )
        return declared

    def _parsed(self, declared: Property, untrusted_value: str) -> Value:
        if not untrusted_value.isascii():
            raise ValueRefusedError(
                f"value `{shown(untrusted_value)}` of `{declared.name}` is not ASCII",
                hint="use ASCII",
            )
        match declared.type:
            case PropertyType.BOOL:
                return parsing.boolean(untrusted_value)
            case PropertyType.INT:
                return _within(declared, parsing.number(untrusted_value))
            case PropertyType.QUBE:
                return self._referred(declared, untrusted_value)
            case PropertyType.LABEL:
                return self.label(untrusted_value)
            case PropertyType.STR:
                return declared.decode(declared.normalise(parsing.text(untrusted_value)))

    def _referred(self, declared: Property, untrusted_value: str) -> Qube | None:
        if not untrusted_value:
            if declared.optional:
                return None
            raise PropertyValueError(
                f"property `{declared.name}` cannot be empty", hint="name a qube"
            )
        try:
            return self._names[QubeName.parse(untrusted_value)]
        except KeyError:
            raise PropertyValueError(
                f"no qube `{shown(untrusted_value)}`", hint="list the qubes with `qvm-ls`"
            ) from None

    def _old(self, owner: Owner, declared: Property) -> dict[str, str]:
        stored = not self.is_default(owner, declared.name)
        if not stored and isinstance(declared.default(self, owner), Missing):
            return {}
        return {"oldvalue": told(self.value(owner, declared.name))}

    def _consequences(self, owner: Owner, declared: Property, value: Value) -> Change:
        """What follows from a property: tags, features, computed properties that change."""
        if owner is None:
            return self._global_consequences(declared, value)
        change = self._followed(owner, declared.name)
        if declared.name in _TAGGED:
            change += self._retagged(owner, _TAGGED[declared.name], value)
        return change

    def _global_consequences(self, declared: Property, value: Value) -> Change:
        followers = self.followers_of(declared.name)
        change = _join(self._default_moved(qube, declared.name, value) for qube in followers)
        return change + self._clock_moved(value) if declared.name == "clockvm" else change

    def _default_moved(self, qube: Qube, default: PropertyName, value: Value) -> Change:
        """What a new default means for a qube that follows it."""
        change = Change()
        for each in self.properties(qube).values():
            if each.follows == default and each.name not in qube.stored:
                change += Change(events=(_reset_event(qube, each.name),))
                change += self._followed(qube, each.name)
                if each.name in _TAGGED:
                    change += self._retagged(qube, _TAGGED[each.name], value)
        return change

    def _followed(self, qube: Qube, name: str) -> Change:
        computed = (each for each in _FOLLOWED_BY.get(name, ()) if self.has(qube, each))
        return Change(events=tuple(_reset_event(qube, each) for each in computed))

    def _retagged(self, qube: Qube, prefix: str, value: Value) -> Change:
        wanted = Tag(prefix + value.name) if isinstance(value, Qube) else None
        outdated = sorted(tag for tag in qube.tags if tag.startswith(prefix) and tag != wanted)
        change = _join(_untagged(qube, tag) for tag in outdated)
        if wanted is not None and wanted not in qube.tags:
            change += _tagged(qube, wanted)
        return change

    def _clock_moved(self, value: Value) -> Change:
        change = Change()
        former = self.value(None, "clockvm")
        if former is value:
            return change
        if isinstance(former, Qube) and features.CLOCKSYNC in former.features:
            change += _feature_removed(former, features.CLOCKSYNC)
        if isinstance(value, Qube):
            change += _feature_set(value, features.CLOCKSYNC, "1")
        return change

    # --- creation ------------------------------------------------------------------------

    def plan_create(
        self,
        klass: Klass,
        untrusted_name: str,
        untrusted_label: str,
        template: str | None,
        origin: QubeName,
        *,
        pools: Mapping[VolumeName, PoolName] = _NO_POOLS,
    ) -> Change:
        """Plan a new qube.

        A DispVM that a qube without network asks for has no network either, see
        `plan_create_disposable`.

        Args:
            klass: its class.
            untrusted_name: its name.
            untrusted_label: the name of its label.
            template: the name of its template; None for the default one, or for none.
            origin: the qube that asks.
            pools: where its volumes live, as far as not in the default pool.

        Raises:
            ValueRefusedError: a bad name, or no template where one is needed.
            ProtocolError: a template for a class that has none.
            QubeExistsError: the name is taken.
            QubeNotFoundError: the template or the origin does not exist.
            LabelNotFoundError: the label does not exist.
            CaissonError: a pool does not exist or does not fit the volume.
        """
        if klass not in _CREATED:
            raise NotImplementedHereError(
                f"qubes of class `{klass}` cannot be created here",
                hint="use one of: " + ", ".join(sorted(_CREATED)),
            )
        name = QubeName.parse(untrusted_name)
        if template is not None and klass not in _TEMPLATED:
            raise ProtocolError(
                f"a qube of class `{klass}` has no template", hint="leave out the template"
            )
        if name in self._names:
            raise QubeExistsError(f"qube `{name}` exists", hint="choose another name")
        base = self._base_for(klass, template) if klass in _TEMPLATED else None
        label = self.label(LabelName.parse(untrusted_label))
        volumes = _placed(INITIAL_VOLUMES[klass], pools)
        creator = self.qube(origin)
        dispid = self._free_dispid(random.SystemRandom()) if klass is Klass.DISPOSABLE else None
        return self._created(klass, name, label.name, base, creator, volumes=volumes, dispid=dispid)

    def plan_create_disposable(
        self, template: str | None, origin: QubeName, rng: random.Random
    ) -> Change:
        """Plan a disposable, `disp1` to `disp9999`, that is removed when it stops.

        Its network is its template's setting, taken over at creation, with one limit: if the
        qube that asks has no network, neither has the disposable; its `netvm` is then stored as
        empty. So no chain of disposables leads a qube out of its isolation (QSB-047), whatever
        its `default_dispvm` says. The admin qube has no network either, but is trusted: the
        disposables that it makes follow their template.

        Args:
            template: what it is based on; None for the `default_dispvm` of `origin`.
            origin: the qube that asks.
            rng: where its number comes from.

        Raises:
            QubeNotFoundError: the template or the origin does not exist.
            CaissonError: the template is none for disposables, or none is set, or no number
                is free.
        """
        creator = self.qube(origin)
        base: Value
        base = self.value(creator, "default_dispvm") if template is None else self.qube(template)
        if not isinstance(base, Qube):
            raise CaissonError(
                f"qube `{origin}` has no `default_dispvm`",
                hint=f"set one: `qvm-prefs {origin} default_dispvm NAME`",
            )
        if not checks.is_base_of_disposables(self, base):
            raise CaissonError(
                f"qube `{base.name}` is no template for disposables",
                hint=f"allow it: `qvm-prefs {base.name} template_for_dispvms True`",
            )
        dispid = self._free_dispid(rng)
        return self._created(
            Klass.DISPOSABLE,
            QubeName(f"disp{dispid}"),
            rendered(self.value(base, "label")),
            base,
            creator,
            volumes=INITIAL_VOLUMES[Klass.DISPOSABLE],
            dispid=dispid,
            own={PropertyName("auto_cleanup"): "True"},
            marks=(tags.of_origin(creator.name)[1],),
        )

    def _base_for(self, klass: Klass, template: str | None) -> Qube:
        base: Value
        if template is None:
            wanted = _DEFAULT_TEMPLATE[klass]
            base = self.value(None, wanted)
            if base is None:
                raise ValueRefusedError(
                    f"no template given, and no `{wanted}` is set",
                    hint=f"name one, or set it: `qubes-prefs {wanted} NAME`",
                )
        else:
            base = self.qube(template)
        if not isinstance(base, Qube):
            raise QubeNotFoundError("the template does not exist")
        if klass is Klass.APP:
            checks.is_template(base)
        elif not checks.is_base_of_disposables(self, base):
            raise ValueRefusedError(
                f"qube `{base.name}` is no template for disposables",
                hint=f"allow it: `qvm-prefs {base.name} template_for_dispvms True`",
            )
        return base

    def _created(
        self,
        klass: Klass,
        name: QubeName,
        label: str,
        base: Qube | None,
        creator: Qube,
        *,
        volumes: Iterable[VolumeState],
        dispid: int | None,
        own: Mapping[PropertyName, str] = MappingProxyType({}),
        marks: Iterable[Tag] = (),
    ) -> Change:
        uuid = UUID(int=random.SystemRandom().getrandbits(128), version=4)
        properties = self._inherited(klass, base) | {PropertyName("label"): label}
        if base is not None:
            properties[PropertyName("template")] = base.name
        if dispid is not None:
            properties[PropertyName("dispid")] = str(dispid)
            if self._is_offline(creator):
                properties[PropertyName("netvm")] = ""
        properties |= own
        gui = creator.features.get(FeatureName("set-created-guivm"), "")
        if QubeName(gui) in self._names:
            properties[PropertyName("guivm")] = gui
        return Change(
            ops=(
                AddQube(uuid, name, klass.value, self._next_qid()),
                *(SetProperty(uuid, key, text) for key, text in properties.items()),
                *(
                    SetFeature(uuid, key, text)
                    for key, text in self._first_features(klass, base).items()
                ),
                *(
                    AddTag(uuid, tag)
                    for tag in sorted({*self._first_tags(klass, base, creator, properties), *marks})
                ),
                *(SetVolume(uuid, _sized(volume, base)) for volume in volumes),
            ),
            events=(Event(None, "domain-add", {"vm": str(name)}),),
        )

    def _inherited(self, klass: Klass, base: Qube | None) -> dict[PropertyName, str]:
        """What a disposable takes over from its template: what is stored there."""
        if klass is not Klass.DISPOSABLE or base is None:
            return {}
        declared = PROPERTIES[klass]
        return {
            name: text
            for name, text in base.stored.items()
            if name in declared and declared[name].cloned
        }

    def _first_features(self, klass: Klass, base: Qube | None) -> dict[FeatureName, str]:
        first: dict[FeatureName, str] = {}
        if klass is Klass.DISPOSABLE and base is not None:
            first = {
                name: value
                for name, value in base.features.items()
                if not name.startswith(features.PRELOAD)
            }
        if not self.value(None, "check_updates_vm"):
            first.setdefault(features.CHECK_UPDATES, "")
        return first

    def _first_tags(
        self,
        klass: Klass,
        base: Qube | None,
        creator: Qube,
        properties: Mapping[PropertyName, str],
    ) -> Iterator[Tag]:
        # Who created the template has no say over a disposable that somebody else made of it.
        if klass is Klass.DISPOSABLE and base is not None:
            yield from (tag for tag in base.tags if not tags.is_managed(tag))
        for word in creator.features.get(FeatureName("tag-created-vm-with"), "").split():
            try:
                tag = Tag.parse(word)
            except InvalidTagError:
                continue
            if not tags.is_managed(tag):
                yield tag
        for name, prefix in _TAGGED.items():
            stored = properties.get(PropertyName(name))
            whose = rendered(self.value(None, f"default_{name}")) if stored is None else stored
            if whose:
                yield Tag(prefix + whose)
        yield tags.of_origin(creator.name)[0]

    def _is_offline(self, qube: Qube) -> bool:
        return self.has(qube, "netvm") and self.netvm_of(qube) is None

    def _next_qid(self) -> int:
        qid = self._free_qid()
        if qid > QID_MAX:
            raise CaissonError(
                f"there are {QID_MAX} qubes, no number is left", hint="remove a qube first"
            )
        return qid

    # --- removal -------------------------------------------------------------------------

    def plan_remove(self, qube: Qube, halted: bool) -> Change:
        """Plan to remove a qube; those that it created lose the tags that say so.

        Raises:
            QubeInUseError: the machine or another qube needs it.
            NotHaltedError: it is not halted.
        """
        if qube is self.dom0:
            raise QubeInUseError("the admin qube cannot be removed")
        if self.value(qube, "installed_by_rpm"):
            raise QubeInUseError(
                f"qube `{qube.name}` belongs to a package of the machine",
                hint="remove the package, or set its property `installed_by_rpm` to `False`",
            )
        if not halted:
            raise NotHaltedError(
                f"qube `{qube.name}` is not halted",
                hint=f"shut it down first: `qvm-shutdown --wait {qube.name}`",
            )
        for user, name in self.users_of(qube):
            if user is qube:
                continue
            where = f"the global `{name}`" if user is None else f"the `{name}` of `{user.name}`"
            raise QubeInUseError(
                f"qube `{qube.name}` is {where}", hint="change that property first"
            )
        kwargs = {"vm": str(qube.name)}
        gone = Change(
            ops=(RemoveQube(qube.uuid),),
            before=(Event(None, "domain-pre-delete", kwargs),),
            events=(Event(None, "domain-delete", kwargs),),
        )
        return _join((gone, *self._disowned(qube)))

    def _disowned(self, qube: Qube) -> Iterator[Change]:
        """Qubes forget who created them, lest another qube of that name inherit a say over them."""
        for tag in tags.of_origin(qube.name):
            for other in self._names.values():
                if tag in other.tags and other is not qube:
                    yield _untagged(other, tag)

    # --- features ------------------------------------------------------------------------

    def plan_feature(self, qube: Qube, untrusted_name: str, untrusted_value: str) -> Change:
        """Plan to store a feature.

        Raises:
            ProtocolError: a bad name, or a value that is not printable ASCII.
            PermissionDeniedError: the system keeps it for itself.
            ValueRefusedError: it breaks the rules of that feature.
        """
        name = FeatureName.parse(untrusted_name)
        features.check(name, untrusted_value)
        if name == features.MEMINFO_WRITER and self.has(qube, "maxmem"):
            return self._balanced(qube, bool(untrusted_value))
        return _feature_set(qube, name, untrusted_value)

    def plan_remove_feature(self, qube: Qube, untrusted_name: str) -> Change:
        """Plan to remove a feature.

        Raises:
            ProtocolError: a bad name.
            FeatureNotFoundError: the qube does not have it.
            PermissionDeniedError: the system keeps it for itself.
        """
        name = FeatureName.parse(untrusted_name)
        features.check_settable(name)
        if name not in qube.features:
            raise FeatureNotFoundError(
                f"qube `{qube.name}` has no feature `{name}`",
                hint=f"list them with `qvm-features {qube.name}`",
            )
        return _feature_removed(qube, name)

    def _balanced(self, qube: Qube, on: bool) -> Change:
        """The service that reports memory is on where `maxmem` is not 0."""
        if qube is self.dom0:
            return Change()
        if on and self.value(qube, "maxmem"):
            return Change()
        if on:
            return self.plan_reset(qube, "maxmem", lambda _: False)
        return self.plan_set(qube, "maxmem", "0", lambda _: False)

    # --- tags ----------------------------------------------------------------------------

    def plan_tag(self, qube: Qube, untrusted_tag: str, origin: QubeName) -> Change:
        """Plan to give a qube a tag; it may have it already.

        Raises:
            InvalidTagError: it is none.
            PermissionDeniedError: it says who created a qube, and `origin` is not the admin qube.
        """
        tag = Tag.parse(untrusted_tag)
        tags.check(tag, origin)
        return Change() if tag in qube.tags else _tagged(qube, tag)

    def plan_untag(self, qube: Qube, untrusted_tag: str, origin: QubeName) -> Change:
        """Plan to take a tag from a qube.

        Raises:
            InvalidTagError: it is none.
            PermissionDeniedError: it says who created a qube, and `origin` is not the admin qube.
            TagNotFoundError: the qube does not have it.
        """
        tag = Tag.parse(untrusted_tag)
        tags.check(tag, origin)
        if tag not in qube.tags:
            raise TagNotFoundError(
                f"qube `{qube.name}` has no tag `{tag}`",
                hint=f"list them with `qvm-tags {qube.name} list`",
            )
        return _untagged(qube, tag)

    # --- volumes -------------------------------------------------------------------------

    def plan_volume(self, qube: Qube, volume: VolumeState) -> Change:
        """Plan to store the state of a volume, as the storage room computed it."""
        return Change(ops=(SetVolume(qube.uuid, volume),))

    def plan_remove_volume(self, qube: Qube, name: VolumeName) -> Change:
        """Plan to forget a volume."""
        return Change(ops=(RemoveVolume(qube.uuid, name),) if name in qube.volumes else ())

    # --- labels --------------------------------------------------------------------------

    def label(self, untrusted_reference: str) -> Label:
        """The label with that name, number, or `label-NUMBER`.

        Raises:
            LabelNotFoundError: there is none.
        """
        label = self._labels.get(LabelName(untrusted_reference))
        numbered = _LABEL_REFERENCE.fullmatch(untrusted_reference)
        if label is None and numbered:
            index = int(numbered[1])
            label = next((each for each in self._labels.values() if each.index == index), None)
        if label is None:
            raise LabelNotFoundError(
                f"no label `{shown(untrusted_reference)}`",
                hint="use one of: " + ", ".join(self._labels),
            )
        return label

    def plan_create_label(self, untrusted_name: str, untrusted_color: str) -> Change:
        """Plan a label of the user's own.

        Raises:
            InvalidLabelError: a bad name.
            LabelValueError: a bad colour.
            LabelInUseError: the name is taken.
        """
        name = LabelName.parse(untrusted_name)
        if _LABEL_REFERENCE.fullmatch(name):
            raise InvalidLabelError(
                f"label name `{name}` reads like the number of a label", hint="use another name"
            )
        if not _COLOR.fullmatch(untrusted_color):
            raise LabelValueError(
                f"`{shown(untrusted_color)}` is not a colour", hint="use the form `0x3465a4`"
            )
        if name in self._labels:
            raise LabelInUseError(f"label `{name}` exists", hint="choose another name")
        index = max(label.index for label in self._labels.values()) + 1
        return Change(ops=(AddLabel(name, index, untrusted_color.lower()),))

    def plan_remove_label(self, untrusted_name: str) -> Change:
        """Plan to remove a label of the user's own.

        Raises:
            LabelNotFoundError: there is none of that name.
            ProtocolError: it is built in.
            LabelInUseError: a qube has it.
        """
        label = self._labels.get(LabelName(untrusted_name))
        if label is None:
            raise LabelNotFoundError(f"no label `{shown(untrusted_name)}`")
        if label in BUILT_IN:
            raise ProtocolError(f"label `{label.name}` is built in, it cannot be removed")
        for qube in self._names.values():
            if qube.stored.get(PropertyName("label")) == label.name:
                raise LabelInUseError(
                    f"qube `{qube.name}` has the label `{label.name}`",
                    hint="give it another label first",
                )
        return Change(ops=(RemoveLabel(label.name),))


def _uuid(owner: Owner) -> UUID | None:
    return None if owner is None else owner.uuid


def _event(owner: Owner, name: str, kwargs: Mapping[str, str]) -> Event:
    return Event(None if owner is None else owner.name, name, kwargs)


def _reset_event(qube: Qube, name: str) -> Event:
    return Event(qube.name, f"property-reset:{name}", {"name": name})


def _join(changes: Iterable[Change]) -> Change:
    joined = tuple(changes)
    return Change(
        ops=tuple(op for change in joined for op in change.ops),
        events=tuple(event for change in joined for event in change.events),
        before=tuple(event for change in joined for event in change.before),
    )


def _tagged(qube: Qube, tag: Tag) -> Change:
    return Change(
        ops=(AddTag(qube.uuid, tag),),
        events=(Event(qube.name, f"domain-tag-add:{tag}", {"tag": str(tag)}),),
    )


def _untagged(qube: Qube, tag: Tag) -> Change:
    return Change(
        ops=(RemoveTag(qube.uuid, tag),),
        events=(Event(qube.name, f"domain-tag-delete:{tag}", {"tag": str(tag)}),),
    )


def _feature_set(qube: Qube, name: FeatureName, value: str) -> Change:
    kwargs = {"feature": str(name), "value": value}
    if name in qube.features:
        kwargs["oldvalue"] = qube.features[name]
    return Change(
        ops=(SetFeature(qube.uuid, name, value),),
        before=(Event(qube.name, f"domain-feature-pre-set:{name}", kwargs),),
        events=(
            Event(qube.name, f"domain-feature-set:{name}", kwargs),
            *_icon_follows(qube, name),
        ),
    )


def _feature_removed(qube: Qube, name: FeatureName) -> Change:
    kwargs = {"feature": str(name)}
    return Change(
        ops=(RemoveFeature(qube.uuid, name),),
        before=(Event(qube.name, f"domain-feature-pre-delete:{name}", kwargs),),
        events=(
            Event(qube.name, f"domain-feature-delete:{name}", kwargs),
            *_icon_follows(qube, name),
        ),
    )


def _icon_follows(qube: Qube, feature: FeatureName) -> tuple[Event, ...]:
    return (_reset_event(qube, "icon"),) if feature == "servicevm" else ()


def _within(declared: Property, value: int) -> int:
    low, high = declared.at_least, declared.at_most
    if (low is not None and value < low) or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"{low} to {high}"
        raise PropertyValueError(
            f"value `{value}` of `{declared.name}` is out of range", hint=f"use {limit}"
        )
    return value


def _placed(
    volumes: Iterable[VolumeState], pools: Mapping[VolumeName, PoolName]
) -> list[VolumeState]:
    """Initial volumes in the pools that were asked for."""
    placed = []
    for volume in volumes:
        pool = pools.get(volume.name, volume.pool)
        if pool not in POOLS:
            raise CaissonError(f"no pool `{shown(pool)}`", hint="use one of: " + ", ".join(POOLS))
        if pool != volume.pool and volume.snap_on_start:
            raise CaissonError(
                f"volume `{volume.name}` is a snapshot, it lives in the pool of its source",
                hint="leave out its pool",
            )
        if pool not in _fitting(volume):
            raise CaissonError(
                f"pool `{pool}` cannot hold the volume `{volume.name}`",
                hint="use one of: " + ", ".join(_fitting(volume)),
            )
        placed.append(_host_kept(replace(volume, pool=pool)))
    return placed


def _fitting(volume: VolumeState) -> tuple[PoolName, ...]:
    if volume.name == KERNEL:
        return (KERNELS,)
    return (LAYERS, HOST) if volume.name == ROOT else (LAYERS,)


def _host_kept(volume: VolumeState) -> VolumeState:
    # The machine's own directories are shown, never written, and have no former states.
    return replace(volume, revisions_to_keep=0) if volume.pool == HOST else volume


def _sized(volume: VolumeState, base: Qube | None) -> VolumeState:
    """A snapshot is as large as its source."""
    source = None if base is None else base.volumes.get(volume.name)
    if not volume.snap_on_start or source is None:
        return volume
    return replace(volume, size=source.size)
