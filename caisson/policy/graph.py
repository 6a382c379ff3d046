"""Who may call whom, as a graph: every call that is allowed, asked about or denied by a rule."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from caisson.policy.calls import Kind, kinds, relevant
from caisson.policy.index import Index
from caisson.policy.outcome import Allow, Ask, Decision, Deny, Reason, Request
from caisson.policy.reference import matches_qube
from caisson.policy.rules import Action, Rule
from caisson.policy.system import SystemInfo


class Edge(msgspec.Struct, frozen=True, order=True):
    """Calls of one kind from one qube to another.

    `target` is where the call really goes: a name, `@dispvm:NAME`, or for a denial what was
    asked for. `label` is the kind's, see `caisson.policy.calls.Kind`.
    """

    source: str
    target: str
    label: str
    action: Action


class Filter(msgspec.Struct, frozen=True):
    """What to draw; None is everything.

    Args:
        services: names of services.
        sources: names of calling qubes.
        targets: names of called qubes, or `@dispvm:NAME`.
        actions: which outcomes.
    """

    services: Collection[str] | None = None
    sources: Collection[str] | None = None
    targets: Collection[str] | None = None
    actions: Collection[Action] = frozenset(Action)


def edges(rules: Sequence[Rule], system: SystemInfo, wanted: Filter) -> list[Edge]:
    """All edges of the graph, sorted: each call decided as the broker would decide it."""
    index = Index(rules)
    found: set[Edge] = set()
    for kind in kinds(rules):
        if wanted.services is None or kind.service in wanted.services:
            speaking = relevant(kind, rules)
            if any(rule.action in wanted.actions for rule in speaking):
                found |= _edges_of(kind, speaking, index, system, wanted)
    return sorted(found)


def _edges_of(
    kind: Kind, rules: Sequence[Rule], index: Index, system: SystemInfo, wanted: Filter
) -> set[Edge]:
    names = list(system.domains)
    bases = [f"@dispvm:{q.name}" for q in system.domains.values() if q.template_for_dispvms]
    targets = [*names, *bases, "@dispvm", "@default"]
    tokens = {rule.source for rule in rules if rule.action in wanted.actions}
    found = set()
    for source in names if wanted.sources is None else wanted.sources:
        if not any(matches_qube(token, source, system) for token in tokens):
            continue
        asked: set[str] = set()
        for target in targets:
            decision = index.decide(Request(kind.service, kind.argument, source, target), system)
            if isinstance(decision, Ask):
                # One rule offers one list, whatever the caller wished for.
                if decision.rule in asked:
                    continue
                asked.add(decision.rule)
            for action, reached in _outcomes(decision, target):
                named = wanted.targets is None or reached in wanted.targets
                if named and action in wanted.actions and reached != source:
                    found.add(Edge(source, reached, kind.label, action))
    return found


def _outcomes(decision: Decision, target: str) -> Iterator[tuple[Action, str]]:
    match decision:
        case Allow():
            yield Action.ALLOW, decision.target
        case Ask():
            for offered in decision.targets:
                yield Action.ASK, offered
        case Deny(reason=Reason.RULE):
            yield Action.DENY, target


class Bundle(msgspec.Struct, frozen=True, order=True):
    """Calls with one outcome of each of some qubes to each of some qubes, other than itself."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    action: Action
    labels: tuple[str, ...] = ()


def bundles(found: Iterable[Edge]) -> list[Bundle]:
    """The same edges in few bundles, sorted: a picture of them can be read."""
    table: dict[tuple[str, Action], dict[str, set[str]]] = {}
    for edge in found:
        rows = table.setdefault((edge.label, edge.action), {})
        rows.setdefault(edge.source, set()).add(edge.target)
    labels: dict[Bundle, set[str]] = {}
    for (label, action), rows in table.items():
        for sources, targets in _blocks(rows):
            bundle = Bundle(tuple(sorted(sources)), tuple(sorted(targets)), action)
            labels.setdefault(bundle, set()).add(label)
    return sorted(
        msgspec.structs.replace(bundle, labels=tuple(sorted(texts)))
        for bundle, texts in labels.items()
    )


def _blocks(rows: Mapping[str, set[str]]) -> Iterator[tuple[set[str], frozenset[str]]]:
    """Split one kind's edges into blocks, in each of which every source has every target."""
    # What calls of anybody to anybody look like: each qube reaches all but itself.
    everyone = frozenset(name for targets in rows.values() for name in targets)
    full = {source for source, targets in rows.items() if targets == everyone - {source}}
    if full:
        yield full, everyone
    rest: dict[frozenset[str], set[str]] = {}
    for source in rows.keys() - full:
        rest.setdefault(frozenset(rows[source]), set()).add(source)
    yield from ((sources, targets) for targets, sources in rest.items())


Box = tuple[str, ...]
"""Qubes that call and are called in the very same way: one box of a picture stands for all."""


def boxes(found: Iterable[Bundle], *, alike: bool = True) -> list[Box]:
    """The boxes of a picture: every qube that has an edge is in one, sorted.

    Args:
        found: the edges.
        alike: put qubes with the same relations into one box.
    """
    roles: dict[str, list[tuple[int, str]]] = {}
    for number, bundle in enumerate(found):
        for role, names in (("source", bundle.sources), ("target", bundle.targets)):
            for name in names:
                roles.setdefault(name, []).append((number, role))
    made: dict[object, list[str]] = {}
    for name, played in sorted(roles.items()):
        made.setdefault(tuple(played) if alike else name, []).append(name)
    return sorted(map(tuple, made.values()))
