"""Of all requests that lead to a step, one to show or to decide again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from caisson.errors import InternalError
from caisson.policy.flow import bits
from caisson.policy.flow.calls import Outcome
from caisson.policy.flow.edges import Way
from caisson.policy.flow.members import Population
from caisson.policy.flow.search import Step


class Wish(NamedTuple):
    """The target of a request: a keyword, or a prefix and the member whose name follows.

    `default` is the member that has to be the `default_dispvm` of the caller.
    """

    word: str
    member: int | None = None
    default: int | None = None

    def text(self, name: Callable[[int], str]) -> str:
        """The wish as a caller writes it."""
        return self.word + ("" if self.member is None else name(self.member))


def ends_of_call(step: Step) -> tuple[int, int]:
    """Who calls in a step that a call is the reason of, and who is called or administered.

    Raises:
        InternalError: the step has another reason.
    """
    outcome = step.edge.outcome
    if outcome is None:
        raise InternalError("a step of a chain has no call")
    if outcome.callers >> step.source & 1 and step.edge.way is not Way.REPLY:
        return step.source, step.target
    if outcome.callers >> step.target & 1:
        return step.target, step.source
    # A third one administers one of the two.
    subjects = outcome.requests
    return bits.lowest(outcome.callers), (
        step.source if subjects >> step.source & 1 else step.target
    )


def wish_of(people: Population, outcome: Outcome, called: int, base: int | None) -> Wish:
    """The plainest request of those that an outcome is about.

    Args:
        people: who there is.
        outcome: it.
        called: who answers.
        base: if that is a new disposable, its base.
    """
    requests = outcome.requests
    if base is None and people.named(requests) >> called & 1:
        return Wish("", called)
    if base is not None and people.own_bases_asked(requests) >> base & 1:
        return Wish("@dispvm", None, base)
    if base is not None and people.bases_asked(requests) >> base & 1:
        return Wish("@dispvm:", base)
    return _any_wish(people, requests)


def _any_wish(people: Population, requests: int) -> Wish:
    """The plainest of requests that all lead to the same."""
    words = {
        "@adminvm": people.admin_keyword,
        "@default": people.default_keyword,
        "@dispvm": people.baseless,
    }
    for word, bit in words.items():
        if requests & bit:
            return Wish(word)
    if bases := people.bases_asked(requests):
        return Wish("@dispvm:", bits.lowest(bases))
    if own := people.own_bases_asked(requests):
        return Wish("@dispvm", None, bits.lowest(own))
    named = people.named(requests)
    return Wish("", bits.lowest(named & people.dom0 or named))
