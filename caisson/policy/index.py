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
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, compress

from caisson.policy.outcome import Ask, Decision, Deny, Reason, Request
from caisson.policy.resolution import Call, admit, may_run, permit
from caisson.policy.rules import EVERY, Action, Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import Kind, Role, Token, parse_token

_MOST_REMEMBERED = 65_536
_NONE = sys.maxsize
_BITS = bytes.maketrans(b"01", b"\x00\x01")


class _Row:
    """The rules of one service, argument and source token."""

    __slots__ = ("first", "offers")

    def __init__(self) -> None:
        # Target token → number of the first rule that has it.
        self.first: dict[str, int] = {}
        # What a rule adds to or takes from target lists → number of the first rule that does.
        # A later rule about the same targets is overridden, so it need not be kept.
        self.offers: dict[str, int] = {}


class Index:
    """The rules of a policy, indexed; remembers what it derived from the latest snapshot."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._tables: dict[tuple[str, str], dict[str, _Row]] = {}
        self._denies = [rule.action is Action.DENY for rule in self.rules]
        self._view = View(SystemInfo({}))
        for number, rule in enumerate(self.rules):
            table = self._tables.setdefault((rule.service, rule.argument), {})
            row = table.setdefault(rule.source.key, _Row())
            row.first.setdefault(rule.target.key, number)
            row.offers.setdefault(str(rule.redirect or rule.target), number)

    def decide(self, request: Request, domains: SystemInfo) -> Decision:
        """Decide as `reference.decide` does."""
        call = admit(request, domains)
        if isinstance(call, Deny):
            return call
        view = self._view
        if view.domains is not domains:
            view = self._view = View(domains)
        rows = self._rows(call, view)
        number = _first_match(rows, view.target_keys(call))
        if number is None:
            return Deny(Reason.NO_RULE, "no rule allows it")
        rule = self.rules[number]
        match rule.action:
            case Action.DENY:
                return Deny(Reason.RULE, f"denied by {rule.location}", rule.notify, rule.location)
            case Action.ALLOW:
                return permit(call, rule, rule.redirect or call.target, domains)
            case Action.ASK:
                return self._ask(call, rule, rows, view)

    def offered(self, call: Call, domains: SystemInfo) -> int:
        """What a question to this caller lets it pick, itself included: bits of `View.bit`."""
        view = self._view
        if view.domains is not domains:
            view = self._view = View(domains)
        return self._offered(call, self._rows(call, view), view)

    def _rows(self, call: Call, view: View) -> list[_Row]:
        """The rows whose service, argument and source match."""
        service = call.request.service
        keys = view.qube_keys(call.source)
        rows = []
        for place in ((service, call.request.argument), (service, EVERY), (EVERY, EVERY)):
            table = self._tables.get(place)  # type: ignore[arg-type]
            if table is not None:
                rows += [table[key] for key in keys if key in table]
        return rows

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
        mentioned, denies = view.mentioned, self._denies
        for number in sorted(chain.from_iterable([row.offers.values() for row in rows])):
            bits = mentioned.get(number)
            if bits is None:
                bits = mentioned[number] = view.mention(self.rules[number])
            if not denies[number]:
                allowed |= bits & undecided
            undecided &= ~bits
            if not undecided or (undecided == admin and allowed & view.bit.get("dom0", 0)):
                break
        return allowed


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


class View:
    """What follows from one snapshot: the tokens that match a qube, and target sets as bits."""

    def __init__(self, domains: SystemInfo) -> None:
        self.domains = domains
        # By the rows that match a call: what all rules together offer it.
        self.offered: dict[tuple[int, ...], int] = {}
        # By the number of a rule: see `mention`.
        self.mentioned: dict[int, int] = {}
        self._keys: dict[str, tuple[str, ...]] = {}

    def qube_keys(self, qube: Domain) -> tuple[str, ...]:
        """The tokens of rules that match a qube."""
        keys = self._keys.get(qube.name)
        if keys is None:
            keys = self._keys[qube.name] = (
                "*",
                *(() if qube.name == "dom0" else ("@anyvm",)),
                *self._references(qube),
                f"@type:{qube.type}",
                *(f"@tag:{tag}" for tag in qube.tags),
            )
        return keys

    def target_keys(self, call: Call) -> tuple[str, ...]:
        """The tokens of rules that match the target of a call."""
        match call.target.kind:
            case Kind.NAME:
                qube = self.domains.find(call.target.value)
                return self.qube_keys(qube) if qube else ()
            case Kind.ADMINVM:
                return ("*", "dom0")
            case Kind.DEFAULT:
                return ("*", "@anyvm", "@default")
            case Kind.DISPVM:
                base = call.source.default_dispvm
                return ("*", "@anyvm", "@dispvm", *(self.base_keys(base) if base else ()))
            case _:
                return ("*", "@anyvm", *self.base_keys(call.target.value))

    def base_keys(self, reference: str) -> tuple[str, ...]:
        """The tokens that match a new disposable of a qube."""
        qube = self.domains.find(reference)
        if qube is None:
            return (f"@dispvm:{reference}",)
        tags = qube.tags if qube.template_for_dispvms else ()
        return (
            *(f"@dispvm:{name}" for name in self._references(qube)),
            *(f"@dispvm:@tag:{tag}" for tag in tags),
        )

    def _references(self, qube: Domain) -> tuple[str, ...]:
        uuid = f"uuid:{qube.uuid}"
        return (qube.name, uuid) if self.domains.find(uuid) is qube else (qube.name,)

    # Target sets: bit i of an integer stands for the i-th name of `_universe`.

    @cached_property
    def _universe(self) -> list[str]:
        names = list(self.domains.domains)
        bases = [f"@dispvm:{q.name}" for q in self._qubes if q.template_for_dispvms]
        return sorted([*names, *bases, "@adminvm", "@dispvm"])

    @cached_property
    def _qubes(self) -> list[Domain]:
        return list(self.domains.domains.values())

    @cached_property
    def bit(self) -> dict[str, int]:
        """The bit of every target that a list can hold."""
        return {name: 1 << i for i, name in enumerate(self._universe)}

    @cached_property
    def everything(self) -> int:
        """All targets."""
        return (1 << len(self._universe)) - 1

    @cached_property
    def internal(self) -> int:
        """The targets that are hidden from lists."""
        hidden = [q for q in self._qubes if q.internal]
        return self._union(hidden) | self._disposables(hidden)

    @cached_property
    def running(self) -> int:
        """The targets that a call would not have to start."""
        return self._union(q for q in self._qubes if may_run(q.name, self.domains))

    @cached_property
    def _by_token(self) -> dict[str, int]:
        """What the tokens for many qubes stand for."""
        found: dict[str, int] = {"@dispvm": self.bit["@dispvm"]}
        found["*"] = self.everything & ~self.bit["@adminvm"]
        found["@anyvm"] = found["*"] & ~self.bit.get("dom0", 0)
        for qube in self._qubes:
            keys = [f"@type:{qube.type}", *(f"@tag:{tag}" for tag in qube.tags)]
            for key in keys:
                found[key] = found.get(key, 0) | self.bit[qube.name]
            if qube.template_for_dispvms:
                for tag in qube.tags:
                    key = f"@dispvm:@tag:{tag}"
                    found[key] = found.get(key, 0) | self.bit[f"@dispvm:{qube.name}"]
        return found

    def expand(self, token: Token) -> int:
        """The targets that a token of a rule stands for."""
        match token.kind:
            case Kind.NAME:
                qube = self.domains.find(token.value)
                return self.bit[qube.name] if qube else 0
            case Kind.ADMINVM:
                return self.bit["@adminvm"]
            case Kind.DISPVM_OF:
                base = self.domains.find(token.value)
                return self._disposables([base] if base else [])
            case _:
                return self._by_token.get(token.key, 0)

    def mention(self, rule: Rule) -> int:
        """The targets that a rule offers, or, if it denies, withdraws."""
        bits = self.expand(rule.redirect or rule.target)
        if rule.action is Action.DENY and rule.target.kind in (Kind.ANY, Kind.NAME):
            # See `reference.withdrawn`: who denies the qube denies its keyword too.
            bits |= self.bit["@adminvm"] if bits & self.bit.get("dom0", 0) else 0
        return bits

    def names(self, bits: int) -> tuple[str, ...]:
        """The names that the bits stand for, sorted."""
        digits = f"{bits:b}"[::-1].encode().translate(_BITS)
        return tuple(compress(self._universe, digits))

    def _union(self, qubes: Iterable[Domain]) -> int:
        bits = 0
        for qube in qubes:
            bits |= self.bit[qube.name]
        return bits

    def _disposables(self, bases: Iterable[Domain]) -> int:
        bits = 0
        for base in bases:
            if base.template_for_dispvms:
                bits |= self.bit[f"@dispvm:{base.name}"]
        return bits
