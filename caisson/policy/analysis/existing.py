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

from collections.abc import Iterator, Sequence
from functools import cached_property

import msgspec

from caisson.policy.analysis.outcome import (
    Change,
    Outcome,
    Relation,
    content,
    outcome_of,
    with_services_together,
)
from caisson.policy.analysis.slices import NOBODY, Entry, Label, Slice
from caisson.policy.analysis.targets import Targets
from caisson.policy.index import Index
from caisson.policy.outcome import Request
from caisson.policy.resolution import Call, may_run
from caisson.policy.rules import Action, Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import DEFAULT, Kind
from caisson.policy.view import View

_ELSEWHERE = -1
"""A list of one target that no qube of the system is."""

_Pair = tuple[Entry | None, Entry | None]
_Lists = tuple[int | None, int | None]
_Key = tuple[object, str | None, object, int, Relation]


class _Kind(msgspec.Struct, frozen=True):
    """All of a change but its sources, targets and lists."""

    services: tuple[Label, ...]
    old: Outcome
    new: Outcome
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
        self._kinds: dict[_Kind, int] = {}
        # Kind and lists → sources → targets, all sets as bits.
        self._found: dict[tuple[int, int, int], dict[int, int]] = {}

    def compare(self, slice_: Slice) -> None:
        """Find all that differs for the services of a slice."""
        if [entry.meaning for entry in slice_.old] == [entry.meaning for entry in slice_.new]:
            return
        named = {entry.source for entry in (*slice_.old, *slice_.new)}
        groups: dict[tuple[frozenset[str], str | None], list[Domain]] = {}
        for qube in self._qubes:
            keys = frozenset(named.intersection(self.view.qube_keys(qube)))
            groups.setdefault((keys, qube.default_dispvm), []).append(qube)
        classes = _Classes(self, slice_)
        for (keys, base), members in groups.items():
            old = [entry for entry in slice_.old if entry.source in keys]
            new = [entry for entry in slice_.new if entry.source in keys]
            if [entry.meaning for entry in old] != [entry.meaning for entry in new]:
                _Group(self, classes, base, members).compare(old, new)

    def add(self, kind: _Kind, lists: tuple[int, int], sources: int, targets: int) -> None:
        """Note that calls of these sources to these targets change."""
        number = self._kinds.setdefault(kind, len(self._kinds))
        found = self._found.setdefault((number, *lists), {})
        found[sources] = found.get(sources, 0) | targets

    def own(self, qube: Domain) -> int:
        """The targets that are the qube itself."""
        bit = self.targets.bit
        return bit[qube.name] | (bit["@adminvm"] if qube.name == "dom0" else 0)

    def has_other_name(self, qube: Domain) -> bool:
        """Whether the qube can be called by a uuid that is not its name."""
        return qube.name != "dom0" and self.system.find(f"uuid:{qube.uuid}") is qube

    def sources(self, qubes: Sequence[Domain]) -> int:
        """Some qubes as a set."""
        places = self._place
        return sum([places[qube.name] for qube in qubes])

    def changes(self) -> list[Change]:
        """All that was found, in few changes: sources and targets are put together."""
        kinds = list(self._kinds)
        merged: dict[tuple[int, int, int, int], int] = {}
        for key, found in self._found.items():
            by_targets: dict[int, int] = {}
            for sources, targets in found.items():
                by_targets[targets] = by_targets.get(targets, 0) | sources
            for targets, sources in by_targets.items():
                merged[*key, sources] = merged.get((*key, sources), 0) | targets
        changes = [
            self._change(kinds[number], lists, sources, targets)
            for (number, *lists, sources), targets in merged.items()
        ]
        return with_services_together(changes)

    def _change(self, kind: _Kind, lists: list[int], sources: int, targets: int) -> Change:
        outcomes = [
            msgspec.structs.replace(outcome, offers=self.view.names(bits)) if bits else outcome
            for outcome, bits in zip((kind.old, kind.new), lists, strict=True)
        ]
        return Change(
            kind.services,
            outcomes[0],
            outcomes[1],
            tuple(qube.name for qube in self._qubes if self._place[qube.name] & sources),
            self.targets.names_of(targets) if kind.relation is Relation.OTHERS else (),
            kind.relation,
        )


