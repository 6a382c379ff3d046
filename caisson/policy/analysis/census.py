"""Systems to try rules in: the qubes that there are, and those that rules demand."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product

import msgspec

from caisson.policy.analysis.profiles import (
    CLASSES,
    Demand,
    Plan,
    demanded,
    is_possible,
    joined,
    meets,
    plans,
)
from caisson.policy.calls import unused
from caisson.policy.rules import Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import NIL_UUID, Kind, Token

_UUID = "uuid:"
_ROLES = ("source", "target", "base", "pick")
_RUNNING = "Running"


class Case(msgspec.Struct, frozen=True):
    """A call that tells rules apart, and the qubes in whose presence it is made.

    `made` are those of them that do not exist, `optional` the names of those that are there only
    because rules mention them; `pick` is one that a list may offer.
    """

    source: Domain
    target: str
    qubes: tuple[Domain, ...]
    made: tuple[Domain, ...]
    optional: frozenset[str] = frozenset()
    pick: str | None = None

    @property
    def system(self) -> SystemInfo:
        """These qubes as a system."""
        return SystemInfo({qube.name: qube for qube in self.qubes})


class Census:
    """Which qubes there are, and which there could be.

    Args:
        system: the qubes that there are; they stay as they are, but may be started.
        rules: all rules that matter.
        any_admin: whether it is unknown which tags dom0 has, and its default_dispvm.
    """

    def __init__(
        self, system: SystemInfo, rules: Iterable[Rule], *, any_admin: bool = False
    ) -> None:
        self._system = system
        self._running: dict[str, Domain] = {}
        self.any_admin = any_admin
        self._admin = system.find("dom0") or Domain(
            "dom0", "AdminVM", uuid=NIL_UUID.removeprefix(_UUID), power_state=_RUNNING
        )
        tokens = {t for r in rules for t in (r.source, r.target, r.redirect, r.default_target) if t}
        taken = {token.value for token in tokens} | set(system.domains)
        self._names = {role: unused(taken, f"new-{role}") for role in _ROLES}
        # Neither dom0 nor a RemoteVM can be one.
        self._relay = _made(unused(taken, "new-relay"), Demand(), CLASSES[0])
        named = {token.value for token in tokens if token.kind is Kind.TYPE}
        # A RemoteVM is called in a way of its own, and stands for no other.
        unnamed = [type_ for type_ in CLASSES[:-1] if type_ not in named]
        self._types = (unnamed[0],) if unnamed else CLASSES

    def cases(
        self,
        sources: Sequence[Token],
        targets: Sequence[Token],
        pick: Plan | None = None,
        mentioned: Sequence[Token] = (),
    ) -> Iterator[Case]:
        """The calls to try.

        Args:
            sources: tokens that all match the source.
            targets: tokens that all match the target.
            pick: what one more qube has to be, so that lists offer it.
            mentioned: tokens of qubes without which the rules have no effect.
        """
        source = demanded(sources)
        if source is None:
            return
        yield from self._called_by(source, targets, pick, mentioned)
        for token in mentioned:
            # By its name no qube may call itself, so it matters if a rule redirects to the source.
            named = demanded([token], frozenset({Kind.NAME}))
            itself = None if named is None else source.also(named)
            if itself is not None and itself != source:
                yield from self._called_by(itself, targets, pick, mentioned)

    def _called_by(
        self,
        source: Demand,
        targets: Sequence[Token],
        pick: Plan | None,
        mentioned: Sequence[Token],
    ) -> Iterator[Case]:
        """The calls to try of a source with these demands."""
        for plan in plans(tuple(targets)):
            base = plan.base or Demand()
            if pick is not None and pick.base is not None:
                both = base.also(pick.base)
                if both is None:
                    continue
                base = both
            roles = {"source": source, "base": base}
            if plan.target is not None:
                roles["target"] = plan.target
            if pick is not None and pick.target is not None:
                roles["pick"] = pick.target
            for cast in self._casts(roles):
                yield from self._calls(plan, cast, pick, mentioned)

    def _casts(self, roles: dict[str, Demand]) -> Iterator[dict[str, Domain]]:
        """All ways to find a qube for each role."""
        groups = joined(roles)
        if groups is None:
            return
        for chosen in product(*(self._options(*group) for group in groups)):
            yield {
                role: qube
                for (group, _), qube in zip(groups, chosen, strict=True)
                for role in group
            }

    def _options(self, roles: frozenset[str], demand: Demand) -> list[Domain]:
        """The qubes to try where one has to meet a demand."""
        known = [f"{_UUID}{demand.uuid}"] if demand.uuid is not None else []
        known += [demand.name] if demand.name is not None else []
        for reference in known:
            existing = self._find(reference, demand)
            if existing is not None:
                return [existing] if meets(existing, demand) else []
        found = []
        if is_possible(demand):
            role = next(role for role in _ROLES if role in roles)
            name = demand.name or self._names[role]
            types = self._types if demand.type is None else (demand.type,)
            found = [_made(name, demand, type_, self._relay.name) for type_ in types]
        admin = self._find("dom0", demand) if not known else None
        if admin is not None and meets(admin, demand):
            found.append(admin)
        return found

    def _find(self, reference: str, demand: Demand) -> Domain | None:
        if reference in ("dom0", NIL_UUID):
            if not self.any_admin:
                return self._admin
            return msgspec.structs.replace(self._admin, tags=self._admin.tags | demand.tags)
        found = self._system.find(reference)
        if found is None:
            return None
        if found.name not in self._running:
            self._running[found.name] = msgspec.structs.replace(found, power_state=_RUNNING)
        return self._running[found.name]

    def _exists(self, name: str) -> bool:
        return name == "dom0" or self._system.find(name) is not None

    def _calls(
        self, plan: Plan, cast: dict[str, Domain], pick: Plan | None, mentioned: Sequence[Token]
    ) -> Iterator[Case]:
        """The calls that a source can make in one way."""
        admins = [qube for qube in cast.values() if qube.name == "dom0"]
        if len(admins) > 1:
            tags = frozenset[str]().union(*(qube.tags for qube in admins))
            admin = msgspec.structs.replace(self._admin, tags=tags)
            cast = {role: admin if q.name == "dom0" else q for role, q in cast.items()}
        source = cast["source"]
        if not self._exists(source.name) or (self.any_admin and source.name == "dom0"):
            source = msgspec.structs.replace(source, default_dispvm=cast["base"].name)
        else:
            # It has its own, or none.
            cast = {role: qube for role, qube in cast.items() if role != "base"}
        qubes = {qube.name: qube for qube in (self._admin, *cast.values())}
        qubes[source.name] = source
        cast_names = set(qubes)
        self._complete(qubes, mentioned)
        made = tuple(q for q in qubes.values() if not self._exists(q.name))
        optional = frozenset(qube.name for qube in made) - cast_names - {self._relay.name}
        picked = None
        if pick is not None:
            picked = cast["pick"].name if "pick" in cast else source.default_dispvm
        for target in _texts(plan, source, cast):
            yield Case(source, target, tuple(qubes.values()), made, optional, picked)

    def _complete(self, qubes: dict[str, Domain], mentioned: Sequence[Token]) -> None:
        """Add the qubes that the others or the rules need."""
        for token in mentioned:
            demand = demanded([token], frozenset({Kind.NAME, Kind.DISPVM_OF}))
            if demand is None or any(
                demand.is_same_qube(Demand(qube.name, qube.uuid)) for qube in qubes.values()
            ):
                continue
            for qube in self._options(frozenset({"pick"}), demand)[:1]:
                name = qube.name if demand.name else unused(set(qubes), qube.name)
                qubes[name] = msgspec.structs.replace(qube, name=name)
        for qube in list(qubes.values()):
            for reference in (qube.default_dispvm, qube.relayvm):
                if reference and reference not in qubes:
                    made = reference == self._relay.name
                    found = self._relay if made else self._find(reference, Demand())
                    if found is not None:
                        qubes[found.name] = found


@lru_cache(maxsize=8192)
def _made(name: str, demand: Demand, type_: str, relay: str | None = None) -> Domain:
    """A qube that meets a demand, and of which rules get as much as they can."""
    return Domain(
        name,
        type_,
        uuid=demand.uuid or str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        tags=demand.tags,
        template_for_dispvms=True,
        relayvm=relay if type_ == "RemoteVM" else None,
        transport_rpc="new.Transport" if type_ == "RemoteVM" else None,
        power_state=_RUNNING,
    )


def _texts(plan: Plan, source: Domain, cast: dict[str, Domain]) -> Iterator[str]:
    """How the source can name its target."""
    match plan.kind:
        case Kind.NAME:
            name = cast["target"].name
            yield name
            if name == source.name:
                # By its uuid a qube may call itself.
                yield f"{_UUID}{source.uuid}"
        case Kind.DISPVM_OF:
            yield f"@dispvm:{cast['target'].name}"
        case _:
            yield plan.kind.value
