"""The first rule of a slice that matches: for qubes that exist, and for all that tokens match."""

from __future__ import annotations

from collections.abc import Sequence

from caisson.policy.analysis.census import Case
from caisson.policy.analysis.slices import Entry
from caisson.policy.outcome import Request
from caisson.policy.resolution import Call
from caisson.policy.tokens import Kind, Role, Token, parse_token
from caisson.policy.view import View


class Table:
    """Rules by their tokens: which is the first that speaks of a source and a target."""

    def __init__(self, keyed: Sequence[tuple[int, str, str]]) -> None:
        self._first: dict[str, dict[str, int]] = {}
        for number, source, target in keyed:
            self._first.setdefault(source, {}).setdefault(target, number)

    def first(self, sources: Sequence[str], targets: Sequence[str]) -> int | None:
        """The number of the first rule that has one of these and one of those keys."""
        rows = [self._first[key] for key in sources if key in self._first]
        numbers = [row[key] for row in rows for key in targets if key in row]
        return min(numbers, default=None)


def table_of(entries: Sequence[Entry]) -> Table:
    """The table of the rules of a slice."""
    return Table([(n, entry.source, entry.target) for n, entry in enumerate(entries)])


def keys_of(case: Case, service: str, argument: str) -> tuple[Sequence[str], Sequence[str]]:
    """The tokens of rules that match the source, and those that match the target of a case."""
    view = View(case.system)
    target = parse_token(case.target, Role.REQUEST)
    call = Call(Request(service, argument, case.source.name, case.target), case.source, target)
    return view.qube_keys(case.source), view.target_keys(call)


def implied(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Keys of tokens that match whatever all of these match."""
    anyvm = any(_excludes_admin(token) for token in tokens)
    return ("*", *(("@anyvm",) if anyvm else ()), *(token.key for token in tokens))


def _excludes_admin(token: Token) -> bool:
    match token.kind:
        case Kind.NAME:
            return token.key != "dom0"
        case Kind.ANY | Kind.ADMINVM | Kind.TAG | Kind.TYPE:
            return False
        case _:
            return True