class _Group:
    """Sources of a system between which the rules of a slice make no difference."""

    def __init__(
        self, comparison: Comparison, classes: _Classes, base: str | None, members: list[Domain]
    ) -> None:
        self._all = comparison
        self._targets = comparison.targets
        self._classes = classes
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
        call = Call(self._classes.request(self._members[0], "@default"), self._members[0], DEFAULT)
        old, new = self._all.index
        return old.offered(call, self._all.system), new.offered(call, self._all.system)

    def _same(self, one: Entry | None, other: Entry | None) -> bool:
        effects = [NOBODY if entry is None else entry.effect for entry in (one, other)]
        if effects[0] != effects[1]:
            return False
        return one is None or not one.lists or self._offered[0] == self._offered[1]

    def _cell(self, pair: _Pair, bits: int) -> None:
        """Add what differs for the targets that two rules decide."""
        lists = (self._list(pair[0], 0), self._list(pair[1], 1))
        shown = (_shown(pair[0], lists[0]), _shown(pair[1], lists[1]))
        parts = [(0, bits)]
        if any(e and e.rule.action is Action.ALLOW and not e.rule.redirect for e in pair):
            # What is asked for is what is called, so it matters which target it is.
            parts = list(self._targets.classes(bits, self._redirections(pair)))
        numbers = (id(pair[0]), id(pair[1]))
        asked = self._targets.bit["@dispvm"]
        named = any(e and _makes_disposable(e.rule) for e in pair)
        for fate, members in self._fates(pair, lists):
            for number, part in parts:
                base = self._base if named or part & asked else None
                for relation, sources in self._relations(members, part):
                    key = (numbers, base, fate, number, relation)
                    kind = self._classes.kind(key, pair, sources[0], part)
                    if kind is not None:
                        self._all.add(kind, shown, self._all.sources(sources), part)

    def _relations(
        self, members: list[Domain], part: int
    ) -> Iterator[tuple[Relation, list[Domain]]]:
        """Which of the sources call others among these targets, and which themselves."""
        bit = self._targets.bit
        others = [qube for qube in members if part & ~self._all.own(qube)]
        if others:
            yield Relation.OTHERS, others
        selves = [qube for qube in members if bit[qube.name] & part]
        if selves:
            yield Relation.ITSELF, selves
        named = [qube for qube in selves if self._all.has_other_name(qube)]
        if named:
            yield Relation.ITSELF_BY_UUID, named
        admin = [qube for qube in members if qube.name == "dom0"]
        if admin and bit["@adminvm"] & part:
            yield Relation.ITSELF_BY_KEYWORD, admin

    def _list(self, entry: Entry | None, side: int) -> int | None:
        """What a rule lets these sources pick from, themselves included; None if it does not."""
        if entry is None or entry.rule.action is not Action.ASK:
            return None
        redirect = entry.rule.redirect
        if redirect is None:
            bits = self._offered[side]
            return bits if entry.rule.autostart else bits & self._all.view.running
        if not entry.rule.autostart and not may_run(redirect.key, self._all.system):
            return 0
        qube = self._all.system.find(redirect.value) if redirect.kind is Kind.NAME else None
        return self._all.view.bit.get(qube.name if qube else redirect.key, _ELSEWHERE)

    def _fates(self, pair: _Pair, lists: _Lists) -> Iterator[tuple[object, list[Domain]]]:
        """The sources by what decisions of two rules depend on, as far as it is about them."""
        bit = self._all.view.bit
        redirects = [e.rule.redirect.key for e in pair if e and e.rule.redirect]
        defaults = [self._default(entry) for entry in pair]
        # Being left out of a list matters where little else is on it.
        decisive = {*lists, *defaults, (lists[0] or 0) ^ (lists[1] or 0)}
        usual = []
        for qube in self._members:
            own = bit[qube.name]
            if own not in decisive and qube.name not in redirects:
                usual.append(qube)
                continue
            left = [
                bits & ~own if bits is not None and entry and entry.lists else bits
                for entry, bits in zip(pair, lists, strict=True)
            ]
            flags = tuple(key == qube.name for key in redirects)
            yield (flags, *_fate(left, defaults)), [qube]
        if usual:
            yield ((False,) * len(redirects), *_fate(lists, defaults)), usual

    def _default(self, entry: Entry | None) -> int:
        """The target that a rule wants preselected."""
        token = entry.rule.default_target if entry else None
        if token is None:
            return 0
        name = f"@dispvm:{self._base}" if token.kind is Kind.DISPVM else token.key
        return self._all.view.bit.get(name, 0)

    def _redirections(self, pair: _Pair) -> list[int]:
        """The targets to which two rules redirect: asking for them may come to the same."""
        bit, system = self._targets.bit, self._all.system
        found = []
        for entry in pair:
            token = entry.rule.redirect if entry else None
            if token is None:
                continue
            reference = self._base if token.kind is Kind.DISPVM else token.value
            qube = system.find(reference) if reference else None
            if qube is not None:
                prefix = "" if token.kind is Kind.NAME else "@dispvm:"
                found.append(bit.get(prefix + qube.name, 0))
        return found


