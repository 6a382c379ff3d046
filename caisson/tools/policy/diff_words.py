"""The difference of two policies: told to a person, or written down for a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from caisson.policy import Domain, SystemInfo
from caisson.policy.analysis import Change, Differences, Direction, Outcome, Possible, Relation
from caisson.policy.analysis.slices import Label
from caisson.policy.rules import EVERY
from caisson.policy.tokens import Kind, Token
from caisson.tools.terminal import cell, say

_ADMIN = "dom0"
_SHOWN = 6
_ITSELF = {
    Relation.ITSELF: "itself",
    Relation.ITSELF_BY_UUID: "itself, by its uuid",
    Relation.ITSELF_BY_KEYWORD: "itself, as `@adminvm`",
}


def as_dict(found: Differences) -> dict[str, Any]:
    """The difference for a script."""
    return {
        "existing": [_change(change) for change in found.existing],
        "future": [_possible(possible) for possible in found.future],
    }


def _change(change: Change) -> dict[str, Any]:
    return _common(change) | {
        "sources": list(change.sources),
        "targets": list(change.targets),
        "relation": str(change.relation),
        "calls": change.calls(),
    }


def _possible(possible: Possible) -> dict[str, Any]:
    return _common(possible) | {
        "source": possible.source.name,
        "target": possible.target,
        "pick": possible.pick,
        "made": [
            {"name": qube.name, "type": qube.type, "uuid": qube.uuid, "tags": sorted(qube.tags)}
            for qube in possible.made
        ],
    }


def _common(change: Change | Possible) -> dict[str, Any]:
    return {
        "services": [{"service": s, "argument": a} for s, a in change.services],
        "direction": str(change.direction),
        "old": change.old.as_dict(),
        "new": change.new.as_dict(),
    }


def tell(found: Differences, system: SystemInfo, *, whole: bool) -> None:
    """Print the difference for a person.

    Args:
        found: the difference.
        system: the qubes that exist.
        whole: print every name, however many there are.
    """
    if not found:
        say("the policies decide the same")
        return
    existing = list(_told(found.existing))
    future = [possible for possible in found.future if possible.source.name != _ADMIN]
    if existing:
        print("calls between the qubes that there are")
        for change in existing:
            _print(_existing_lines(change, system, whole))
    if future:
        print("calls in other systems: with qubes that do not exist, or run where they do not")
        for possible in future:
            _print(_future_lines(possible))
    if not existing and not future:
        say("only calls of the admin qube differ, which no policy judges")


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(cell(line))
    print()


def _told(changes: Sequence[Change]) -> Iterator[Change]:
    """The changes that a person wants to hear of.

    Left out are calls of the admin qube, which no policy judges, and what is said of calls to
    oneself if others say it of all calls.
    """
    general = {_same(change) for change in changes if change.relation is Relation.OTHERS}
    for change in changes:
        sources = tuple(name for name in change.sources if name != _ADMIN)
        if sources and (change.relation is Relation.OTHERS or _same(change) not in general):
            yield msgspec.structs.replace(change, sources=sources)


def _same(change: Change) -> tuple[object, ...]:
    places = [outcome.rule and outcome.rule.location for outcome in (change.old, change.new)]
    return change.services, *places


def _existing_lines(change: Change, system: SystemInfo, whole: bool) -> Iterator[str]:
    most = len(system.domains) + 1 if whole else _SHOWN
    yield from _head(change)
    yield f"    from  {_names(_short(change.sources, system, 'every qube'), most)}"
    targets = _short(change.targets, system, "every other qube")
    yield f"    to    {_ITSELF.get(change.relation) or _names(targets, most)}"
    yield from _list_lines(change, system, most)


def _future_lines(possible: Possible) -> Iterator[str]:
    made = {qube.name: qube for qube in possible.made}
    rules = [outcome.rule for outcome in (possible.old, possible.new) if outcome.rule]
    yield from _head(possible)
    yield f"    from  {_qube(possible.source, made, [rule.source for rule in rules])}"
    yield f"    to    {_target(possible, made, [rule.target for rule in rules])}"
    if possible.pick in made:
        yield f"    with  {_qube(made[possible.pick], made, [])} to pick"
    elif possible.old.decision == possible.new.decision == "ask":
        yield from _list_lines(possible, SystemInfo({}), _SHOWN)


def _head(change: Change | Possible) -> Iterator[str]:
    yield f"  {_direction(change.direction)}: {_services(change.services)}"
    yield f"    {_outcome(change.old)} → {_outcome(change.new)}"


def _direction(direction: Direction) -> str:
    return "changed" if direction is Direction.OTHER else str(direction)


def _services(labels: Sequence[Label]) -> str:
    words = [_service(*label) for label in labels[:_SHOWN]]
    more = len(labels) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def _service(service: str, argument: str) -> str:
    if service == EVERY:
        return "any service that no rule names"
    return f"{service} {argument}" if argument != EVERY else service


def _outcome(outcome: Outcome) -> str:
    words = [outcome.decision]
    if outcome.target is not None:
        words.append(f"target={outcome.target}")
    if outcome.user is not None:
        words.append(f"user={outcome.user}")
    if outcome.default is not None:
        words.append(f"default_target={outcome.default}")
    if not outcome.autostart:
        words.append("autostart=no")
    if outcome.notify != (outcome.decision == "deny"):
        words.append("notify=yes" if outcome.notify else "notify=no")
    if outcome.rule is None:
        return f"{' '.join(words)} (no rule)"
    if outcome.decision == "deny" and outcome.reason != "rule":
        words.append(f"({outcome.reason})")
    return f"{' '.join(words)} ({outcome.rule.location})"


def _short(names: Sequence[str], system: SystemInfo, all_: str) -> list[str]:
    """Names of targets, where all qubes and all that disposables are made from are few words."""
    qubes = [qube for qube in system.domains.values() if qube.name != _ADMIN]
    disposables = [f"@dispvm:{qube.name}" for qube in qubes if qube.template_for_dispvms]
    found = list(names)
    for whole, words in (([q.name for q in qubes], all_), (disposables, "every `@dispvm:NAME`")):
        if len(whole) > 1 and set(whole) <= set(found):
            found = [words, *(name for name in found if name not in whole)]
    return found


def _list_lines(change: Change | Possible, system: SystemInfo, most: int) -> Iterator[str]:
    """What a question offers, or how that changes."""
    old, new = change.old, change.new
    if old.decision == new.decision == "ask":
        won = sorted(set(new.offers) - set(old.offers))
        lost = sorted(set(old.offers) - set(new.offers))
        if won:
            yield f"    more to pick  {_names(_short(won, system, 'every other qube'), most)}"
        if lost:
            yield f"    less to pick  {_names(_short(lost, system, 'every other qube'), most)}"
        return
    for outcome in (old, new):
        if outcome.decision == "ask":
            offers = _short(outcome.offers, system, "every other qube")
            yield f"    pick  {_names(offers, most)}"


def _names(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:most])} and {more} more"


def _qube(qube: Domain, made: dict[str, Domain], tokens: Sequence[Token]) -> str:
    """A qube by what rules know of it."""
    if qube.name not in made:
        return f"`{qube.name}`"
    words = []
    named = not qube.name.startswith("new-")
    if named:
        words.append(f"named `{qube.name}`")
    if any(token.kind is Kind.NAME and token.value == f"uuid:{qube.uuid}" for token in tokens):
        words.append(f"with uuid `{qube.uuid}`")
    if any(token.kind is Kind.TYPE for token in tokens):
        words.append(f"of type `{qube.type}`")
    if qube.tags:
        words.append("tagged " + " and ".join(f"`{tag}`" for tag in sorted(qube.tags)))
    return " ".join(["a qube", *words]) if words else "any qube"


def _target(possible: Possible, made: dict[str, Domain], tokens: Sequence[Token]) -> str:
    """The target of a call by what rules know of it."""
    target = possible.target
    qubes = {qube.name: qube for qube in possible.qubes}
    if target.startswith("uuid:"):
        return "itself, by its uuid"
    if target == possible.source.name:
        return "itself"
    if target in qubes:
        words = _qube(qubes[target], made, tokens)
        return "any other qube" if words == "any qube" else words
    if target.startswith("@dispvm"):
        named = target.partition(":")[2]
        base = qubes.get(named or possible.source.default_dispvm or "")
        of = f", of {_qube(base, made, [])}" if base is not None else ""
        return f"a new disposable (`{target.partition(':')[0]}`){of}"
    return f"`{target}`"
