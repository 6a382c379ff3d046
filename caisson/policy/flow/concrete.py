"""One system: its qubes, the disposables they may make, the outside world, and the edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import or_

from caisson.policy.flow import bits, newborn
from caisson.policy.flow.calls import Outcome
from caisson.policy.flow.edges import Edge, Options, Way, of_calls
from caisson.policy.flow.facts import Facts, Qube
from caisson.policy.flow.members import Defaults, Member, Population
from caisson.policy.flow.newborn import DISPOSABLE_CREATED_BY, Newborn
from caisson.policy.rules import Rule

INTERNET = "@internet"
_REMOTE = "RemoteVM"


class Concrete:
    """The members of one system, and every edge between them.

    Attributes:
        population: the qubes, then the outside world, then what there may be.
        internet: the number of the outside world.
        newborn: the disposables that may come to be, by number.
        edges: all edges.
        alive: the members that exist or may come to be.

    Args:
        rules: the policy.
        facts: the system.
        options: what is assumed of calls.

    Raises:
        CaissonError: see `newborn.all_of`.
    """

    def __init__(self, rules: Sequence[Rule], facts: Facts, options: Options) -> None:
        self._facts = facts
        self._qubes = list(facts.qubes.values())
        self._number = {qube.domain.name: i for i, qube in enumerate(self._qubes)}
        self.internet = len(self._qubes)
        self.newborn = dict(enumerate(newborn.all_of(facts, rules), self.internet + 1))
        self.population = self._populate()
        self._real = (1 << len(self._qubes)) - 1
        self._children: dict[tuple[str, str, bool, str, frozenset[str]], int] = {}
        self._siblings: dict[int, int] = {}
        self._by_root = self._rooted()
        self._relate()
        # By base: the callers whose disposables were told already, without and with replies.
        self._told: dict[int, tuple[int, int]] = {}
        self._possible = bits.of(self.newborn, self.population.size)
        self._calls = list(of_calls(rules, self, options))
        self.alive = self.living()
        self.edges = self.edges_among(self.alive)

    def edges_among(self, alive: int) -> list[Edge]:
        """The edges if only these members are ever there."""
        # What a disposable that never is asks for, or what asks for one, does not happen,
        # wherever it would be led.
        never = self.population.everybody & ~alive
        happen = (e for e in self._calls if _calls(e, alive) and _asks(e, never))
        return [*self._wiring(), *happen]

    def number(self, name: str) -> int | None:
        """The number of a qube, by name or `uuid:` form, or of the outside world."""
        found = self._facts.system.find(name)
        if found is not None:
            return self._number[found.name]
        return self.internet if name in {INTERNET, INTERNET[1:]} else None

    def name(self, number: int) -> str:
        """What a member is called."""
        if number in self.newborn:
            return str(self.newborn[number])
        return INTERNET if number == self.internet else self._qubes[number].domain.name

    # Who there is.

    def _populate(self) -> Population:
        defaults = [self._default(q.domain.default_dispvm) for q in self._qubes]
        wanted = {d for d in defaults if d is not None and d not in self._number}
        gone = {
            name: i for i, name in enumerate(sorted(wanted), len(self.newborn) + self.internet + 1)
        }
        members = [self._member(qube) for qube in self._qubes]
        members.append(Member(absent=True))
        members += [newborn.member_of(each, self._facts) for each in self.newborn.values()]
        members += [Member(name, absent=True) for name in gone]
        numbers = self._number | gone
        alike: dict[frozenset[int | None], list[int]] = {}
        for number, default in enumerate(defaults):
            its = None if default is None else numbers[default]
            alike.setdefault(frozenset({its}), []).append(number)
        for number, each in self.newborn.items():
            named = map(self._default, newborn.default_bases(each, self._facts))
            some = frozenset(None if d is None else numbers[d] for d in named)
            alike.setdefault(some, []).append(number)
        size = len(members)
        return Population(
            members,
            [
                Defaults(
                    bits.of(callers, size),
                    bits.of((base for base in some if base is not None), size),
                    maybe_none=None in some,
                )
                for some, callers in alike.items()
            ],
        )

    def _default(self, reference: str | None) -> str | None:
        """The name of a `default_dispvm`."""
        found = self._facts.system.find(reference) if reference else None
        return found.name if found else reference or None

    def _member(self, qube: Qube) -> Member:
        domain = qube.domain
        relayed = domain.type != _REMOTE or self._relay(qube) is not None
        return Member(
            domain.name,
            domain.type,
            domain.tags,
            domain.uuid,
            is_base=domain.template_for_dispvms,
            internal=bool(domain.internal),
            calls=relayed and domain.name != "dom0",
            answers=relayed and (domain.type != _REMOTE or bool(domain.transport_rpc)),
        )

    def _relay(self, remote: Qube) -> int | None:
        found = self._facts.system.find(remote.domain.relayvm or "")
        return None if found is None else self._number[found.name]

    # How it is wired.

    def _wiring(self) -> Iterator[Edge]:
        outside = self.internet
        for number, qube in enumerate(self._qubes):
            domain = qube.domain
            if qube.netvm is not None or qube.provides_network:
                yield from self._link(1 << number, qube)
            if qube.template in self._number:
                yield Edge(1 << self._number[qube.template], 1 << number, Way.TEMPLATE)
            for mark in domain.tags if domain.type == "DispVM" else ():
                maker = self._number.get(mark.removeprefix(DISPOSABLE_CREATED_BY))
                if mark.startswith(DISPOSABLE_CREATED_BY) and maker is not None:
                    yield from _both(1 << number, 1 << maker, Way.MAKER)
            if domain.type == _REMOTE:
                yield from _both(1 << number, 1 << outside, Way.REMOTE)
                relay = self._relay(qube)
                yield from () if relay is None else _both(1 << number, 1 << relay, Way.RELAY)
        yield from self._wiring_of_newborn()

    def _wiring_of_newborn(self) -> Iterator[Edge]:
        """One edge for all of a base: there are many, and each set of them is large."""
        heirs: dict[tuple[str, bool], list[int]] = {}
        for number, each in self.newborn.items():
            is_linked = newborn.network_of(each, self._facts) is not None
            heirs.setdefault((each.base, is_linked), []).append(number)
        for (base, is_linked), numbers in heirs.items():
            number, made = self._number[base], bits.of(numbers, self.population.size)
            yield Edge(1 << number, made, Way.BASE)
            if is_linked:
                yield from self._link(made, self._qubes[number])

    def _link(self, members: int, settings: Qube) -> Iterable[Edge]:
        """The link of members that have these network settings."""
        if settings.netvm in self._number:
            return _both(members, 1 << self._number[settings.netvm], Way.NETVM)
        if settings.netvm is not None or settings.provides_network:
            # An uplink; or a network qube that nobody knows, which may be one.
            return _both(members, 1 << self.internet, Way.NETWORK)
        return ()

    def templates(self, callers: int) -> Iterator[tuple[int, int]]:
        """Callers, and the qubes at the root of their templates."""
        for root, members in self._by_root.items():
            if callers & members:
                yield callers & members, 1 << root

    def _rooted(self) -> dict[int, int]:
        """The qubes that others come from, with these."""
        found: dict[int, list[int]] = {}
        for number, qube in enumerate(self._qubes):
            root = self._root(qube)
            if root != number:
                found.setdefault(root, []).append(number)
        for number, each in self.newborn.items():
            found.setdefault(self._root(self._facts.qubes[each.base]), []).append(number)
        return {root: bits.of(them, self.population.size) for root, them in found.items()}

    def _root(self, qube: Qube) -> int:
        seen: set[str] = set()
        while qube.template in self._number and qube.template not in seen:
            seen.add(qube.template)
            qube = self._facts.qubes[qube.template]
        return self._number[qube.domain.name]

    # Who comes to be.

    def _relate(self) -> None:
        """Note which disposables are made in the same way, and by whom."""
        children: dict[tuple[str, str, bool, str, frozenset[str]], list[int]] = {}
        siblings: dict[tuple[str, str, frozenset[str]], list[int]] = {}
        makers: set[str] = set()
        for number, each in self.newborn.items():
            wished = each.wished if each.deep else frozenset()
            key = (each.root, each.base, each.deep, each.maker, wished)
            children.setdefault(key, []).append(number)
            makers.add(each.maker)
        self._makers = frozenset(makers)
        for number, each in self.newborn.items():
            siblings.setdefault(self._as_maker(each), []).append(number)
        size = self.population.size
        self._children = {key: bits.of(numbers, size) for key, numbers in children.items()}
        for numbers in siblings.values():
            family = bits.of(numbers, size)
            self._siblings.update(dict.fromkeys(numbers, family))

    def _as_maker(self, each: Newborn) -> tuple[str, str, frozenset[str]]:
        name = each.name if each.name in self._makers else ""
        return each.root, name, self._facts.qubes[each.base].created_tags

    def born(self, outcome: Outcome, *, replies: bool) -> Iterator[tuple[int, int]]:
        """Callers, and the new disposables that are theirs; pairs told before are left out."""
        is_sure = bool(outcome.requests & ~self._possible)
        bases: dict[int, list[str]] = {}
        for base in bits.numbers(outcome.bases):
            without, with_replies = self._told.get(base, (0, 0))
            fresh = outcome.callers & ~with_replies & ~(0 if replies else without)
            if is_sure:  # else what is asked for may never be
                self._told[base] = (without | fresh, with_replies | (fresh if replies else 0))
            if fresh:
                bases.setdefault(fresh, []).append(self._qubes[base].domain.name)
        for callers, some in bases.items():
            yield from self._made(callers, some)

    def _made(self, callers: int, bases: Sequence[str]) -> Iterator[tuple[int, int]]:
        for number in bits.numbers(callers & self._real):
            root = self._qubes[number].domain.name
            made = (self._children[root, base, False, "", frozenset()] for base in bases)
            yield 1 << number, reduce(or_, made)
        left = callers & ~self._real
        while left:
            number = bits.lowest(left)
            group = left & self._siblings[number]
            left &= ~group
            root, name, wished = self._as_maker(self.newborn[number])
            made = (self._children[root, base, True, name, wished] for base in bases)
            yield group, reduce(or_, made)

    def living(self, never: int = 0) -> int:
        """Who exists, and all that can come to be by their calls, and so on.

        Args:
            never: those that do not come to be, whatever the rules say.
        """
        births = [e for e in self._calls if e.is_birth and e.way is Way.CALL]
        alive, before = self._real | 1 << self.internet, 0
        while alive != before:
            before, absent = alive, self.population.everybody & ~alive
            for birth in births:
                if birth.sources & before and _asks(birth, absent):
                    alive |= birth.targets & ~never
        return alive


def _calls(edge: Edge, alive: int) -> bool:
    """Whether one of those who make the call is alive."""
    return edge.outcome is not None and bool(edge.outcome.callers & alive)


def _asks(edge: Edge, never: int) -> bool:
    """Whether the call asks for anything but what never is."""
    return edge.outcome is not None and bool(edge.outcome.requests & ~never)


def _both(one: int, other: int, way: Way) -> Iterable[Edge]:
    return Edge(one, other, way), Edge(other, one, way)
