"""Qubes that rules demand: the few with which everything that rules can decide is found.

A token of a rule demands one thing of a qube: a name, a uuid, a type, a tag, or nothing.
A rule decides a call if source and target meet its demands and, for every earlier rule, one of
them fails to meet a demand. A qube fails the more demands the fewer names and tags it has. So if
there is any call that a rule decides (or that rule `i` of one policy and rule `j` of another
decide), then there is one between qubes with exactly the tags that these rules demand, with the
name that they demand or one that no rule has, and with the type that they demand or one of the
five that a qube can have: of these one that no rule has, if there is one.
The demands of `@dispvm:NAME` and `@dispvm:@tag:TAG` are about a third qube, in the same way.
Where two of these qubes have the same name they are the same qube, and meet the demands on both.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from caisson.errors import CaissonError
from caisson.names import QubeName, Tag
from caisson.policy.system import Domain
from caisson.policy.tokens import Kind, Token, is_admin_qube

CLASSES = ("AppVM", "TemplateVM", "StandaloneVM", "DispVM", "RemoteVM")
"""The types that a qube can have, if it is not the admin qube."""

_UUID = "uuid:"
_QUBES = frozenset({Kind.NAME, Kind.ADMINVM, Kind.ANY, Kind.ANYVM, Kind.TYPE, Kind.TAG})
_DISPOSABLES = frozenset({Kind.ANY, Kind.ANYVM, Kind.DISPVM_OF, Kind.DISPVM_TAG})


class Demand(msgspec.Struct, frozen=True):
    """What a qube must have; None and empty demand nothing."""

    name: str | None = None
    uuid: str | None = None
    type: str | None = None
    tags: frozenset[str] = frozenset()

    def also(self, other: Demand) -> Demand | None:
        """Both demands; None if no qube can meet both."""
        for one, another in zip(self._single, other._single, strict=True):
            if one is not None and another is not None and one != another:
                return None
        name, uuid_, type_ = (
            a if a is not None else b for a, b in zip(self._single, other._single, strict=True)
        )
        return Demand(name, uuid_, type_, self.tags | other.tags)

    def is_same_qube(self, other: Demand) -> bool:
        """Whether both can only be met by one and the same qube."""
        return (self.name is not None and self.name == other.name) or (
            self.uuid is not None and self.uuid == other.uuid
        )

    @property
    def _single(self) -> tuple[str | None, str | None, str | None]:
        return self.name, self.uuid, self.type


def demanded(tokens: Iterable[Token], kinds: frozenset[Kind] = _QUBES) -> Demand | None:
    """What tokens demand of one qube.

    None if no qube meets it, or a token is not of these kinds.
    """
    found: Demand | None = Demand()
    for token in tokens:
        if token.kind not in kinds or found is None:
            return None
        found = found.also(_demand(token))
    return found


def _demand(token: Token) -> Demand:
    if is_admin_qube(str(token)):
        return Demand(name="dom0")
    match token.kind:
        case Kind.NAME | Kind.DISPVM_OF if token.value.startswith(_UUID):
            return Demand(uuid=token.value[len(_UUID) :])
        case Kind.NAME | Kind.DISPVM_OF:
            return Demand(name=token.value)
        case Kind.TYPE:
            return Demand(type=token.value)
        case Kind.TAG | Kind.DISPVM_TAG:
            return Demand(tags=frozenset({token.value}))
        case _:
            return Demand()


class Plan(msgspec.Struct, frozen=True):
    """One way to call a target that some tokens match.

    `target` is asked of the qube that is called, or that a disposable is made from; `base` of the
    qube that the source makes disposables from; None where it plays no part.
    """

    kind: Kind
    target: Demand | None = None
    base: Demand | None = None


@lru_cache(maxsize=8192)
def plans(tokens: tuple[Token, ...]) -> tuple[Plan, ...]:
    """The ways to call a target that all tokens match."""
    kinds = {token.kind for token in tokens}
    found = [Plan(Kind.NAME, target=demanded(tokens))]
    if all(t.kind is Kind.ANY or is_admin_qube(str(t)) for t in tokens):
        found.append(Plan(Kind.ADMINVM))
    if kinds <= {Kind.ANY, Kind.ANYVM, Kind.DEFAULT}:
        found.append(Plan(Kind.DEFAULT))
    base = demanded([t for t in tokens if t.kind is not Kind.DISPVM], _DISPOSABLES)
    found.append(Plan(Kind.DISPVM, base=base))
    found.append(Plan(Kind.DISPVM_OF, target=demanded(tokens, _DISPOSABLES)))
    # A way that no qube is fit for is none.
    return tuple(
        plan
        for plan in found
        if plan.target is not None or plan.base is not None or plan.kind in _FIXED
    )


_FIXED = frozenset({Kind.ADMINVM, Kind.DEFAULT})


def picks(tokens: tuple[Token, ...]) -> tuple[Plan, ...]:
    """The ways in which a list can offer what all tokens stand for."""
    return tuple(plan for plan in plans(tokens) if plan.kind not in _FIXED)


@lru_cache(maxsize=8192)
def is_possible(demand: Demand) -> bool:
    """Whether a qube, other than dom0, could be made to meet it."""
    try:
        for tag in demand.tags:
            Tag.parse(tag)
        if demand.name is not None:
            QubeName.parse(demand.name)
        if demand.uuid is not None and str(uuid.UUID(demand.uuid)) != demand.uuid:
            return False
    except (CaissonError, ValueError):
        return False
    return demand.name != "dom0" and demand.type in (None, *CLASSES)


def meets(qube: Domain, demand: Demand) -> bool:
    """Whether a qube meets a demand."""
    return (
        demand.name in (None, qube.name)
        and demand.uuid in (None, qube.uuid)
        and demand.type in (None, qube.type)
        and demand.tags <= qube.tags
    )


def joined(demands: dict[str, Demand]) -> list[tuple[frozenset[str], Demand]] | None:
    """Demands on qubes in some roles, where those that mean one qube are made one.

    None if no qubes can meet them.
    """
    groups: list[tuple[frozenset[str], Demand]] = []
    for role, demand in demands.items():
        roles, all_ = frozenset({role}), demand
        # A name may tie to one group what a uuid ties to another.
        while same := next((g for g in groups if g[1].is_same_qube(all_)), None):
            both = same[1].also(all_)
            if both is None:
                return None
            groups.remove(same)
            roles, all_ = roles | same[0], both
        groups.append((roles, all_))
    return groups