def _makes_disposable(rule: Rule) -> bool:
    """Whether what a rule says depends on what its source makes disposables from."""
    return any(
        token and token.kind is Kind.DISPVM for token in (rule.redirect, rule.default_target)
    )


def _shown(entry: Entry | None, bits: int | None) -> int:
    """The list that belongs to a change: that of a question which all rules together answer."""
    return bits or 0 if entry and entry.lists else 0


def _fate(lists: Sequence[int | None], defaults: Sequence[int]) -> tuple[object, ...]:
    """What a decision can know of the lists of two questions."""
    full = tuple(bits if bits is None else bool(bits) for bits in lists)
    valid = tuple(bool(one & (bits or 0)) for one, bits in zip(defaults, lists, strict=True))
    return lists[0] == lists[1], full, valid


class _Classes:
    """The classes of calls of one slice, each decided once."""

    def __init__(self, comparison: Comparison, slice_: Slice) -> None:
        self._all = comparison
        self._slice = slice_
        self._decided: dict[object, _Kind | None] = {}

    def request(self, source: Domain, target: str) -> Request:
        """A call for the services of the slice."""
        return Request(self._slice.service, self._slice.argument, source.name, target)

    def kind(self, key: _Key, pair: _Pair, source: Domain, part: int) -> _Kind | None:
        """How the calls of a class change; None if they do not.

        Args:
            key: the class.
            pair: the rules that decide them.
            source: the source of one of them.
            part: targets of it.
        """
        if key not in self._decided:
            self._decided[key] = self._decide(pair, key[-1], source, part)
        return self._decided[key]

    def _decide(self, pair: _Pair, relation: Relation, source: Domain, part: int) -> _Kind | None:
        target = self._target(relation, source, part)
        system = self._all.system
        old, new = (index.decide(self.request(source, target), system) for index in self._all.index)
        if content(old, system) == content(new, system):
            return None
        words = [
            outcome_of(decision, entry, () if entry and entry.lists else None)
            for decision, entry in zip((old, new), pair, strict=True)
        ]
        return _Kind(self._slice.labels, words[0], words[1], relation)

    def _target(self, relation: Relation, source: Domain, part: int) -> str:
        match relation:
            case Relation.OTHERS:
                return self._all.targets.first(part & ~self._all.own(source))
            case Relation.ITSELF:
                return source.name
            case Relation.ITSELF_BY_UUID:
                return f"uuid:{source.uuid}"
            case Relation.ITSELF_BY_KEYWORD:
                return "@adminvm"
