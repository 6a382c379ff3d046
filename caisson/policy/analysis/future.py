"""What a change of policy changes for qubes that do not exist yet.

For each rule of the old policy and each of the new one: is there a call that the one decides in
the one and the other in the other, and is it decided differently? `profiles` says why a handful
of calls between made-up qubes is enough to know. Each is put to the real evaluators.

A question differs too if its list does. A target is on one list and not on the other because of
a rule that offers it and, at most, one that denies it; so the source gets the tags that these two
rules demand in addition, and the target on the list is one more made-up qube.

Of two rules that the change left as they were, and in the same order, only those of the same
text can decide one call, because the earlier one would decide it in both policies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import msgspec

from caisson.policy.analysis.census import Case, Census
from caisson.policy.analysis.outcome import Direction, Outcome, content, direction, outcome_of
from caisson.policy.analysis.profiles import Demand, Plan, demanded, picks
from caisson.policy.analysis.slices import NOBODY, Entry, Label, Slice, kept
from caisson.policy.analysis.tables import Table, implied, keys_of, table_of
from caisson.policy.index import Index
from caisson.policy.outcome import Request
from caisson.policy.resolution import Call
from caisson.policy.rules import Action, Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import DEFAULT, Kind, Token

_Pair = tuple[Entry | None, Entry | None]
_Extra = tuple[tuple[Token, ...], Plan | None]


class Possible(msgspec.Struct, frozen=True):
    """Calls that two rules decide differently in some system with more qubes than there are.

    Or in one where other qubes run, if that matters for a rule; then none is `made`.
    `source`, `target` and the qubes `made` for it are an example with no more names and tags
    than these rules demand, so it stands for all qubes that have them. `pick` is a qube that one
    of the lists offers, where that is the difference.
    """

    services: tuple[Label, ...]
    old: Outcome
    new: Outcome
    source: Domain
    target: str
    made: tuple[Domain, ...]
    pick: str | None
    qubes: tuple[Domain, ...]

    @property
    def direction(self) -> Direction:
        """Whether qubes may do more by it."""
        return direction(self.old, self.new)


class Forecast:
    """Two policies on all systems that contain the given one.

    Args:
        old: the rules of the one.
        new: the rules of the other.
        system: the qubes that there are.
        any_admin: whether it is unknown which tags dom0 has, and its default_dispvm.
    """

    def __init__(
        self,
        old: Sequence[Rule],
        new: Sequence[Rule],
        system: SystemInfo,
        *,
        any_admin: bool = False,
    ) -> None:
        self._census = Census(system, (*old, *new), any_admin=any_admin)
        self._index = (Index(old), Index(new))
        self._found: dict[object, tuple[tuple[Label, ...], Possible]] = {}

    def compare(self, slice_: Slice) -> None:
        """Find all that differs for the services of a slice."""
        for pair, found in self._differences(slice_):
            # How the lists of the example differ is no difference between services.
            places = [entry and entry.rule.location for entry in pair]
            key = (*places, found.old.decision, found.new.decision)
            labels, first = self._found.get(key, ((), found))
            self._found[key] = (labels + slice_.labels, first)

    def differ(self, slice_: Slice) -> bool:
        """Whether anything differs for the services of a slice."""
        return next(self._differences(slice_), None) is not None

    def _differences(self, slice_: Slice) -> Iterator[tuple[_Pair, Possible]]:
        if [e.meaning for e in slice_.old] == [e.meaning for e in slice_.new]:
            return
        search = _Search(self._census, self._index, slice_)
        for pair in search.pairs():
            found = search.difference(pair)
            if found is not None:
                yield pair, found

    def changes(self) -> list[Possible]:
        """All that was found, each pair of rules once."""
        return [
            msgspec.structs.replace(found, services=labels)
            for labels, found in self._found.values()
        ]


class _Known(msgspec.Struct, frozen=True, gc=False):
    """What is asked of a rule for every pair that it is part of."""

    number: int
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    offers: tuple[str, ...]
    only_source: str | None
    only_target: str | None


_NO_RULE = _Known(-1, ("*",), ("*",), ("*",), None, None)


def _known(number: int, entry: Entry) -> _Known:
    rule = entry.rule
    return _Known(
        number,
        implied([rule.source]),
        implied([rule.target]),
        implied([_offer(rule)]),
        *(
            token.key if token.kind is Kind.NAME and not token.key.startswith("uuid:") else None
            for token in (rule.source, rule.target)
        ),
    )


class _Search:
    """The search for differences in one slice."""

    def __init__(self, census: Census, index: tuple[Index, Index], slice_: Slice) -> None:
        self._census = census
        self._index = index
        self._slice = slice_
        self._entries = (slice_.old, slice_.new)
        self._kept = kept(slice_)
        self._tables = tuple(table_of(entries) for entries in self._entries)
        self._known = tuple(
            {id(entry): _known(number, entry) for number, entry in enumerate(entries)}
            for entries in self._entries
        )

    def pairs(self) -> Iterator[_Pair]:
        """The pairs of rules that could decide one call, and differently."""
        old, new = self._entries
        unlike: dict[object, list[int | None]] = {}
        for one, others in self._crossing():
            entry = _at(old, one)
            if entry is not None and entry.lists:
                yield from ((entry, _at(new, other)) for other in others)
                continue
            # Long policies have few effects, so most pairs need not be looked at one by one.
            effect = _effect(entry)
            key = (effect, one is None or one in self._kept)
            if key not in unlike:
                unlike[key] = [n for n in others if _effect(_at(new, n)) != effect]
            yield from ((entry, _at(new, other)) for other in unlike[key])
        for one, other in self._kept.items():
            if old[one].lists and self._list_changes:
                yield old[one], new[other]

    def _crossing(self) -> Iterator[tuple[int | None, Sequence[int | None]]]:
        """Each old number with new ones, without those where the change left both as they were."""
        old, new = self._entries
        behind = set(self._kept.values())
        fresh = [number for number in range(len(new)) if number not in behind]
        every = (*range(len(new)), None)
        for one in (*range(len(old)), None):
            yield one, fresh if one is None or one in self._kept else every

    def difference(self, pair: _Pair) -> Possible | None:
        """A call that both rules decide, and differently."""
        if self._is_covered(pair):
            return None
        decided = False
        for case in self._decided(pair, ((), None)):
            decided = True
            if found := self._decide(pair, case):
                return found
        if not decided:
            return None
        for extra in self._extras(pair):
            for case in self._decided(pair, extra):
                if found := self._decide(pair, case):
                    return found
        return None

    def _is_covered(self, pair: _Pair) -> bool:
        """Whether two names contradict, or an earlier rule matches all that both rules match."""
        old, new = self._known_of(pair)
        for one, other in (
            (old.only_source, new.only_source),
            (old.only_target, new.only_target),
        ):
            if one is not None and other is not None and one != other:
                return True
        matched = old.sources + new.sources, old.targets + new.targets
        for table, known in zip(self._tables, (old, new), strict=True):
            first = table.first(*matched)
            if first is not None and (known.number < 0 or first < known.number):
                return True
        return False

    def _known_of(self, pair: _Pair) -> tuple[_Known, _Known]:
        old, new = pair
        return (
            _NO_RULE if old is None else self._known[0][id(old)],
            _NO_RULE if new is None else self._known[1][id(new)],
        )

    def _decided(self, pair: _Pair, extra: _Extra) -> Iterator[Case]:
        """The calls that both rules really decide."""
        rules = [entry.rule for entry in pair if entry]
        mentioned = [t for rule in rules for t in (rule.redirect, rule.default_target) if t]
        sources = [*(rule.source for rule in rules), *extra[0]]
        expected = [None if known.number < 0 else known.number for known in self._known_of(pair)]
        targets = [rule.target for rule in rules]
        for made_up in self._census.cases(sources, targets, extra[1], mentioned):
            for case in _variants(pair, made_up):
                keys = keys_of(case, self._slice.service, self._slice.argument)
                if [table.first(*keys) for table in self._tables] == expected:
                    yield case

    def _decide(self, pair: _Pair, case: Case) -> Possible | None:
        """Put a call to the real evaluators, if it is not one that can be made today."""
        if not case.made and not self._census.any_admin and _always_starts(pair):
            return None
        system = case.system
        request = Request(self._slice.service, self._slice.argument, case.source.name, case.target)
        old, new = (index.decide(request, system) for index in self._index)
        if content(old, system) == content(new, system):
            return None
        return Possible(
            self._slice.labels,
            outcome_of(old, pair[0]),
            outcome_of(new, pair[1]),
            case.source,
            case.target,
            case.made,
            case.pick,
            case.qubes,
        )

    def _extras(self, pair: _Pair) -> Iterator[_Extra]:
        """What else a source could have, and who could be on its list, so that lists differ."""
        if not any(entry and entry.lists for entry in pair):
            return
        yield from self._list_changes
        if _same_effect(pair):
            return
        for entry, entries in zip(pair, self._entries, strict=True):
            if entry and entry.lists:
                for rule in (e.rule for e in entries if e.rule.action is not Action.DENY):
                    for plan in picks((_offer(rule),)):
                        yield (rule.source,), plan
                        if preselected := _preselected(plan, entry.rule.default_target):
                            yield (rule.source,), preselected

    @cached_property
    def _list_changes(self) -> list[_Extra]:
        """The ways to be on the list of one policy and not on that of the other."""
        old, new = self._entries
        found: dict[object, _Extra | None] = {}
        for pair in (
            (_at(old, one), _at(new, other)) for one, others in self._crossing() for other in others
        ):
            offering = [entry.rule.action is not Action.DENY for entry in pair if entry]
            if offering.count(True) != 1 or self._is_hidden(pair):
                continue
            rules = [entry.rule for entry in pair if entry]
            sources = tuple(rule.source for rule in rules)
            tokens = tuple(_offer(rule) for rule in rules)
            for plan in picks(tokens):
                key = (frozenset(sources), plan)
                if key not in found:
                    found[key] = (sources, plan) if self._lists_differ(sources, plan) else None
        return [extra for extra in found.values() if extra]

    def _is_hidden(self, pair: _Pair) -> bool:
        """Whether earlier rules say otherwise of all that two rules say of lists."""
        old, new = self._known_of(pair)
        matched = old.sources + new.sources, old.offers + new.offers
        if "dom0" in matched[1]:
            return False  # it has two entries in a list, and a rule may speak of one
        for side, (entry, known) in enumerate(zip(pair, (old, new), strict=True)):
            offering = entry is not None and entry.rule.action is not Action.DENY
            first = self._mentions[side, not offering].first(*matched)
            if first is not None and (known.number < 0 or first < known.number):
                return True
        return False

    @cached_property
    def _mentions(self) -> dict[tuple[int, bool], Table]:
        """What rules say of lists, by policy, and whether they offer or deny it."""
        return {
            (side, offering): Table(
                [
                    (number, entry.source, _offer(entry.rule).key)
                    for number, entry in enumerate(entries)
                    if (entry.rule.action is not Action.DENY) == offering
                ]
            )
            for side, entries in enumerate(self._entries)
            for offering in (False, True)
        }

    def _lists_differ(self, sources: tuple[Token, ...], plan: Plan) -> bool:
        """Whether a source with these tags, and a qube for its list, make the lists differ."""
        for case in self._census.cases(sources, [DEFAULT], plan):
            system = case.system
            request = Request(
                self._slice.service, self._slice.argument, case.source.name, "@default"
            )
            call = Call(request, case.source, DEFAULT)
            old, new = (index.offered(call, system) for index in self._index)
            if old != new:
                return True
        return False


def _offer(rule: Rule) -> Token:
    """What a rule adds to lists, or takes from them."""
    return rule.redirect or rule.target


def _preselected(plan: Plan, default: Token | None) -> Plan | None:
    """The way in which a list offers what a question preselects; None if it does not that way."""
    if default is None:
        return None
    target, base = plan.target, plan.base
    match plan.kind, default.kind:
        case Kind.NAME, Kind.NAME | Kind.ADMINVM:
            wanted = demanded([default])
        case Kind.DISPVM_OF | Kind.DISPVM, Kind.DISPVM_OF:
            wanted = demanded([default], frozenset({Kind.DISPVM_OF}))
        case Kind.DISPVM_OF, Kind.DISPVM:
            # The source makes its disposables from the base that is on the list.
            return Plan(Kind.DISPVM, base=target)
        case _:
            return None
    both = (target or base or Demand()).also(wanted or Demand())
    if both is None or both in (target, base):
        return None
    return Plan(plan.kind, both if target else None, both if base else None)


def _same_effect(pair: _Pair) -> bool:
    return _effect(pair[0]) == _effect(pair[1])


def _effect(entry: Entry | None) -> tuple[object, ...]:
    return NOBODY if entry is None else entry.effect


def _at(entries: Sequence[Entry], number: int | None) -> Entry | None:
    return None if number is None else entries[number]


def _always_starts(pair: _Pair) -> bool:
    """Whether it is the same for two rules which qubes run."""
    return all(entry is None or entry.rule.autostart for entry in pair)


def _variants(pair: _Pair, case: Case) -> Iterator[Case]:
    """The case itself, in which rules get all that they can use; and such where they do not."""
    yield case
    asking = [e for e in pair if e and e.rule.action is Action.ASK]
    if len(asking) == len(pair) and asking[0].lists != asking[1].lists:
        # A list that rules make leaves hidden qubes out, and one that a redirect makes does not.
        others = [qube for qube in case.made if qube.name != case.source.name]
        yield _replaced(case, [msgspec.structs.replace(qube, internal="1") for qube in others])
    if case.target.startswith("@dispvm"):
        # `@dispvm:@tag:TAG` is about bases of disposables only, `@dispvm:NAME` about any qube.
        bare = [msgspec.structs.replace(q, template_for_dispvms=False) for q in case.made]
        yield _replaced(case, bare)
    if not _always_starts(pair):
        # What does not run, what is not there, what is no base of disposables and what is the
        # caller are all denied; but for the first, the person is told whatever the rule says.
        halted = [q for q in case.qubes if q.name != "dom0"]
        yield _replaced(case, [msgspec.structs.replace(q, power_state="Halted") for q in halted])
        yield _replaced(case, [], without=case.optional)
        values = {e.rule.redirect.value for e in pair if e and e.rule.redirect}
        meant = [q for q in case.made if {q.name, f"uuid:{q.uuid}"} & values]
        bare = [msgspec.structs.replace(q, template_for_dispvms=False) for q in meant]
        yield _replaced(case, bare)
        if case.source in case.made:
            yield _replaced(case, [msgspec.structs.replace(case.source, default_dispvm=None)])


def _replaced(case: Case, qubes: Sequence[Domain], without: frozenset[str] = frozenset()) -> Case:
    """A case with some qubes changed, and others left out."""
    changed = {qube.name: qube for qube in qubes}
    kept_qubes, made = (
        tuple(changed.get(qube.name, qube) for qube in some if qube.name not in without)
        for some in (case.qubes, case.made)
    )
    source = changed.get(case.source.name, case.source)
    return msgspec.structs.replace(case, source=source, qubes=kept_qubes, made=made)
