"""The kinds of calls that rules tell apart: one for each service and argument that they name.

What no rule names, all rules treat alike: so there is one kind for any other argument of a
service and one for any other service, and a policy is known by finitely many calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import msgspec

from caisson.policy.rules import EVERY, Rule


class CallKind(msgspec.Struct, frozen=True, order=True):
    """Calls that all rules treat alike.

    Args:
        service: their service; `*` is any that no rule names.
        argument: their argument, from the `+` on; `*` is any that no rule names.
        call: a service and argument that stand for them.
        is_split: rules tell arguments of this service apart.
    """

    service: str
    argument: str
    call: tuple[str, str]
    is_split: bool = False

    def __str__(self) -> str:
        """The kind in few words: `s.X+a`, `s.X`, `s.X+*` for what is left of a split service."""
        if self.service == EVERY:
            return "any other service"
        if self.argument == EVERY:
            return f"{self.service}+*" if self.is_split else self.service
        return self.service if self.argument == "+" else self.service + self.argument


def kinds(rules: Sequence[Rule], also: Iterable[str] = ()) -> Iterator[tuple[CallKind, list[Rule]]]:
    """Every kind of calls that some rule speaks of, and these rules in order.

    Args:
        rules: the policy.
        also: services to tell apart although no rule names them.
    """
    by_service: dict[str, list[int]] = {}
    for number, rule in enumerate(rules):
        by_service.setdefault(rule.service, []).append(number)
    general = by_service.pop(EVERY, [])
    for service in sorted({*by_service, *(also if general else ())}):
        about = [rules[n] for n in sorted(by_service.get(service, []) + general)]
        named = {rule.argument for rule in about} - {EVERY}
        for argument in sorted(named):
            spoken = [rule for rule in about if rule.argument in (EVERY, argument)]
            yield CallKind(service, argument, (service, argument), is_split=True), spoken
        others = [rule for rule in about if rule.argument == EVERY]
        if others:
            call = (service, unused(named, "+"))
            yield CallKind(service, EVERY, call, is_split=bool(named)), others
    if general:
        other = unused({*by_service, *also}, "any.Other")
        yield CallKind(EVERY, EVERY, (other, "+")), [rules[n] for n in general]


def unused(taken: set[str], wish: str) -> str:
    """A name that is not taken: the wish itself, or with something behind it."""
    if wish not in taken:
        return wish
    return next(name for n in count(1) if (name := f"{wish}other-{n}") not in taken)
