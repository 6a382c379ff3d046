"""The calls that stand for all calls: one for each service and argument that rules tell apart.

What no rule names, all rules treat alike, so one call of that kind speaks for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from caisson.policy.rules import EVERY, Rule

_OTHER_SERVICE = "any.other.service"
_OTHER_ARGUMENT = "+any-other-argument"


class Kind(msgspec.Struct, frozen=True, order=True):
    """Calls that all rules treat alike.

    Args:
        service: the service of the call that stands for them.
        argument: its argument, from the `+` on.
        label: how people call the kind: `s.X+a`, `s.X` (no argument, or all that are not named),
            `s.X+…` (every argument that no rule names, where the call without one is another
            kind), `*` (every service that no rule names).
    """

    service: str
    argument: str
    label: str


def kinds(rules: Iterable[Rule]) -> tuple[Kind, ...]:
    """All kinds of calls that the rules tell apart, sorted."""
    arguments: dict[str, set[str]] = {}
    for rule in rules:
        arguments.setdefault(rule.service, set()).add(rule.argument)
    every = EVERY in arguments
    found = [Kind(_unnamed(_OTHER_SERVICE, arguments), "+", EVERY)] if every else []
    for service, named in arguments.items():
        if service != EVERY:
            found += _of_service(service, named, others=every or EVERY in named)
    return tuple(sorted(found))


def _of_service(service: str, named: set[str], *, others: bool) -> list[Kind]:
    exact = named - {EVERY}
    found = [Kind(service, text, service if text == "+" else service + text) for text in exact]
    if others and "+" in exact:
        found.append(Kind(service, _unnamed(_OTHER_ARGUMENT, exact), f"{service}+…"))
    elif others:
        found.append(Kind(service, "+", service))
    return found


def _unnamed(text: str, named: Iterable[str]) -> str:
    taken = set(named)
    while text in taken:
        text += "_"
    return text


def relevant(kind: Kind, rules: Sequence[Rule]) -> list[Rule]:
    """The rules that speak of a kind, in order."""
    return [
        rule
        for rule in rules
        if rule.service in (EVERY, kind.service) and rule.argument in (EVERY, kind.argument)
    ]
