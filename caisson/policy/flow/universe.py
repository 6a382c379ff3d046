"""Every system at once: one member for each way in which a qube can take part in a chain.

A rule asks at most one thing of its caller and one of its target (a tag, a name, a uuid, a type);
the list of an `ask` asks one more of the caller. Of earlier rules it is asked that they do *not*
match. So whatever a qube has beyond what the rules of a step ask of it can only be in the way, and
the step is still possible for a member that has nothing else.
A qube in the middle of a chain has two steps, one in and one out. *Loosely*, two members stand for
it, which agree on all that the assertion and its assumptions speak of; together they may have
what cannot be together. *Strictly*, one member has what both steps ask for; those are many more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from itertools import chain, combinations
from operator import and_, or_
from typing import NamedTuple

from caisson.errors import CaissonError, ValueRefusedError
from caisson.names import QubeName
from caisson.policy.flow import bits, newborn
from caisson.policy.flow.calls import Outcome
from caisson.policy.flow.edges import Edge, Options, Way, of_calls
from caisson.policy.flow.members import Defaults, Member, Population
from caisson.policy.flow.predicates import Aspect, Predicate, Profile
from caisson.policy.rules import EVERY, Action, Rule
from caisson.policy.tokens import Kind, Token, is_admin_qube

MOST_MEMBERS = 200_000
"""More would take gigabytes of memory."""
_MOST_TAGS = 5
_UUID = re.compile(r"uuid:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_ADMIN, _APP, _TEMPLATE = "AdminVM", "AppVM", "TemplateVM"
_STANDALONE, _DISPOSABLE, _REMOTE = "StandaloneVM", "DispVM", "RemoteVM"
_DOM0 = "dom0"


class TooManyMembersError(CaissonError):
    """The policy has too many names and tags for this way of looking at it."""


class Need(NamedTuple):
    """What a step asks of a qube."""

    name: str = ""
    uuid: str = ""
    tags: frozenset[str] = frozenset()

    def with_(self, other: Need) -> Need | None:
        """Both; None if no qube can be both."""
        if (self.name and other.name and self.name != other.name) or (
            self.uuid and other.uuid and self.uuid != other.uuid
        ):
            return None
        return Need(self.name or other.name, self.uuid or other.uuid, self.tags | other.tags)


class Universe:
    """The members of all systems, and every edge between them.

    A member is there twice: as what sends (its number), and as what receives (its number and
    `size`). An edge of the way `SAME` leads from what receives to what may send, as one qube.
    Disposables are there twice more, `2 * size` above: as those that came to be by the step before.
    They have their maker, so that they do not reply to another.

    Attributes:
        profiles: the members.
        internet: the number of the outside world.
        tells_bases: whether a member is a base of disposables says that the qube is; else it says
            that it may be.
        tells_relays: the same of being a relay.

    Args:
        rules: the policy.
        options: what is assumed of calls.
        ends: the predicates of the assertion.
        never: what no qube is.
        strict: see the module.

    Raises:
        TooManyMembersError: there would be too many members.
        CaissonError: the assertion speaks of too many tags.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        options: Options,
        ends: Sequence[Predicate],
        never: Sequence[Predicate],
        *,
        strict: bool,
    ) -> None:
        spoken = [each for p in (*ends, *never) for each in p.literals or ()]
        self._spoken = {
            aspect: frozenset(each.value for each in spoken if each.aspect is aspect)
            for aspect in Aspect
        }
        self.tells_bases = any(each.aspect is Aspect.BASE for each in spoken)
        self.tells_relays = any(each.aspect is Aspect.RELAY for each in spoken)
        self._never = never
        self._rules = rules
        self.profiles = self._all_profiles(strict=strict)
        self.internet = len(self.profiles)
        self.size = size = self.internet + 1
        self._net = self._where(lambda p: p.net)
        self._remote = self._where(lambda p: p.type == _REMOTE)
        self._relays = self._where(lambda p: p.is_relay)
        self._disposable = self._where(lambda p: p.type == _DISPOSABLE)
        self._bases = self._by_heritage()
        self._newborn = self._where(
            lambda p: (
                p.type == _DISPOSABLE
                and not p.uuid
                and (not p.name or newborn.NAME.fullmatch(p.name) is not None)
            )
        )
        self._known_heirs: dict[int, tuple[int, int]] = {}
        every_base = reduce(or_, (bases for bases, _ in self._bases), 0)
        self.population = Population(
            [*map(self._member, self.profiles), Member(absent=True)],
            [Defaults((1 << size) - 1, every_base, maybe_none=True)],
        )
        moves = chain(self._wiring(), of_calls(rules, self, options))
        same = self._identities() if strict else self._alike()
        self.edges = [*map(self._placed, moves), *chain.from_iterable(map(self._joined, same))]

    def receiving(self, members: int) -> int:
        """Members as what receives."""
        return members << self.size | (members & self._disposable) << 3 * self.size

    def _placed(self, edge: Edge) -> Edge:
        """An edge from what sends to what receives."""
        sources, targets, size = edge.sources, self._others(edge) << self.size, self.size
        if edge.is_birth and edge.way is Way.CALL:
            targets <<= 2 * size
        if not edge.is_birth or edge.way is Way.CALL:
            sources |= (sources & self._disposable) << 2 * size
        shared = self.population.shared
        return Edge(shared(sources), shared(targets), edge.way, edge.outcome, edge.is_birth)

    def _joined(self, edge: Edge) -> Iterator[Edge]:
        """From what receives to what may send, for what was there and for what came to be."""
        yield Edge(edge.sources << self.size, edge.targets, Way.SAME)
        sources, targets = edge.sources & self._disposable, edge.targets & self._disposable
        if sources and targets:
            yield Edge(sources << 3 * self.size, targets << 2 * self.size, Way.SAME)

    def those(self, predicate: Predicate) -> int:
        """The members of which a predicate is true."""
        if predicate.literals is None:
            return 1 << self.internet
        return self._where(predicate.is_end)

    def _where(self, holds: Callable[[Profile], bool]) -> int:
        return bits.of((i for i, p in enumerate(self.profiles) if holds(p)), self.internet + 1)

    # Who there is.

    def _member(self, profile: Profile) -> Member:
        is_connected = profile.type != _REMOTE or bool(self._relays)
        return Member(
            profile.name,
            profile.type,
            profile.tags,
            profile.uuid or None,
            is_base=profile.is_base,
            calls=is_connected and profile.type != _ADMIN,
            answers=is_connected,
        )

    def _all_profiles(self, *, strict: bool) -> list[Profile]:
        tags = sorted(self._spoken[Aspect.TAG])
        if len(tags) > _MOST_TAGS:
            raise CaissonError(
                f"the assertion and its assumptions speak of {len(tags)} tags",
                hint=f"use at most {_MOST_TAGS}: all combinations of them are tried",
            )
        needs = list(needs_of(self._rules))
        if strict:
            pairs = (one.with_(other) for one, other in combinations(needs, 2))
            needs = list(dict.fromkeys([*needs, *filter(None, pairs)]))
        had = [frozenset(each) for n in range(len(tags) + 1) for each in combinations(tags, n)]
        names = ["", _DOM0, *sorted(self._spoken[Aspect.NAME] - {_DOM0})]
        kinds = self._kinds()
        count = len(needs) * len(had) * len(names) * len(kinds)
        if count > MOST_MEMBERS:
            raise TooManyMembersError(
                f"too many combinations: {count}", hint="name fewer qubes and tags in the rules"
            )
        made = (
            Profile(name or need.name, kind, need.tags | own, net, need.uuid, is_base, is_relay)
            for need in needs
            for own in had
            if need.tags & set(tags) <= own
            for name in names
            if _agree(need, name, names)
            for kind, net, is_base, is_relay in kinds
            if (kind == _ADMIN) is (name == _DOM0)
        )
        return [p for p in dict.fromkeys(made) if not any(n.holds(p) for n in self._never)]

    def _kinds(self) -> list[tuple[str, bool, bool, bool]]:
        """The classes of qubes, each with and without a network, as base or not, relay or not."""
        types = [_APP, _TEMPLATE, _DISPOSABLE]
        mentioned = self._spoken[Aspect.TYPE] | {
            token.value
            for rule in self._rules
            for token in (rule.source, rule.target)
            if token.kind is Kind.TYPE
        }
        if mentioned & {_APP, _STANDALONE}:
            types.append(_STANDALONE)  # else an AppVM does all that it does
        # A base can do all that another can; unless bases are spoken of, all may be one.
        # So is it with relays.
        some = [False, True] if self.tells_bases else [True]
        kinds = [
            (kind, net, is_base, is_relay)
            for kind in types
            for net in (False, True)
            for is_base in (some if kind in {_APP, _STANDALONE} else [False])
            for is_relay in ([False, True] if self.tells_relays else [True])
        ]
        return [*kinds, (_REMOTE, False, False, False), (_ADMIN, False, False, False)]

    def _by_heritage(self) -> list[tuple[int, int]]:
        """The bases of disposables, by the disposables that have all that they inherit."""
        bases: dict[frozenset[str], list[int]] = {}
        tagged: dict[str, list[int]] = {}
        for number, profile in enumerate(self.profiles):
            if profile.is_base:
                left = frozenset(filter(newborn.must_inherit, profile.tags))
                bases.setdefault(left, []).append(number)
            if profile.type == _DISPOSABLE:
                for tag in profile.tags:
                    tagged.setdefault(tag, []).append(number)
        having = {tag: bits.of(numbers, self.size) for tag, numbers in tagged.items()}
        return [
            (
                bits.of(numbers, self.size),
                reduce(and_, (having.get(tag, 0) for tag in left), self._disposable),
            )
            for left, numbers in sorted(bases.items(), key=lambda each: len(each[0]))
        ]

    # How it may be wired: as assumptions leave it open.

    def _wiring(self) -> Iterator[Edge]:
        outside = 1 << self.internet
        for one, other, way in (
            (self._net, outside, Way.NETWORK),
            (self._remote, outside, Way.REMOTE),
            (self._remote, self._relays, Way.RELAY),
        ):
            yield Edge(one, other, way)
            yield Edge(other, one, way)
        templates = self._where(lambda p: p.type == _TEMPLATE)
        yield Edge(templates, self._where(lambda p: p.type == _APP), Way.TEMPLATE)
        for bases, heirs in self._bases:
            yield Edge(bases, heirs, Way.BASE)

    def born(self, outcome: Outcome, *, replies: bool) -> Iterator[tuple[int, int]]:  # noqa: ARG002
        """Callers, and the new disposables that they may bring about.

        What is made of an offline base, or by an offline caller, is offline
        (`caisson.model.life_plans`).
        """
        callers = outcome.callers
        offline, online = self._heirs(outcome.bases)
        linked = callers & (self._net | self._remote)
        if linked:
            yield linked, (online & self._net) | (offline & ~self._net)
        if callers != linked:
            yield callers & ~linked, offline & ~self._net

    def _heirs(self, bases: int) -> tuple[int, int]:
        """The disposables that have all that one of some bases leaves; those of online bases."""
        found = self._known_heirs.get(bases)
        if found is None:
            offline = online = 0
            for some, heirs in self._bases:
                used = some & bases
                offline |= heirs if used else 0
                online |= heirs if used & self._net else 0
            found = offline & self._newborn, online & self._newborn
            self._known_heirs[bases] = found
        return found

    def templates(self, callers: int) -> Iterator[tuple[int, int]]:
        """Callers, and what may be at the root of their templates."""
        roots = self._where(lambda p: p.type == _TEMPLATE)
        based = callers & self._where(lambda p: p.type in {_APP, _DISPOSABLE})
        if based and roots:
            yield based, roots
        for bases, heirs in self._bases:
            if callers & heirs:
                yield callers & heirs, bases

    # Which members may be one qube.

    def _others(self, edge: Edge) -> int:
        """The targets of an edge without those that can only be its source."""
        first = bits.lowest(edge.sources) if edge.sources else self.internet
        name = "" if first == self.internet else self.profiles[first].name
        same = self.population.called(name) if name else 0
        return edge.targets & ~same if same and not edge.sources & ~same else edge.targets

    def _identities(self) -> Iterator[Edge]:
        for number in range(self.size):
            if number == self.internet or self.profiles[number].name != _DOM0:
                yield Edge(1 << number, 1 << number, Way.SAME)

    def _alike(self) -> Iterator[Edge]:
        groups: dict[tuple[object, ...], dict[tuple[str, str], list[int]]] = {}
        for number, p in enumerate(self.profiles):
            if p.name == _DOM0:
                continue  # the admin qube passes nothing on
            name = p.name if p.name in self._spoken[Aspect.NAME] else ""
            tags = p.tags & self._spoken[Aspect.TAG]
            alike = (p.type, p.net, p.is_base, p.is_relay, name, tags)
            groups.setdefault(alike, {}).setdefault((p.name, p.uuid), []).append(number)
        for group in groups.values():
            everyone = bits.of(chain.from_iterable(group.values()), self.size)
            by_name = self._unions((name, numbers) for (name, _), numbers in group.items())
            by_uuid = self._unions((uuid, numbers) for (_, uuid), numbers in group.items())
            for (name, uuid), numbers in group.items():
                sending = everyone
                if name:
                    sending &= by_name[name] | by_name.get("", 0)
                if uuid:
                    sending &= by_uuid[uuid] | by_uuid.get("", 0)
                yield Edge(bits.of(numbers, self.size), sending, Way.SAME)
        outside = 1 << self.internet
        yield Edge(outside, outside, Way.SAME)

    def _unions(self, parts: Iterable[tuple[str, list[int]]]) -> dict[str, int]:
        found: dict[str, list[int]] = {}
        for key, numbers in parts:
            found.setdefault(key, []).extend(numbers)
        return {key: bits.of(numbers, self.size) for key, numbers in found.items()}


