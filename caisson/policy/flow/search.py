"""Breadth-first search over sets: who is reached, and by which shortest chain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from caisson.policy.flow import bits
from caisson.policy.flow.edges import Edge


class Step(NamedTuple):
    """One step of a chain: from a member to the next."""

    source: int
    target: int
    edge: Edge


class Reached:
    """Who can be reached from some members.

    Args:
        start: the members that it began with.
        members: all that are reached, with those.
        first: member → the step by which it was reached first; the nearest first.
    """

    def __init__(self, start: int, members: int, first: dict[int, Step]) -> None:
        self.start = start
        self.members = members
        self.first = first

    def chain(self, member: int) -> list[Step]:
        """A shortest chain to a member, from one of the first."""
        steps: list[Step] = []
        while member in self.first:
            step = self.first[member]
            steps.append(step)
            member = step.source
        return steps[::-1]


def reach(edges: Iterable[Edge], start: int, within: int, ends: int) -> Reached:
    """Follow edges.

    Args:
        edges: all of them.
        start: where it begins.
        within: the members that exist.
        ends: members that pass nothing on, unless it begins there.
    """
    reached, frontier, first = start, start, {}
    pending = list(edges)
    while frontier:
        fresh, rest = 0, []
        for edge in pending:
            active = edge.sources & frontier
            if not active:
                rest.append(edge)
                continue
            found = edge.targets & within & ~reached & ~fresh
            if found:
                fresh |= found
                via = bits.lowest(active)
                for member in bits.numbers(found):
                    first[member] = Step(via, member, edge)
        pending = rest
        reached |= fresh
        frontier = fresh & ~ends
    return Reached(start, reached, first)


def backwards(edges: Iterable[Edge]) -> list[Edge]:
    """The same edges, each the other way round."""
    return [Edge(e.targets, e.sources, e.way, e.outcome, e.is_birth) for e in edges]
