"""Who gets data from a qube, or to it, each with a shortest chain of reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from caisson.errors import QubeNotFoundError
from caisson.names import shown
from caisson.policy.flow import bits
from caisson.policy.flow.concrete import Concrete
from caisson.policy.flow.edges import Edge, Options, Way
from caisson.policy.flow.facts import Facts
from caisson.policy.flow.requests import ends_of_call, wish_of
from caisson.policy.flow.search import Reached, Step, backwards, reach
from caisson.policy.rules import Action, Rule


class Hop(msgspec.Struct, frozen=True):
    """One step of a chain, in words.

    Where a call is the reason, `caller` calls `service` and asks for `request`; `rule` lets it,
    and if `asked`, a person too. Else these are None.
    """

    source: str
    target: str
    way: Way
    caller: str | None = None
    service: str | None = None
    request: str | None = None
    rule: str | None = None
    asked: bool = False


class Chain(msgspec.Struct, frozen=True):
    """A shortest way for data between the qube in question and `end`.

    `is_new`: `end` does not exist; it is a disposable that may come to be.
    """

    end: str
    is_new: bool
    hops: tuple[Hop, ...]


class Flows:
    """The flows of one system under one policy.

    Args:
        rules: the policy.
        facts: the system.
        options: what is assumed of calls.

    Raises:
        CaissonError: the rules name too many disposables that do not exist.
    """

    def __init__(self, rules: Sequence[Rule], facts: Facts, options: Options) -> None:
        self._system = Concrete(rules, facts, options)

    def onward(self, name: str) -> list[Chain]:
        """Who can get data from a qube.

        Raises:
            QubeNotFoundError: there is no such qube.
        """
        return list(self._chains(self._reach(name, self._system.edges), turned=False))

    def inward(self, name: str) -> list[Chain]:
        """Who can get data to a qube.

        Raises:
            QubeNotFoundError: there is no such qube.
        """
        return list(self._chains(self._reach(name, backwards(self._system.edges)), turned=True))

    def name(self, reference: str) -> str:
        """The name that chains have for a qube.

        Raises:
            QubeNotFoundError: there is no such qube.
        """
        return self._system.name(self._number(reference))

    def _number(self, reference: str) -> int:
        number = self._system.number(reference)
        if number is None:
            raise QubeNotFoundError(f"there is no qube `{shown(reference)}`")
        return number

    def _reach(self, name: str, edges: Sequence[Edge]) -> Reached:
        number, system = self._number(name), self._system
        return reach(edges, 1 << number, system.alive, system.population.dom0)

    def _chains(self, reached: Reached, *, turned: bool) -> Iterator[Chain]:
        system, hops = self._system, dict[int, tuple[Hop, ...]]()
        for member in bits.numbers(reached.start):
            hops[member] = ()
        for member, step in reached.first.items():  # in the order of their distance
            told = self._hop(Step(step.target, step.source, step.edge) if turned else step)
            before = hops[step.source]
            hops[member] = (told, *before) if turned else (*before, told)
        ends = [(len(way), system.name(member), member) for member, way in hops.items() if way]
        for _, name, member in sorted(ends):
            yield Chain(name, member in system.newborn, hops[member])

    def _hop(self, step: Step) -> Hop:
        system, edge = self._system, step.edge
        source, target = system.name(step.source), system.name(step.target)
        if edge.outcome is None:
            return Hop(source, target, edge.way)
        outcome = edge.outcome
        caller, called = ends_of_call(step)
        made = system.newborn.get(called)
        base = None if made is None else system.number(made.base)
        wish = wish_of(system.population, outcome, called, base)
        return Hop(
            source,
            target,
            edge.way,
            caller=system.name(caller),
            service=str(outcome.kind),
            request=wish.text(system.name),
            rule=outcome.rule.location.rule,
            asked=outcome.rule.action is Action.ASK,
        )
