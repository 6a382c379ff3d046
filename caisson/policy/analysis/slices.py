"""Policies cut into slices: the rules that speak of one service and argument.

A decision knows one slice only, so two policies differ exactly where their slices do.
There are finitely many: one for each service and argument that a rule names, one for any other
argument of each of these services, and one for any other service.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import msgspec

from caisson.policy.calls import kinds
from caisson.policy.rules import EVERY, Action, Rule

Label = tuple[str, str]
"""Service and argument; `*` is any other than those that rules name."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A rule with what comparing it needs at hand.

    `source` and `target` are the keys of its tokens. `effect` is what follows where it decides,
    `meaning` all that it says; neither knows on which line it stands.
    """

    rule: Rule
    source: str
    target: str
    effect: tuple[Any, ...]
    meaning: tuple[Any, ...]

    @property
    def lists(self) -> bool:
        """Whether it asks, with targets that all rules together offer."""
        return self.rule.action is Action.ASK and self.rule.redirect is None


NOBODY = (Action.DENY, None, None, None, True, True)
"""The effect of no rule: a denial that the person is told of."""


class Slice(msgspec.Struct, frozen=True):
    """The rules of two policies about one service and argument, in order.

    `labels` are all services and arguments for which these are the rules; `service` and
    `argument` are one to decide calls with.
    """

    labels: tuple[Label, ...]
    service: str
    argument: str
    old: tuple[Entry, ...]
    new: tuple[Entry, ...]


def entry_of(rule: Rule) -> Entry:
    """Prepare a rule."""
    effect = (
        rule.action,
        None if rule.redirect is None else rule.redirect.key,
        None if rule.default_target is None else str(rule.default_target),
        rule.user,
        rule.notify,
        rule.autostart,
    )
    # `dom0` and `@adminvm` match the same, but add different entries to the lists of `ask`.
    offer = str(rule.redirect or rule.target)
    meaning = (rule.source.key, rule.target.key, offer, effect)
    return Entry(rule, rule.source.key, rule.target.key, effect, meaning)


def slices(old: Sequence[Rule], new: Sequence[Rule]) -> Iterator[Slice]:
    """All slices of two policies; those that consist of the same rules are one."""
    both = _Policy(old), _Policy(new)
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[tuple[Label, Label]]] = {}
    for kind, _ in kinds((*old, *new)):
        label, call = (kind.service, kind.argument), kind.call
        numbers = (both[0].numbers(*call), both[1].numbers(*call))
        # Where a file is included for many services, its rules are those of many slices.
        found.setdefault((both[0].named(numbers[0]), both[1].named(numbers[1])), []).append(
            (label, call)
        )
    for group in found.values():
        service, argument = group[0][1]
        yield Slice(
            tuple(label for label, _ in group),
            service,
            argument,
            both[0].entries_of(service, argument),
            both[1].entries_of(service, argument),
        )


def kept(slice_: Slice) -> dict[int, int]:
    """Rules that a change left as they were: number of the old one → number of the new one.

    Both rise together, so no call is decided by two kept rules that are not each other:
    of two rules that match, the earlier decides in both policies.
    """
    old = [entry.meaning for entry in slice_.old]
    new = [entry.meaning for entry in slice_.new]
    first = 0
    while first < min(len(old), len(new)) and old[first] == new[first]:
        first += 1
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    same = {number: number for number in range(first)}
    middle = SequenceMatcher(
        None, old[first : len(old) - last], new[first : len(new) - last], autojunk=False
    )
    for block in middle.get_matching_blocks():
        same |= {first + block.a + n: first + block.b + n for n in range(block.size)}
    return same | {len(old) - n: len(new) - n for n in range(1, last + 1)}


class _Policy:
    """The rules of one policy by the service and argument that they name."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._entries = [entry_of(rule) for rule in rules]
        self._places: dict[Label, list[int]] = {}
        self._names: dict[Any, int] = {}
        for number, rule in enumerate(rules):
            self._places.setdefault((rule.service, rule.argument), []).append(number)

    def numbers(self, service: str, argument: str) -> list[int]:
        """The numbers of the rules that speak of a call, in order."""
        places = ((service, argument), (service, EVERY), (EVERY, EVERY))
        return sorted(n for place in places for n in self._places.get(place, ()))

    def named(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """The rules, each by a number that rules of the same words on the same line share."""
        names = self._names
        entries = [self._entries[number] for number in numbers]
        return tuple(
            names.setdefault((entry.meaning, entry.rule.location), len(names)) for entry in entries
        )

    def entries_of(self, service: str, argument: str) -> tuple[Entry, ...]:
        """The rules that speak of a call."""
        return tuple(self._entries[number] for number in self.numbers(service, argument))
