"""All calls that a policy lets through, by groups of callers that it treats alike.

One pass over the rules of a service decides all callers and all targets at once: the first rule
that matches a request takes it out of what is left. That is `caisson.policy.reference` for sets;
a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from caisson.policy.calls import CallKind
from caisson.policy.flow.members import Defaults, Population
from caisson.policy.rules import Action, Rule
from caisson.policy.tokens import Kind


class Outcome(msgspec.Struct, frozen=True):
    """What one rule lets one group of callers do.

    `requests` are those it matches; `targets`, the members that are really called; `bases`, those
    of which a new disposable answers.
    """

    kind: CallKind
    rule: Rule
    callers: int
    requests: int
    targets: int
    bases: int


def outcomes(
    kind: CallKind, rules: Sequence[Rule], population: Population, *, asking: bool
) -> Iterator[Outcome]:
    """What the rules of one service let happen.

    Args:
        kind: service and argument.
        rules: those about them, in order.
        population: who there is.
        asking: whether a person may say yes.
    """
    for callers, spoken in _groups(rules, population):
        yield from _Walk(kind, population, callers, spoken).outcomes(asking=asking)


def _groups(rules: Iterable[Rule], population: Population) -> list[tuple[int, tuple[Rule, ...]]]:
    """Callers of whom the same rules speak, with these rules."""
    groups: list[tuple[int, tuple[Rule, ...]]] = [(population.callers, ())]
    for rule in rules:
        meant = population.matching(rule.source)
        divided = []
        for callers, spoken in groups:
            inside = callers & meant
            if inside:
                divided.append((inside, (*spoken, rule)))
            if inside != callers:
                divided.append((callers & ~meant, spoken))
        groups = divided
    return [(callers, spoken) for callers, spoken in groups if spoken]


class _Walk:
    """One group of callers, and the rules that speak of it."""

    def __init__(
        self, kind: CallKind, population: Population, callers: int, rules: tuple[Rule, ...]
    ) -> None:
        self._kind = kind
        self._people = population
        self._callers = callers
        self._rules = rules
        self._defaults = [
            Defaults(callers & same.callers, same.bases, same.maybe_none)
            for same in population.defaults
            if callers & same.callers
        ]
        self._offered: int | None = None

    def outcomes(self, *, asking: bool) -> Iterator[Outcome]:
        """The first rule that matches a request decides it."""
        left = self._people.all_requests
        for rule in self._rules:
            requests = left & self._people.requests(rule.target)
            left &= ~requests
            if not requests or rule.action is Action.DENY:
                continue
            if rule.action is Action.ASK and not asking:
                continue
            for outcome in self._of(rule, requests):
                if outcome.targets or outcome.bases:
                    yield outcome

    def _of(self, rule: Rule, requests: int) -> Iterator[Outcome]:
        """What follows for all callers, and for those with one `default_dispvm` or another."""
        people = self._people
        own = requests & people.own_requests
        plain = requests & ~own
        is_open = rule.redirect is None and rule.action is Action.ALLOW
        targets, bases, defaults = self._real(rule, plain)
        if plain:
            yield self._outcome(rule, self._callers, plain, targets, bases)
        for same in self._defaults if own or defaults else ():
            asked = own & (
                people.own_disposables(same.bases) | (people.baseless if same.maybe_none else 0)
            )
            found = people.own_bases_asked(asked) & (defaults or people.base)
            if asked and is_open:
                yield self._outcome(rule, same.callers, asked, 0, found)
            elif asked and defaults:
                yield self._outcome(rule, same.callers, asked, targets, bases | found)
            elif asked and not plain:
                yield self._outcome(rule, same.callers, asked, targets, bases)
            if plain and defaults:
                yield self._outcome(rule, same.callers, plain, 0, same.bases & defaults)

    def _outcome(
        self, rule: Rule, callers: int, requests: int, targets: int, bases: int
    ) -> Outcome:
        # A disposable never runs yet, so that `autostart=no` rules it out. Whether a qube runs
        # changes all the time: every one is taken to.
        people = self._people
        sets = (
            callers,
            requests,
            targets & people.answering,
            bases & people.base if rule.autostart else 0,
        )
        return Outcome(self._kind, rule, *map(people.shared, sets))

    def _real(self, rule: Rule, requests: int) -> tuple[int, int, int]:
        """The members, and the bases of new disposables, that requests lead to.

        The third are the bases that are among these where they are the caller's `default_dispvm`.
        """
        people = self._people
        if rule.redirect is not None:
            match rule.redirect.kind:
                case Kind.DISPVM:
                    return 0, 0, people.base
                case Kind.DISPVM_OF:
                    return 0, people.called(rule.redirect.value), 0
                case _:
                    return people.matching(rule.redirect), 0, 0
        if rule.action is Action.ASK:
            return self._choices()
        targets = people.named(requests)
        if requests & people.admin_keyword:
            targets |= people.dom0
        return targets, people.bases_asked(requests), 0

    def _choices(self) -> tuple[int, int, int]:
        """What a person may pick from; all rules of the service take part in the list."""
        if self._offered is None:
            self._offered = self._offers()
        people, offered = self._people, self._offered
        targets, bases = people.named(offered), people.bases_asked(offered)
        if offered & people.admin_keyword:
            targets |= people.dom0
        seen = ~people.internal
        defaults = people.base & seen if offered & people.own_keyword else 0
        return targets & seen, bases & seen, defaults

    def _offers(self) -> int:
        offered = 0
        for rule in reversed(self._rules):
            if rule.action is Action.DENY:
                offered &= ~self._people.withdrawn(rule.target)
            else:
                offered |= self._people.offers(rule.redirect or rule.target)
        return offered
