"""The fast evaluator: rules found by service, argument, source and target instead of tried.

For every service and argument there is a table: source token → target token → the first rule
with both. A qube is matched by a handful of tokens (`*`, `@anyvm`, its name, uuid, type, tags),
so a decision is a few look-ups, however long the policy is.
The target lists of `ask` are sets of bits in one integer, so a rule over a thousand qubes costs
as much as one over a single qube.
`caisson.policy.reference` says what this must decide; a differential test keeps the two equal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain

from caisson.policy.outcome import Ask, Decision, Deny, Reason, Request
from caisson.policy.resolution import Call, admit, denied, may_run, permit
from caisson.policy.rules import EVERY, Action, Rule
from caisson.policy.system import SystemInfo
from caisson.policy.tokens import Kind, Role, parse_token
from caisson.policy.view import View, general_keys

_MOST_REMEMBERED = 65_536
_NONE = sys.maxsize
_EVERYTHING = (EVERY, EVERY)
_NO_RULE = Deny(Reason.NO_RULE, "no rule allows it")


class _Row:
    """The rules of one service, argument and source token."""

    __slots__ = ("first", "offers")

    def __init__(self) -> None:
        # Target token → number of the first rule that has it.
        self.first: dict[str, int] = {}
        # What a rule adds to or takes from target lists → number of the first rule that does.
        # A later rule about the same targets is overridden, so it need not be kept.
        self.offers: dict[str, int] = {}


class _Table:
    """The rules of one service and argument, by their numbers.

    `rows` by source token are made for the first call that needs them: so a reload need not pay
    for the services that nobody calls before the next one.
    `general` has those of tokens that all qubes of a sort have in common in one row.
    """

    __slots__ = ("general", "numbers", "rows")

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.rows: dict[str, _Row] | None = None
        self.general: dict[str, tuple[_Row, ...]] = {}


_Tables = dict[tuple[str, str], _Table]


class Index:
    """The rules of a policy, indexed; remembers what it derived from the latest snapshot.

    Args:
        rules: in the order in which they are tried.
        lowest: the number of the first; numbers only say which of two rules is tried first.
        tables: by service and argument, if they are made already.
    """

    def __init__(
        self, rules: Sequence[Rule], lowest: int = 0, tables: _Tables | None = None
    ) -> None:
        self.rules = tuple(rules)
        self._lowest = lowest
        self._tables = _tables(self.rules, lowest) if tables is None else tables
        self._view = View(SystemInfo({}))
        # By the number of a rule: whom it denies makes no difference to what is said.
        self._denials: dict[int, Deny] = {}

    def preceded_by(self, rules: tuple[Rule, ...]) -> Index:
        """The index with other rules tried first; shares every table that they do not touch."""
        lowest = self._lowest - len(rules)
        tables = _tables(rules, lowest)
        for place, table in tables.items():
            if place in self._tables:
                table.numbers += self._tables[place].numbers
        return Index(rules + self.rules, lowest, self._tables | tables)

    def decide(self, request: Request, domains: SystemInfo) -> Decision:
        """Decide as `reference.decide` does."""
        call = admit(request, domains)
        if isinstance(call, Deny):
            return call
        view = self._view_of(domains)
        rows = self._rows(call, view)
        number = _first_match(rows, view.target_keys(call))
        if number is None:
            return _NO_RULE
        denial = self._denials.get(number)
        if denial is not None:
            return denial
        rule = self._rule(number)
        match rule.action:
            case Action.DENY:
                return self._denials.setdefault(number, denied(rule))
            case Action.ALLOW:
                return permit(call, rule, rule.redirect or call.target, domains)
            case Action.ASK:
                return self._ask(call, rule, rows, view)

    def offered(self, call: Call, domains: SystemInfo) -> int:
        """What a question to this caller lets it pick, itself included: bits of `View.bit`."""
        view = self._view_of(domains)
        return self._offered(call, self._rows(call, view), view)

    def _view_of(self, domains: SystemInfo) -> View:
        if self._view.domains is not domains:
            self._view = View(domains, self._view)
        return self._view

    def _rows(self, call: Call, view: View) -> list[_Row]:
        """The rows whose service, argument and source match."""
        request, tables = call.request, self._tables
        sort, own = view.source_keys(call.source)
        rows: list[_Row] = []
        service, argument = request.service, request.argument
        for place in ((service, argument), (service, EVERY), _EVERYTHING):
            table = tables.get(place)  # type: ignore[arg-type]
            if table is not None:
                found = table.rows or self._make_rows(table)
                shared = table.general.get(sort)
                rows += _general(table, found, sort) if shared is None else shared
                for key in own:
                    if key in found:
                        rows.append(found[key])
        return rows

    def _make_rows(self, table: _Table) -> dict[str, _Row]:
        rows: dict[str, _Row] = {}
        for number in table.numbers:
            rule = self._rule(number)
            row = rows.setdefault(rule.source.key, _Row())
            row.first.setdefault(rule.target.key, number)
            row.offers.setdefault(str(rule.redirect or rule.target), number)
        table.rows = rows
        return rows

    def _rule(self, number: int) -> Rule:
        return self.rules[number - self._lowest]

    def _ask(self, call: Call, rule: Rule, rows: list[_Row], view: View) -> Ask | Deny:
        domains = view.domains
        if rule.redirect is not None:
            only = rule.redirect.key
            listed = (only,) if rule.autostart or may_run(only, domains) else ()
            found, default = bool(listed), _default_of_redirect(rule, listed)
        else:
            listed = None
            # Nobody is offered itself.
            bits = self._offered(call, rows, view) & ~view.bit[call.source.name]
            if not rule.autostart:
                bits &= view.running
            found, default = bool(bits), _default_of_bits(rule, call, bits, view)
        if not found:
            return Deny(
                Reason.NO_TARGET,
                f"there is no target to pick from ({rule.location})",
                rule.notify,
                rule.location,
            )
        return Ask(
            requested_target=str(call.target),
            source=call.source.name,
            location=rule.location,
            default_target=default,
            user=rule.user,
            autostart=rule.autostart,
            notify=rule.notify,
            list_targets=lambda: view.names(bits) if listed is None else listed,
            permit=lambda target: permit(call, rule, parse_token(target, Role.REDIRECT), domains),
        )

    def _offered(self, call: Call, rows: list[_Row], view: View) -> int:
        """The targets that all rules together let this source pick for this service."""
        identity = tuple(map(id, rows))  # the rows live as long as this index
        bits = view.offered.get(identity)
        if bits is None:
            bits = self._combine(rows, view)
            if len(view.offered) >= _MOST_REMEMBERED:
                view.offered.clear()
            view.offered[identity] = bits
        if bits & view.bit["@adminvm"]:
            bits = bits & ~view.bit["@adminvm"] | view.bit.get("dom0", 0)
        if bits & view.bit["@dispvm"]:
            bits ^= view.bit["@dispvm"]
            base = view.domains.find(call.source.default_dispvm or "")
            if base is not None and base.template_for_dispvms:
                bits |= view.bit[f"@dispvm:{base.name}"]
        return bits & ~view.internal

    def _combine(self, rows: list[_Row], view: View) -> int:
        """The targets whose first rule, of those that speak of them, does not deny them."""
        allowed, undecided, admin = 0, view.everything, view.bit["@adminvm"]
        mentioned = view.mentioned
        for number in sorted(chain.from_iterable([row.offers.values() for row in rows])):
            found = mentioned.get(number)
            if found is None:
                found = mentioned[number] = view.mention(self._rule(number))
            offered, bits = found
            allowed |= offered & undecided
            undecided &= ~bits
            if not undecided or (undecided == admin and allowed & view.bit.get("dom0", 0)):
                break
        return allowed


def _tables(rules: tuple[Rule, ...], lowest: int) -> _Tables:
    tables: _Tables = {}
    for number, rule in enumerate(rules, lowest):
        place = (rule.service, rule.argument)
        table = tables.get(place)
        if table is None:
            tables[place] = _Table([number])
        else:
            table.numbers.append(number)
    return tables


def _general(table: _Table, rows: dict[str, _Row], sort: str) -> tuple[_Row, ...]:
    """The rules whose source is any qube of a sort as one row, or none."""
    merged = _Row()
    for row in (rows[key] for key in general_keys(sort) if key in rows):
        for mine, others in ((merged.first, row.first), (merged.offers, row.offers)):
            for key, number in others.items():
                mine[key] = min(number, mine.get(key, number))
    table.general[sort] = (merged,) if merged.first else ()
    return table.general[sort]


def _first_match(rows: list[_Row], keys: tuple[str, ...]) -> int | None:
    best = _NONE
    for row in rows:
        first = row.first
        for key in keys:
            # Most look-ups miss, and a miss is cheapest this way.
            if key in first and first[key] < best:
                best = first[key]
    return best if best < _NONE else None


def _default_of_redirect(rule: Rule, listed: tuple[str, ...]) -> str | None:
    if rule.default_target is None or rule.default_target.key not in listed:
        return None
    return rule.default_target.key


def _default_of_bits(rule: Rule, call: Call, bits: int, view: View) -> str | None:
    token = rule.default_target
    if token is None:
        return None
    name = f"@dispvm:{call.source.default_dispvm}" if token.kind is Kind.DISPVM else token.key
    return name if view.bit.get(name, 0) & bits else None
