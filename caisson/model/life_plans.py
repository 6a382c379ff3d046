"""Plans for qubes: create, disposable, remove (section 2.4)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from uuid import UUID

from caisson.errors import (
    CaissonError,
    NotHaltedError,
    ProtocolError,
    QubeError,
    QubeExistsError,
    QubeInUseError,
    QubeNotFoundError,
    ValueRefusedError,
)
from caisson.model import checks, features, limits, tags
from caisson.model.changes import (
    AddQube,
    AddTag,
    Change,
    Event,
    RemoveQube,
    SetFeature,
    SetProperty,
    SetVolume,
)
from caisson.model.declarations import PROPERTIES
from caisson.model.events import joined, untagged
from caisson.model.klass import Klass
from caisson.model.numbers import Numbers
from caisson.model.property import Value
from caisson.model.property import render as rendered
from caisson.model.qube import Qube
from caisson.model.volumes import INITIAL_VOLUMES, VolumeState, placed, sized
from caisson.names import FeatureName, LabelName, PoolName, PropertyName, QubeName, Tag, VolumeName

QID_MAX = 10_000
MOST_DISPOSABLES = 32
"""How many a qube may have at once, with those that its disposables ask for."""
_NO_POOLS: Mapping[VolumeName, PoolName] = MappingProxyType({})
_TEMPLATED = frozenset({Klass.APP, Klass.DISPOSABLE})
_DEFAULT_TEMPLATE = {Klass.APP: "default_template", Klass.DISPOSABLE: "default_dispvm"}


@dataclass(frozen=True)
class _Birth:
    """What was decided about a new qube: all checks are behind it."""

    klass: Klass
    name: QubeName
    label: str
    base: Qube | None
    creator: Qube
    dispid: int | None


class LifePlans(Numbers):
    """What qubes may come to be, and which may go."""

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
        """Plan a new qube; a RemoteVM is a record of one that runs elsewhere.

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
            QubeExistsError: the name is taken, or it would be a second admin qube.
            QubeNotFoundError: the template or the origin does not exist.
            LabelNotFoundError: the label does not exist.
            CaissonError: a pool does not exist or does not fit the volume.
        """
        name = QubeName.parse(untrusted_name)
        if template is not None and klass not in _TEMPLATED:
            raise ProtocolError(
                f"a qube of class `{klass}` has no template", hint="leave out the template"
            )
        if name in self._names:
            raise QubeExistsError(f"qube `{name}` exists", hint="choose another name")
        if klass is Klass.ADMIN:
            raise QubeExistsError(
                f"the admin qube exists, it is `{self.dom0.name}`", hint="choose another class"
            )
        base = self._base_for(klass, template) if klass in _TEMPLATED else None
        label = self.label(LabelName.parse(untrusted_label))
        volumes = self._placed(klass, pools)
        creator = self.qube(origin)
        dispid = self._free_dispid(random.SystemRandom()) if klass is Klass.DISPOSABLE else None
        return self._born(_Birth(klass, name, label.name, base, creator, dispid), volumes)

    def plan_create_disposable(
        self, template: str | None, origin: QubeName, rng: random.Random
    ) -> Change:
        """Plan a disposable, `disp1` to `disp9999`, that is removed when it stops.

        Its network is its template's setting, taken over at creation, with one limit: if the
        qube that asks has no network, neither has the disposable; its `netvm` is then stored as
        empty, and it provides none. So no chain of disposables leads a qube out of its isolation
        (QSB-047), whatever its `default_dispvm` says. The admin qube has no network either, but
        is trusted: the disposables that it makes follow their template.

        Each has limits of its own, so that a qube which may ask for any number has no limit.

        Args:
            template: what it is based on; None for the `default_dispvm` of `origin`.
            origin: the qube that asks.
            rng: where its number comes from.

        Raises:
            QubeNotFoundError: the template or the origin does not exist.
            CaissonError: the template is none for disposables, or none is set, or no number
                is free, or the qube has enough of them.
        """
        creator = self.qube(origin)
        self._check_share(creator)
        base: Value
        if template is not None:
            base = self.qube(template)
        elif self.has(creator, "default_dispvm"):
            base = self.value(creator, "default_dispvm")
        else:
            base = None
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
        birth = _Birth(
            klass=Klass.DISPOSABLE,
            name=QubeName(f"disp{dispid}"),
            label=rendered(self.value(base, "label")),
            base=base,
            creator=creator,
            dispid=dispid,
        )
        return self._born(birth, INITIAL_VOLUMES[Klass.DISPOSABLE], cleaned_up=True)

    def _check_share(self, creator: Qube) -> None:
        """Refuse one that asks, itself or through its disposables, for more than its share."""
        first = self._first_asker(creator)
        if first is self.dom0:
            return
        found = {first}
        asking = [first]
        while asking:
            asker = asking.pop()
            made = {qube for qube in self._asked_by(asker) if qube not in found}
            found |= made
            asking += made
        if len(found) > MOST_DISPOSABLES:
            raise QubeError(
                f"qube `{first.name}` has {MOST_DISPOSABLES} disposables already",
                hint="wait until one of them ends",
            )

    def _asked_by(self, asker: Qube) -> Iterator[Qube]:
        """The disposables that a qube asked for itself."""
        for qube in self.tagged(tags.of_origin(asker.name)[0]):
            if self._asker(qube) is asker:
                yield qube

    def _asker(self, qube: Qube) -> Qube | None:
        """Who asked for a disposable; None for all other qubes."""
        if qube.klass is not Klass.DISPOSABLE or not self.value(qube, "auto_cleanup"):
            return None
        mark = min((tag for tag in qube.tags if tag.startswith(tags.CREATED_BY)), default="")
        return self.qubes.get(QubeName(mark.removeprefix(tags.CREATED_BY))) if mark else None

    def _first_asker(self, qube: Qube) -> Qube:
        """Where a chain of disposables that ask for disposables began."""
        seen = {qube}
        while (asker := self._asker(qube)) is not None and asker not in seen:
            seen.add(asker)
            qube = asker
        return qube

    def _placed(self, klass: Klass, pools: Mapping[VolumeName, PoolName]) -> list[VolumeState]:
        default = {
            volume.name: PoolName(rendered(self.value(None, f"default_pool_{volume.name}")))
            for volume in INITIAL_VOLUMES[klass]
            if not volume.snap_on_start
        }
        absent = sorted(set(pools) - {volume.name for volume in INITIAL_VOLUMES[klass]})
        if absent:
            raise CaissonError(
                f"a qube of class `{klass}` has no volume `{absent[0]}`", hint="leave out its pool"
            )
        wanted = default | dict(pools)
        return [
            placed(volume, wanted.get(volume.name, volume.pool), self.pools)
            for volume in INITIAL_VOLUMES[klass]
        ]

    def _base_for(self, klass: Klass, template: str | None) -> Qube:
        base: Value
        if template is None:
            wanted = _DEFAULT_TEMPLATE[klass]
            base = self.value(None, wanted)
            if base is None:
                raise ValueRefusedError(
                    f"no template given, and no `{wanted}` is set",
                    hint=f"name one, or set it: `qubes-prefs {wanted} NAME`; "
                    "`docs/guides/first-qubes.md` makes one",
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

    def _born(
        self, birth: _Birth, volumes: Iterable[VolumeState], *, cleaned_up: bool = False
    ) -> Change:
        uuid = UUID(int=random.SystemRandom().getrandbits(128), version=4)
        properties = self._first_properties(birth)
        marks = self._first_tags(birth, properties)
        if cleaned_up:
            properties[PropertyName("auto_cleanup")] = "True"
            marks.add(tags.of_origin(birth.creator.name)[1])
        sources = {} if birth.base is None else birth.base.volumes
        return Change(
            ops=(
                AddQube(uuid, birth.name, birth.klass.value, self._next_qid()),
                *(SetProperty(uuid, key, text) for key, text in properties.items()),
                *(SetFeature(uuid, key, text) for key, text in self._first_features(birth).items()),
                *(AddTag(uuid, tag) for tag in sorted(marks)),
                *(SetVolume(uuid, sized(each, sources.get(each.name))) for each in volumes),
            ),
            events=(Event(None, "domain-add", {"vm": str(birth.name)}, uuid),),
        )

    def _first_properties(self, birth: _Birth) -> dict[PropertyName, str]:
        properties = self._inherited(birth)
        properties[PropertyName("label")] = birth.label
        if birth.base is not None:
            properties[PropertyName("template")] = birth.base.name
        if birth.dispid is not None:
            properties[PropertyName("dispid")] = str(birth.dispid)
            if self._is_offline(birth.creator):
                # No network qube, and none of its own making either: that would have an uplink.
                properties[PropertyName("netvm")] = ""
                properties[PropertyName("provides_network")] = "False"
        gui = birth.creator.features.get(FeatureName("set-created-guivm"), "")
        if "guivm" in PROPERTIES[birth.klass] and QubeName(gui) in self._names:
            properties[PropertyName("guivm")] = gui
        return properties

    def _inherited(self, birth: _Birth) -> dict[PropertyName, str]:
        """What a disposable takes over from its template: what is stored there."""
        if birth.klass is not Klass.DISPOSABLE or birth.base is None:
            return {}
        declared = PROPERTIES[birth.klass]
        return {
            name: text
            for name, text in birth.base.stored.items()
            if name in declared and declared[name].cloned
        }

    def _first_features(self, birth: _Birth) -> dict[FeatureName, str]:
        first: dict[FeatureName, str] = {}
        if birth.klass is Klass.DISPOSABLE and birth.base is not None:
            first = {
                name: value
                for name, value in birth.base.features.items()
                if not name.startswith(features.PRELOAD)
            }
            if self._is_offline(birth.creator):
                first.pop(features.UPLINK, None)
        if birth.klass is not Klass.REMOTE and not self.value(None, "check_updates_vm"):
            first.setdefault(features.CHECK_UPDATES, "")
        return first

    def _first_tags(self, birth: _Birth, properties: Mapping[PropertyName, str]) -> set[Tag]:
        marks: set[Tag] = set()
        # Who created the template has no say over a disposable that somebody else made of it.
        if birth.klass is Klass.DISPOSABLE and birth.base is not None:
            marks |= {tag for tag in birth.base.tags if not tags.is_managed(tag)}
        wished = birth.creator.features.get(FeatureName("tag-created-vm-with"), "")
        marks |= tags.free_ones(wished.split())
        limits.check_first_tags(birth.name, len(marks))
        marks.add(tags.of_origin(birth.creator.name)[0])
        for name, prefix in tags.REFERENCES.items():
            declared = PROPERTIES[birth.klass].get(PropertyName(name))
            if declared is None:
                continue
            whose = properties.get(declared.name, "")
            if declared.name not in properties and declared.follows is not None:
                whose = rendered(self.value(None, declared.follows))
            if whose:
                marks.add(Tag.parse(prefix + whose))
        return marks

    def _is_offline(self, qube: Qube) -> bool:
        return self.has(qube, "netvm") and self.netvm_of(qube) is None

    def _next_qid(self) -> int:
        qid = self._free_qid()
        if qid > QID_MAX:
            raise CaissonError(
                f"there are {QID_MAX} qubes, no number is left", hint="remove a qube first"
            )
        return qid

    def plan_remove(self, qube: Qube, halted: bool) -> Change:
        """Plan to remove a qube; those that it created lose the tags that say so.

        Args:
            qube: it, or the record of one that runs elsewhere, whatever that one does.
            halted: whether it is halted.

        Raises:
            QubeInUseError: the machine or another qube needs it.
            NotHaltedError: it is not halted.
        """
        if qube is self.dom0:
            raise QubeInUseError("the admin qube cannot be removed")
        if self.has(qube, "installed_by_rpm") and self.value(qube, "installed_by_rpm"):
            raise QubeInUseError(
                f"qube `{qube.name}` belongs to a package of the machine",
                hint="remove the package, or set its property `installed_by_rpm` to `False`",
            )
        if not (halted or qube.klass is Klass.REMOTE):
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
            before=(Event(None, "domain-pre-delete", kwargs, qube.uuid),),
            events=(Event(None, "domain-delete", kwargs, qube.uuid),),
        )
        return joined((gone, *self._disowned(qube)))

    def _disowned(self, qube: Qube) -> Iterator[Change]:
        """Qubes forget who created them, lest another qube of that name inherit a say over them."""
        for tag in tags.of_origin(qube.name):
            for other in self.tagged(tag):
                if other is not qube:
                    yield untagged(other, tag)