def needs_of(rules: Sequence[Rule]) -> dict[Need, None]:
    """Everything that a step of some chain may ask of a qube, nothing first."""
    found: dict[Need, None] = {Need(): None}
    permitting = [rule for rule in rules if rule.action is not Action.DENY]
    for rule in permitting:
        for token in (rule.source, rule.target, rule.redirect):
            need = None if token is None else _need(token)
            if need is not None:
                found[need] = None
    found.update(_joint_needs(permitting))
    return found


def _joint_needs(permitting: Sequence[Rule]) -> dict[Need, None]:
    """What is asked of callers by two rules at once: one asks, the other adds to its list."""
    found: dict[Need, None] = {}
    callers: dict[tuple[str, str], dict[Need, None]] = {}
    for rule in permitting:
        need = _need(rule.source)
        if need is not None:
            callers.setdefault((rule.service, rule.argument), {})[need] = None
    asking = {(r.service, r.argument, r.source): _need(r.source) for r in permitting if _lists(r)}
    for (service, argument, _), first in asking.items():
        for (other_service, other_argument), needs in callers.items():
            if first and _meet(service, other_service) and _meet(argument, other_argument):
                found.update(dict.fromkeys(filter(None, map(first.with_, needs))))
    return found


def _lists(rule: Rule) -> bool:
    """Whether the rule asks with a list of targets that other rules take part in."""
    return rule.action is Action.ASK and rule.redirect is None


def _meet(one: str, other: str) -> bool:
    """Whether a call can be about both services, or both arguments."""
    return one == other or EVERY in (one, other)


@lru_cache(maxsize=8192)
def _need(token: Token) -> Need | None:
    """What a token asks of a qube; None if it is nothing, or what only dom0 or nobody is."""
    match token.kind:
        case Kind.TAG | Kind.DISPVM_TAG:
            return Need(tags=frozenset({token.value}))
        case Kind.NAME | Kind.DISPVM_OF:
            return _named(token.value)
        case _:
            return None


def _named(reference: str) -> Need | None:
    if is_admin_qube(reference):
        return None
    uuid = _UUID.fullmatch(reference)
    if uuid is not None:
        return Need(uuid=uuid[1])
    try:
        return Need(name=str(QubeName.parse(reference)))
    except ValueRefusedError:
        return None


def _agree(need: Need, name: str, names: Sequence[str]) -> bool:
    """Whether a qube of a name that is spoken of, or of none of these, can meet a need."""
    if name:
        return need.name in {"", name} and not (name == _DOM0 and need.uuid)
    return need.name not in names[1:]
