"""Whether an assertion holds for every system, and if not, a system that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from caisson.errors import CaissonError
from caisson.policy.flow import bits
from caisson.policy.flow.edges import Options
from caisson.policy.flow.predicates import Aspect, Assertion, Predicate
from caisson.policy.flow.realise import Example, realise
from caisson.policy.flow.search import Step, reach
from caisson.policy.flow.universe import TooManyMembersError, Universe
from caisson.policy.rules import Rule

_MOST_TRIED = 40


class Answer(StrEnum):
    """What is known of an assertion."""

    HOLDS = "holds"
    FAILS = "fails"
    UNSURE = "may fail"


class Verdict(msgspec.Struct, frozen=True):
    """The answer about an assertion.

    `never`: what no qube is, by assumption. `example`: a system in which it fails, if it fails.
    """

    assertion: Assertion
    answer: Answer
    never: tuple[Predicate, ...]
    example: Example | None = None


def check(
    assertion: Assertion,
    rules: Sequence[Rule],
    options: Options,
    assumed: Sequence[Predicate] = (),
) -> Verdict:
    """Check an assertion for every system that fits some assumptions.

    Args:
        assertion: it.
        rules: the policy.
        options: what is assumed of calls.
        assumed: what no qube is.

    Returns:
        `HOLDS` only if no system has such a flow; `FAILS` only with a system that has it.

    Raises:
        CaissonError: no qube can be what the assertion speaks of, or it speaks of too much.
    """
    _check_distinct(assertion)
    never = (*assumed, *_apart(assertion))
    ends = (assertion.source, assertion.target)
    for strict in (False, True):
        try:
            universe = Universe(rules, options, ends, never, strict=strict)
        except TooManyMembersError:
            if not strict:
                raise
            break
        chains = _shortest(universe, assertion)
        if not chains:
            return Verdict(assertion, Answer.HOLDS, never)
        for steps in chains[:_MOST_TRIED]:
            example = realise(universe, steps, rules, assertion, never, options)
            if example is not None:
                return Verdict(assertion, Answer.FAILS, never, example)
    return Verdict(assertion, Answer.UNSURE, never)


def _check_distinct(assertion: Assertion) -> None:
    ends = (assertion.source.literals or (), assertion.target.literals or ())
    names = [{e.value for e in end if e.aspect is Aspect.NAME and not e.negated} for end in ends]
    if names[0] & names[1]:
        raise CaissonError(
            f"nothing to check: both ends of `{assertion}` are one qube",
            hint="the flows of a qube to itself are its own affair",
        )


def _apart(assertion: Assertion) -> tuple[Predicate, ...]:
    """The assumption that no qube is both ends at once, unless one end is a kind of the other."""
    source, target = assertion.source.literals, assertion.target.literals
    if source is None or target is None or source <= target or target <= source:
        return ()
    both = source | target
    if any(each.opposite() in both for each in both):
        return ()
    return (Predicate(both),)


def _shortest(universe: Universe, assertion: Assertion) -> list[list[Step]]:
    """For each member of the one end that is reached from the other, a shortest chain."""
    starts, ends = universe.those(assertion.source), universe.those(assertion.target)
    source, target = assertion.source.literals, assertion.target.literals
    if source is not None and target is not None and source < target:
        starts &= ~ends
    if source is not None and target is not None and target < source:
        ends &= ~starts
    for predicate, found in ((assertion.source, starts), (assertion.target, ends)):
        if not found:
            raise CaissonError(
                f"nothing to check: under these assumptions, no qube is `{predicate}`",
                hint="change the assertion or an assumption",
            )
    everything = (1 << 4 * universe.size) - 1
    reached = reach(universe.edges, starts, everything, 0)
    hits = reached.members & universe.receiving(ends)
    return sorted(map(reached.chain, bits.numbers(hits)), key=len)
