"""A chain of members made a system of qubes, and every call of it decided again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from caisson.policy import reference
from caisson.policy.flow.answers import Flows, Hop
from caisson.policy.flow.draft import Draft, Impossible, QubeDraft
from caisson.policy.flow.edges import Options, Way
from caisson.policy.flow.facts import Facts
from caisson.policy.flow.predicates import Assertion, Predicate
from caisson.policy.flow.requests import ends_of_call, wish_of
from caisson.policy.flow.search import Step
from caisson.policy.flow.universe import Universe
from caisson.policy.outcome import Allow, Ask, Request
from caisson.policy.rules import Action, Rule
from caisson.policy.system import SystemInfo

INTERNET = "@internet"


class Example(msgspec.Struct, frozen=True):
    """A system in which data flows, and how.

    `domains` is as in `internal.GetSystemInfo`.
    """

    domains: dict[str, dict[str, Any]]
    hops: tuple[Hop, ...]


class _Call(msgspec.Struct, frozen=True):
    """A call of a chain; `real` is the target that it has to be allowed to."""

    caller: str
    service: str
    argument: str
    asked: str
    real: str


def realise(
    universe: Universe,
    steps: Sequence[Step],
    rules: Sequence[Rule],
    assertion: Assertion,
    never: Sequence[Predicate],
    options: Options,
) -> Example | None:
    """Make a system in which the steps of a chain are possible.

    Returns:
        The system and the chain, after the reference evaluator decided every call of it anew and
        the whole system was searched for the flow; None if the members make no such system.
    """
    chain = _Chain(universe, rules)
    try:
        chain.follow(steps)
        domains = chain.draft.domains()
    except Impossible:
        return None
    ends, system = chain.ends(), SystemInfo.from_dict(domains)
    fits = (
        _is(assertion.source, ends[0])
        and _is(assertion.target, ends[1])
        and not any(_is(each, qube) for each in never for qube in chain.draft.qubes())
        and all(_is_allowed(call, rules, system) for call in chain.calls)
    )
    if not fits:
        return None
    example = Example(domains, tuple(chain.hops))
    flows = Flows(rules, Facts.from_dict(domains), options)
    found = {each.end for each in flows.onward(example.hops[0].source)}
    return example if example.hops[-1].target in found else None


def _is(predicate: Predicate, qube: QubeDraft | None) -> bool:
    if qube is None:
        return predicate.literals is None
    return predicate.holds(qube.profile())


def _is_allowed(call: _Call, rules: Sequence[Rule], system: SystemInfo) -> bool:
    caller, speaks_for = call.caller, ""
    domain = system.find(caller)
    if domain is not None and domain.relayvm:
        caller, speaks_for = domain.relayvm, caller
    request = Request(call.service, call.argument, caller, call.asked, speaks_for)
    decision = reference.decide(request, rules, system)
    answers: Iterable[Any] = [decision]
    if isinstance(decision, Ask):
        answers = map(decision.choose, decision.targets)
    return any(
        isinstance(answer, Allow) and _plain(answer.target, system) == call.real
        for answer in answers
    )


def _plain(target: str, system: SystemInfo) -> str:
    """A target with its qube by name."""
    base = target.removeprefix("@dispvm:")
    found = system.find(base)
    name = base if found is None else found.name
    return name if base == target else f"@dispvm:{name}"


class _Chain:
    """The steps of a chain, told of qubes."""

    def __init__(self, universe: Universe, rules: Sequence[Rule]) -> None:
        self._universe = universe
        self.draft = Draft(universe, rules)
        self._line: list[QubeDraft | None] = []
        self.hops: list[Hop] = []
        self.calls: list[_Call] = []

    def ends(self) -> tuple[QubeDraft | None, QubeDraft | None]:
        """The first and the last of the chain."""
        return self._line[0], self._line[-1]

    def follow(self, steps: Sequence[Step]) -> None:
        """Make the qubes, and what the steps need besides.

        Raises:
            Impossible: these are of no system.
        """
        self._line = self._line_up(steps)
        moves = [step for step in steps if step.edge.way is not Way.SAME]
        for place, step in enumerate(moves):
            self._take(step, *self._line[place : place + 2])

    def _line_up(self, steps: Sequence[Step]) -> list[QubeDraft | None]:
        """The qubes in order; None is the outside world."""
        numbers: list[list[int]] = [[steps[0].source]]
        for step in steps:
            if step.edge.way is Way.SAME:
                numbers[-1].append(step.target)
            else:
                numbers.append([step.target])
        size = self._universe.size
        return [self.draft.add([number % size for number in same]) for same in numbers]

    def _take(self, step: Step, source: QubeDraft | None, target: QubeDraft | None) -> None:
        names = [INTERNET if qube is None else qube.name for qube in (source, target)]
        hop = Hop(names[0], names[1], step.edge.way)
        if source is not None and target is not None:
            if step.edge.way is Way.TEMPLATE:
                target.template = source.name
            if step.edge.way is Way.RELAY:
                remote, relay = (source, target) if source.type == "RemoteVM" else (target, source)
                remote.set_relay(relay)
            if step.edge.way is Way.BASE:
                if target.template is not None:
                    raise Impossible
                target.template = source.name
                target.add_heritage(source)
            if step.edge.outcome is not None:
                hop = self._called(step, source, target, hop)
        self.hops.append(hop)

    def _called(self, step: Step, source: QubeDraft, target: QubeDraft, hop: Hop) -> Hop:
        outcome, size = step.edge.outcome, self._universe.size
        if outcome is None:
            raise Impossible
        step = Step(step.source % size, step.target % size, step.edge)
        caller_number, number = ends_of_call(step)
        turned = step.edge.way is Way.REPLY or caller_number == step.target != step.source
        caller, called = (target, source) if turned else (source, target)
        if caller_number not in (step.source, step.target):
            caller = self.draft.beside(caller_number)
            called = source if number == step.source else target
        base, real, known = None, called.name, {number: called}
        if step.edge.way is Way.NOTES:
            self.draft.root(source, target)
        if step.edge.way in {Way.ADMINISTERS, Way.NOTES}:
            real = "dom0"
        elif not outcome.targets >> number & 1:
            base = self.draft.base_for(called, outcome.bases)
            known = {base: self.draft.bear(called, caller, base)}
            real = f"@dispvm:{known[base].name}"
        wish = wish_of(self._universe.population, outcome, number, base)
        if wish.default is not None:
            default = known.get(wish.default) or self.draft.beside(wish.default)
            caller.set_default(default.name)
        elif wish.word == "@dispvm":
            caller.set_default(None)
        asked = wish.word
        if wish.member is not None:
            wished = known.get(wish.member) or self.draft.beside(wish.member)
            wished.is_base |= bool(wish.word)
            asked += wished.name
        service, argument = outcome.kind.call
        self.calls.append(_Call(caller.name, service, argument, asked, real))
        return msgspec.structs.replace(
            hop,
            caller=caller.name,
            service=Request(service, argument, "", "").descriptor,
            request=asked,
            rule=outcome.rule.location.rule,
            asked=outcome.rule.action is Action.ASK,
        )
