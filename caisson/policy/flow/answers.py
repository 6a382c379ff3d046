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

    def _reach(self, name: str, edges: Sequence[Edge]) -> Reached:
        number = self._system.number(name)
        if number is None:
            raise QubeNotFoundError(f"there is no qube `{shown(name)}`")
        system = self._system
        return reach(edges, 1 << number, system.alive, system.population.dom0)

    def _chains(self, reached: Reached, *, turned: bool) -> Iterator[Chain]:
        system = self._system
        found = [
            (len(steps), system.name(member), member, steps)
            for member in bits.numbers(reached.members & ~reached.start)
            for steps in [reached.chain(member)]
        ]
        for _, name, member, steps in sorted(found, key=lambda each: each[:2]):
            if turned:
                steps = [Step(s.target, s.source, s.edge) for s in reversed(steps)]
            yield Chain(name, member in system.newborn, tuple(map(self._hop, steps)))

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
            service=str(outcome.place),
            request=wish.text(system.name),
            rule=outcome.rule.location.rule,
            asked=outcome.rule.action is Action.ASK,
        )
