"""Who may call whom, as a graph: every call that is allowed, asked about or denied by a rule."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from caisson.policy.calls import kinds
from caisson.policy.outcomes import Table
from caisson.policy.rules import Action, Rule
from caisson.policy.system import SystemInfo


class Edge(msgspec.Struct, frozen=True, order=True):
    """Calls of one kind from one qube to another.

    `target` is where the call really goes: a name, `@dispvm:NAME`, or for a denial what was
    asked for. `label` is the kind in words, see `caisson.policy.calls.CallKind`.
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


Rows = Mapping[tuple[str, Action], Mapping[str, frozenset[str]]]
"""The edges of a graph: label and outcome → source → targets."""


def rows(rules: Sequence[Rule], system: SystemInfo, wanted: Filter) -> Rows:
    """The edges of the graph: what the broker would decide about every call."""
    table = Table(rules, system)
    found: dict[tuple[str, Action], dict[str, frozenset[str]]] = {}
    for kind, spoken in kinds(rules, wanted.services or ()):
        if wanted.services is not None and kind.service not in wanted.services:
            continue
        for source, outcomes in table.of_kind(kind, spoken):
            if wanted.sources is not None and source not in wanted.sources:
                continue
            for action in wanted.actions:
                targets = outcomes.get(action, frozenset())
                if wanted.targets is not None:
                    targets &= frozenset(wanted.targets)
                if targets:
                    found.setdefault((str(kind), action), {})[source] = targets
    return found


def edges(found: Rows) -> list[Edge]:
    """The same edges one by one, sorted."""
    return sorted(
        Edge(source, target, label, action)
        for (label, action), by_source in found.items()
        for source, targets in by_source.items()
        for target in targets
    )


class Bundle(msgspec.Struct, frozen=True, order=True):
    """Calls with one outcome of each of some qubes to each of some qubes, other than itself."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    action: Action
    labels: tuple[str, ...] = ()


def bundles(found: Rows) -> list[Bundle]:
    """The same edges in few bundles, sorted: a picture of them can be read."""
    labels: dict[Bundle, set[str]] = {}
    for (label, action), by_source in found.items():
        for sources, targets in _blocks(by_source):
            bundle = Bundle(tuple(sorted(sources)), tuple(sorted(targets)), action)
            labels.setdefault(bundle, set()).add(label)
    return sorted(
        msgspec.structs.replace(bundle, labels=tuple(sorted(texts)))
        for bundle, texts in labels.items()
    )


def _blocks(
    by_source: Mapping[str, frozenset[str]],
) -> Iterator[tuple[set[str], frozenset[str]]]:
    """Split one kind's edges into blocks, in each of which every source has every target."""
    # What calls of anybody to anybody look like: each qube reaches all but itself.
    everyone = frozenset[str]().union(*by_source.values())
    full = {source for source, targets in by_source.items() if targets == everyone - {source}}
    if full:
        yield full, everyone
    rest: dict[frozenset[str], set[str]] = {}
    for source in by_source.keys() - full:
        rest.setdefault(by_source[source], set()).add(source)
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
