"""All calls that a policy lets through, by groups of callers that it treats alike.

One pass over the rules of a service decides all callers and all targets at once: the first rule
that matches a request takes it out of what is left. That is `caisson.policy.reference` for sets;
a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from caisson.policy.flow.members import Population
from caisson.policy.rules import EVERY, Action, Rule
from caisson.policy.tokens import Kind, Token


class Place(msgspec.Struct, frozen=True):
    """A service with an argument; `None` stands for any that no rule names."""

    service: str | None
    argument: str | None

    def __str__(self) -> str:
        if self.service is None:
            return "any other service"
        if self.argument is None:
            return f"{self.service}+*"
        return self.service + (self.argument if self.argument != "+" else "")


class Outcome(msgspec.Struct, frozen=True):
    """What one rule lets one group of callers do.

    `requests` are those it matches; `targets`, the members that are really called; `bases`, those
    of which a new disposable answers.
    """

    place: Place
    rule: Rule
    callers: int
    requests: int
    targets: int
    bases: int


def places(
    rules: Sequence[Rule],
    also: Collection[str],
    only: Collection[str] | None = None,
) -> Iterator[tuple[Place, tuple[Rule, ...]]]:
    """Every service and argument that rules tell apart, with the rules about it in order.

    Args:
        rules: the policy.
        also: services to tell apart although no rule names them.
        only: leave out all services but these.
    """
    by_service: dict[str, list[int]] = {}
    for number, rule in enumerate(rules):
        by_service.setdefault(rule.service, []).append(number)
    general = by_service.pop(EVERY, [])
    told_apart = {*by_service, *(also if general else ())}
    for service in sorted(told_apart if only is None else only):
        about = [rules[i] for i in sorted(by_service.get(service, []) + general)]
        arguments = {rule.argument for rule in about} - {EVERY}
        for argument in (*sorted(arguments), None):
            spoken = tuple(r for r in about if r.argument in (EVERY, argument))
            if spoken:
                yield Place(service, argument), spoken
    if general and only is None:
        yield Place(None, None), tuple(rules[i] for i in general)


def outcomes(
    place: Place, rules: Sequence[Rule], population: Population, *, asking: bool
) -> Iterator[Outcome]:
    """What the rules of one service let happen.

    Args:
        place: service and argument.
        rules: those about them, in order.
        population: who there is.
        asking: whether a person may say yes.
    """
    for callers, spoken in _groups(rules, population):
        for same in population.defaults:
            group = callers & same.callers
            if group:
                walk = _Walk(place, population, group, spoken, same.bases)
                yield from walk.outcomes(asking=asking, maybe_none=same.maybe_none)


def _groups(
    rules: Iterable[Rule], population: Population
) -> list[tuple[int, tuple[Rule, ...]]]:
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
        self,
        place: Place,
        population: Population,
        callers: int,
        rules: tuple[Rule, ...],
        defaults: int,
    ) -> None:
        self._place = place
        self._people = population
        self._callers = callers
        self._rules = rules
        self._defaults = defaults
        self._offered: int | None = None

    def outcomes(self, *, asking: bool, maybe_none: bool) -> Iterator[Outcome]:
        """The first rule that matches a request decides it."""
        people = self._people
        left = people.everybody | people.admin_keyword | people.default_keyword
        left |= people.disposables(people.base) | people.own_disposables(self._defaults)
        left |= people.baseless if maybe_none else 0
        for rule in self._rules:
            requests = left & people.requests(rule.target)
            left &= ~requests
            if not requests or rule.action is Action.DENY:
                continue
            if rule.action is Action.ASK and not asking:
                continue
            targets, bases = self._real(rule, requests)
            if targets or bases:
                yield Outcome(self._place, rule, self._callers, requests, targets, bases)

    def _real(self, rule: Rule, requests: int) -> tuple[int, int]:
        """The members, and the bases of new disposables, that requests lead to."""
        if rule.redirect is not None:
            targets, bases = self._redirected(rule.redirect, requests)
        elif rule.action is Action.ASK:
            targets, bases = self._choices()
        else:
            people = self._people
            targets = people.named(requests)
            if requests & people.admin_keyword:
                targets |= people.dom0
            bases = people.bases_asked(requests) | people.own_bases_asked(requests)
        # A disposable never runs yet, so that `autostart=no` rules it out. Whether a qube runs
        # changes all the time: every one is taken to.
        bases = bases & self._people.base if rule.autostart else 0
        return targets & self._people.answering, bases

    def _redirected(self, redirect: Token, requests: int) -> tuple[int, int]:
        people = self._people
        match redirect.kind:
            case Kind.DISPVM:
                own = people.own_disposables(self._defaults)
                if requests and not requests & ~own:
                    return 0, people.own_bases_asked(requests)
                return 0, self._defaults
            case Kind.DISPVM_OF:
                return 0, people.called(redirect.value)
            case _:
                return people.matching(redirect), 0

    def _choices(self) -> tuple[int, int]:
        """What a person may pick from; all rules of the service take part in the list."""
        if self._offered is None:
            self._offered = self._offers()
        people, offered = self._people, self._offered
        targets, bases = people.named(offered), people.bases_asked(offered)
        if offered & people.admin_keyword:
            targets |= people.dom0
        if offered & people.own_keyword:
            bases |= self._defaults
        return targets & ~people.internal, bases & ~people.internal

    def _offers(self) -> int:
        offered = 0
        for rule in reversed(self._rules):
            if rule.action is Action.DENY:
                offered &= ~self._people.withdrawn(rule.target)
            else:
                offered |= self._people.offers(rule.redirect or rule.target)
        return offered
