"""Why data may flow: each edge leads from a set of members to another, for one reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum, StrEnum
from typing import Protocol

import msgspec

from caisson.policy.calls import kinds
from caisson.policy.flow.calls import Outcome, outcomes
from caisson.policy.flow.members import Population
from caisson.policy.rules import EVERY, Action, Rule


class Power(Enum):
    """What a service of the admin qube gives to its caller."""

    NONE = "nothing: it takes and returns what the caller may know"
    NOTES = "it notes what the caller says at the template that the caller comes from"
    READS = "it tells of the qube it is called on, or, called on the admin qube, of all"
    USES = "it reaches into the qube it is called on, or, called on the admin qube, into all"
    CHANGES = "as USES, and it may alter what its qube is allowed to do"


class Way(StrEnum):
    """The kind of a reason."""

    CALL = "call"
    REPLY = "reply"
    ADMINISTERS = "administers"
    NOTES = "notes"
    NETVM = "netvm"
    NETWORK = "network"
    TEMPLATE = "template"
    BASE = "made of"
    MAKER = "made by"
    RELAY = "relay"
    REMOTE = "remote"
    SAME = "same"


class Edge(msgspec.Struct, frozen=True):
    """Data may flow from any of `sources` to any of `targets`.

    `outcome` is the call, if one is the reason; `is_birth`: a disposable comes to be by it.
    """

    sources: int
    targets: int
    way: Way
    outcome: Outcome | None = None
    is_birth: bool = False


class World(Protocol):
    """Where calls are made: who there is, and which disposables a call can bring about."""

    population: Population

    def born(self, outcome: Outcome, *, replies: bool) -> Iterator[tuple[int, int]]:
        """Callers, and the new disposables that are theirs; pairs told before may be left out."""

    def templates(self, callers: int) -> Iterator[tuple[int, int]]:
        """Callers, and the qubes at the root of their templates."""


class Options(msgspec.Struct, frozen=True):
    """What is assumed of calls.

    Args:
        asking: a person may say yes to an `ask`.
        one_way: services whose replies carry nothing.
        only: leave out all other services than these; None: none left out.
        power: what a service of the admin qube gives to its caller.
        admin_services: those whose power is not NONE, as far as they are known by name.
    """

    power: Callable[[str], Power]
    admin_services: frozenset[str]
    asking: bool = True
    one_way: frozenset[str] = frozenset()
    only: frozenset[str] | None = None


def of_calls(rules: Sequence[Rule], world: World, options: Options) -> Iterator[Edge]:
    """The edges that calls bring about."""
    also = _told_apart(rules, options) if options.only is None else options.only
    for kind, spoken in kinds(rules, also):
        if options.only is not None and kind.service not in options.only:
            continue
        power = Power.NONE if kind.service == EVERY else options.power(kind.service)
        replies = kind.service not in options.one_way
        for outcome in outcomes(kind, spoken, world.population, asking=options.asking):
            yield from _of_outcome(outcome, world, replies=replies)
            if power is not Power.NONE and outcome.targets & world.population.dom0:
                yield from _of_power(outcome, world, power)


def _told_apart(rules: Sequence[Rule], options: Options) -> Collection[str]:
    """Of the admin services that no rule names, one of each power: rules treat them alike."""
    named = {rule.service for rule in rules}
    unnamed = sorted(options.admin_services - named)
    return {options.power(service): service for service in unnamed}.values()


def _of_outcome(outcome: Outcome, world: World, *, replies: bool) -> Iterator[Edge]:
    callers = outcome.callers
    pairs = [(callers, outcome.targets, False)] if outcome.targets else []
    if outcome.bases:
        born = world.born(outcome, replies=replies)
        pairs += [(makers, made, True) for makers, made in born]
    for sources, targets, is_birth in pairs:
        yield Edge(sources, targets, Way.CALL, outcome, is_birth)
        if replies:
            yield Edge(targets, sources, Way.REPLY, outcome, is_birth)


def _of_power(outcome: Outcome, world: World, power: Power) -> Iterator[Edge]:
    """What a call that the admin qube serves does to the qube that the caller names."""
    if power is Power.NOTES:
        for some, templates in world.templates(outcome.callers):
            yield Edge(some, templates, Way.NOTES, outcome)
        return
    people = world.population
    callers, everybody = outcome.callers, people.everybody & ~people.dom0
    requests = outcome.requests
    if outcome.rule.redirect is None and outcome.rule.action is Action.ALLOW:
        requests &= people.dom0 | people.admin_keyword  # all others go where they say
    named = people.named(requests) & ~people.dom0
    is_global = requests != named
    subjects = everybody if is_global else named
    yield Edge(subjects, callers, Way.ADMINISTERS, outcome)
    if power is Power.READS:
        return
    yield Edge(callers, subjects, Way.ADMINISTERS, outcome)
    if power is Power.CHANGES and named:
        # With another tag or another netvm, such a qube could exchange data with any.
        yield Edge(named, everybody, Way.ADMINISTERS, outcome)
        yield Edge(everybody, named, Way.ADMINISTERS, outcome)
