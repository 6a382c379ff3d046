"""What a change of policy changes for the qubes that there are: all of it, without trying all.

Sources that the same rules speak of, and that make disposables from the same qube, are a group.
For a group the rules of a slice are a short list, and walking it once with sets of targets tells
for all targets which rule decides. Where two rules of the same effect decide, nothing changes.
What else the fate of a call depends on is finite, and splits the rest into classes: the kind of
the target, whether it runs, is a RemoteVM, is where a rule redirects to, or is the source
itself; and in which way the lists of targets to pick from differ for the source.
In such a class both policies do with every call what they do with one of them, and that one the
real evaluator decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from caisson.policy.analysis.outcome import Change, Outcome, Relation, content, outcome_of
from caisson.policy.analysis.slices import NOBODY, Entry, Label, Slice
from caisson.policy.analysis.targets import Targets
from caisson.policy.index import Index, View
from caisson.policy.outcome import Ask, Decision, Request
from caisson.policy.resolution import Call, may_run
from caisson.policy.rules import Action, Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import DEFAULT, Kind, Token

_ELSEWHERE = -1
"""A list of one target that no qube of the system is."""

_Pair = tuple[Entry | None, Entry | None]


class _Kind(msgspec.Struct, frozen=True):
    """All of a change but its sources and targets; `offered` are the lists, as bits."""

    services: tuple[Label, ...]
    old: Outcome
    new: Outcome
    offered: tuple[int, int]
    relation: Relation


class Comparison:
    """Two policies on one system.

    Args:
        old: the rules of the one.
        new: the rules of the other.
        system: the qubes that there are.
    """

    def __init__(self, old: Sequence[Rule], new: Sequence[Rule], system: SystemInfo) -> None:
        self.system = system
        self.view = View(system)
        self.targets = Targets(self.view)
        self.index = (Index(old), Index(new))
        self._qubes = list(system.domains.values())
        self._place = {qube.name: 1 << number for number, qube in enumerate(self._qubes)}
        self._found: dict[_Kind, dict[int, int]] = {}

    def compare(self, slice_: Slice) -> None:
        """Find all that differs for the services of a slice."""
        named = {entry.source for entry in (*slice_.old, *slice_.new)}
        groups: dict[tuple[frozenset[str], str | None], list[Domain]] = {}
        for qube in self._qubes:
            keys = named.intersection(self.view.qube_keys(qube))
            groups.setdefault((frozenset(keys), qube.default_dispvm), []).append(qube)
        for (keys, base), members in groups.items():
            old = [entry for entry in slice_.old if entry.source in keys]
            new = [entry for entry in slice_.new if entry.source in keys]
            if [entry.meaning for entry in old] != [entry.meaning for entry in new]:
                _Group(self, slice_, base, members).compare(old, new)

    def add(self, kind: _Kind, qube: Domain, targets: int) -> None:
        """Note that calls of a qube change, to these targets."""
        found, place = self._found.setdefault(kind, {}), self._place[qube.name]
        found[place] = found.get(place, 0) | targets

    def changes(self) -> list[Change]:
        """All that was found, in as few changes as sources and targets can be put together."""
        merged: dict[tuple[_Kind, int], int] = {}
        for kind, found in self._found.items():
            by_targets: dict[int, int] = {}
            for source, targets in found.items():
                by_targets[targets] = by_targets.get(targets, 0) | source
            for targets, sources in by_targets.items():
                merged[kind, sources] = merged.get((kind, sources), 0) | targets
        return [
            Change(
                kind.services,
                self._outcome(kind.old, kind.offered[0]),
                self._outcome(kind.new, kind.offered[1]),
                tuple(q.name for q in self._qubes if self._place[q.name] & sources),
                self.targets.names_of(targets) if kind.relation is Relation.OTHERS else (),
                kind.relation,
            )
            for (kind, sources), targets in merged.items()
        ]

    def _outcome(self, outcome: Outcome, offered: int) -> Outcome:
        if not offered:
            return outcome
        return msgspec.structs.replace(outcome, offers=self.view.names(offered))


class _Group:
    """Sources of a system between which the rules of a slice make no difference."""

    def __init__(
        self, comparison: Comparison, slice_: Slice, base: str | None, members: list[Domain]
    ) -> None:
        self._all = comparison
        self._targets = comparison.targets
        self._slice = slice_
        self._base = base
        self._members = members

    def compare(self, old: Sequence[Entry], new: Sequence[Entry]) -> None:
        """Add what differs for these sources, of which these rules speak."""
        behind = list(self._targets.cells(new, self._base))
        for one, some in self._targets.cells(old, self._base):
            for other, others in behind:
                if some & others and not self._same(one, other):
                    self._cell((one, other), some & others)

    @cached_property
    def _offered(self) -> tuple[int, int]:
        """What both policies let these sources pick from, themselves included."""
        one = self._members[0]
        request = Request(self._slice.service, self._slice.argument, one.name, "@default")
        call = Call(request, one, DEFAULT)
        old, new = self._all.index
        return old.offered(call, self._all.system), new.offered(call, self._all.system)

    def _same(self, one: Entry | None, other: Entry | None) -> bool:
        effects = [NOBODY if entry is None else entry.effect for entry in (one, other)]
        if effects[0] != effects[1]:
            return False
        return one is None or not one.lists or self._offered[0] == self._offered[1]

    def _cell(self, pair: _Pair, bits: int) -> None:
        """Add what differs for the targets that two rules decide."""
        alike: dict[object, list[Domain]] = {}
        for qube in self._members:
            alike.setdefault(self._fate(pair, qube), []).append(qube)
        passes = any(e and e.rule.action is Action.ALLOW and not e.rule.redirect for e in pair)
        parts = [bits]
        if passes:
            # What is asked for is what is called, so it matters which target it is.
            parts = list(self._targets.classes(bits, self._redirections(pair)))
        for members in alike.values():
            for part in parts:
                self._class(pair, members, part)

    def _class(self, pair: _Pair, members: list[Domain], part: int) -> None:
        """Decide one call for all sources and targets that are treated alike."""
        bit = self._targets.bit
        for qube in members:
            if others := part & ~self._own(qube):
                called = [q for q in members if part & ~self._own(q)]
                first = self._targets.first(others)
                self._try(pair, Relation.OTHERS, (qube, first), called, part)
                break
        selves = [qube for qube in members if bit[qube.name] & part]
        if selves:
            self._try(pair, Relation.ITSELF, (selves[0], selves[0].name), selves, 1)
        named = [qube for qube in selves if self._has_other_name(qube)]
        if named:
            name = f"uuid:{named[0].uuid}"
            self._try(pair, Relation.ITSELF_BY_UUID, (named[0], name), named, 1)
        admin = [qube for qube in members if qube.name == "dom0"]
        if admin and bit["@adminvm"] & part:
            self._try(pair, Relation.ITSELF_BY_KEYWORD, (admin[0], "@adminvm"), admin, 1)

    def _try(
        self,
        pair: _Pair,
        relation: Relation,
        call: tuple[Domain, str],
        members: list[Domain],
        part: int,
    ) -> None:
        """Add calls to what changes, if the one that stands for them does."""
        source, target = call
        request = Request(self._slice.service, self._slice.argument, source.name, target)
        old, new = (index.decide(request, self._all.system) for index in self._all.index)
        if content(old, self._all.system) == content(new, self._all.system):
            return
        kind = _Kind(
            self._slice.labels,
            outcome_of(old, pair[0], _redirected(old, pair[0])),
            outcome_of(new, pair[1], _redirected(new, pair[1])),
            (self._pick(old, pair[0], 0), self._pick(new, pair[1], 1)),
            relation,
        )
        for qube in members:
            self._all.add(kind, qube, part)

    def _pick(self, decision: Decision, entry: Entry | None, side: int) -> int:
        """The list of a question for the whole group, if all rules together make it."""
        if entry is None or not entry.lists or not isinstance(decision, Ask):
            return 0
        return self._list(entry, side)

    def _list(self, entry: Entry, side: int) -> int:
        """The list of a question, the source itself included."""
        redirect = entry.rule.redirect
        if redirect is None:
            bits = self._offered[side]
            return bits if entry.rule.autostart else bits & self._all.view.running
        if not entry.rule.autostart and not may_run(redirect.key, self._all.system):
            return 0
        qube = self._all.system.find(redirect.value) if redirect.kind is Kind.NAME else None
        return self._all.view.bit.get(qube.name if qube else redirect.key, _ELSEWHERE)

    def _fate(self, pair: _Pair, source: Domain) -> object:
        """What the decision of two rules depends on, as far as it depends on the source."""
        view = self._all.view
        redirected = tuple(
            bool(e and e.rule.redirect and e.rule.redirect.key == source.name) for e in pair
        )
        if not any(e and e.rule.action is Action.ASK for e in pair):
            return redirected
        lists: list[int | None] = []
        defaults = []
        for side, entry in enumerate(pair):
            if entry is None or entry.rule.action is not Action.ASK:
                lists.append(None)
                continue
            bits = self._list(entry, side)
            if entry.lists:
                bits &= ~view.bit[source.name]
            lists.append(bits)
            defaults.append(self._default(entry.rule.default_target, source) & bits)
        known = tuple(bits if bits is None else bool(bits) for bits in lists)
        return redirected, known, lists[0] == lists[1], tuple(map(bool, defaults))

    def _default(self, token: Token | None, source: Domain) -> int:
        if token is None:
            return 0
        base = token.kind is Kind.DISPVM
        name = f"@dispvm:{source.default_dispvm}" if base else token.key
        return self._all.view.bit.get(name, 0)

    def _redirections(self, pair: _Pair) -> list[int]:
        """The targets to which two rules redirect: asking for them may come to the same."""
        bit, system = self._targets.bit, self._all.system
        found = []
        for entry in pair:
            token = entry.rule.redirect if entry else None
            if token is None:
                continue
            reference = token.value or (self._base or "" if token.kind is Kind.DISPVM else "")
            qube = system.find(reference) if reference else None
            if qube is not None:
                prefix = "" if token.kind is Kind.NAME else "@dispvm:"
                found.append(bit.get(prefix + qube.name, 0))
        return found

    def _own(self, qube: Domain) -> int:
        bit = self._targets.bit
        return bit[qube.name] | (bit["@adminvm"] if qube.name == "dom0" else 0)

    def _has_other_name(self, qube: Domain) -> bool:
        """Whether the qube's uuid is a way to call it that is not its name."""
        found = self._all.system.find(f"uuid:{qube.uuid}")
        return qube.name != "dom0" and found is qube


def _redirected(decision: Decision, entry: Entry | None) -> tuple[str, ...]:
    """The list of a question that does not depend on the other rules."""
    listed = isinstance(decision, Ask) and entry is not None and not entry.lists
    return decision.targets if listed and isinstance(decision, Ask) else ()
