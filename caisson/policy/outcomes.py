"""What each qube may call, worked out for all qubes at once instead of call by call.

Sets of qubes are bits of one integer: bit i stands for the i-th name. For one kind of call, the
rules that match a source are walked once, and each takes the targets that no earlier one took.
Sources that the same rules match share the work.
A property test holds the result to `caisson.policy.reference`, call by call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from caisson.policy.calls import CallKind
from caisson.policy.index import Index
from caisson.policy.outcome import Allow, Ask, Request
from caisson.policy.reference import matches_qube, matches_target
from caisson.policy.resolution import Call, can_be_base, may_run, permit
from caisson.policy.rules import Action, Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import Kind, Role, Token, parse_token

Outcomes = Mapping[Action, frozenset[str]]
"""By outcome, where calls of one kind of one source go: names and `@dispvm:NAME`.

For `deny` it is what was asked for where a rule, not the lack of one, denies.
"""


_NOBODY = Domain("")


class _Sources(msgspec.Struct, frozen=True):
    """Sources that the rules of one kind cannot tell apart."""

    names: tuple[str, ...]
    rules: tuple[Rule, ...]


class Table:
    """Works out the outcomes of one policy on one system.

    Args:
        rules: all rules, in order.
        system: what exists.
    """

    def __init__(self, rules: Sequence[Rule], system: SystemInfo) -> None:
        self._system = system
        self._index = Index(rules)
        qubes = system.domains.values()
        self._names = list(system.domains)
        bases = [f"@dispvm:{qube.name}" for qube in qubes if qube.template_for_dispvms]
        self._targets = [*self._names, *bases, "@adminvm", "@default", "@dispvm"]
        self._tokens = [parse_token(target, Role.REQUEST) for target in self._targets]
        self._by_source: dict[Token, int] = {}
        self._by_target: dict[tuple[Token, str | None], int] = {}
        self._running = self._bits(may_run(name, system) for name in self._targets)
        remote = (self._is_remote(name) for name in self._targets)
        self._remote = self._bits(remote)

    def of_kind(self, kind: CallKind, rules: Sequence[Rule]) -> Iterator[tuple[str, Outcomes]]:
        """Each source and its outcomes; sources without any are left out.

        Args:
            kind: the kind of call.
            rules: those that speak of it, in order.
        """
        for sources in self._classes(rules):
            shared = self._shared(kind, sources)
            for name in sources.names:
                # Nobody calls itself.
                found = {action: names - {name} for action, names in shared.items()}
                if any(found.values()):
                    yield name, found

    def _classes(self, rules: Sequence[Rule]) -> Iterator[_Sources]:
        matched = [self._source_bits(rule.source) for rule in rules]
        classes: dict[tuple[int, str | None], list[str]] = {}
        for number, name in enumerate(self._names):
            signature = sum(1 << i for i, bits in enumerate(matched) if bits >> number & 1)
            base = self._qube(name).default_dispvm
            classes.setdefault((signature, base), []).append(name)
        for (signature, _), names in classes.items():
            matching = tuple(rule for i, rule in enumerate(rules) if signature >> i & 1)
            if matching:
                yield _Sources(tuple(names), matching)

    def _shared(self, kind: CallKind, sources: _Sources) -> dict[Action, frozenset[str]]:
        """The outcomes of all these sources together: each has them but for itself."""
        found: dict[Action, set[str]] = {action: set() for action in Action}
        base = self._qube(sources.names[0]).default_dispvm
        left = (1 << len(self._targets)) - 1
        for rule in sources.rules:
            taken = self._target_bits(rule.target, base) & left
            left &= ~taken
            if taken:
                found[rule.action] |= self._reached(kind, rule, taken, sources.names)
        return {action: frozenset(names) for action, names in found.items() if names}

    def _reached(self, kind: CallKind, rule: Rule, taken: int, sources: Sequence[str]) -> set[str]:
        """Where calls to the targets `taken`, which `rule` decides, go."""
        if rule.action is Action.DENY:
            return set(self._named(taken))
        if rule.action is Action.ALLOW and rule.redirect is None:
            return self._allowed(kind, rule, taken, self._qube(sources[0]))
        # One rule, one answer: whatever of them was asked for. Two sources say what each of
        # them hides from itself.
        number = taken.bit_length() - 1
        found: set[str] = set()
        for source in sources[:2]:
            request = Request(*kind.call, source, self._targets[number])
            if rule.action is Action.ASK:
                decision = self._index.decide(request, self._system)
                found.update(decision.targets if isinstance(decision, Ask) else ())
            elif rule.redirect is not None:
                call = Call(request, self._qube(source), self._tokens[number])
                allowed = permit(call, rule, rule.redirect, self._system)
                found.update({allowed.target} if isinstance(allowed, Allow) else ())
        return found

    def _allowed(self, kind: CallKind, rule: Rule, taken: int, source: Domain) -> set[str]:
        if not rule.autostart:
            taken &= self._running
        found = set(self._named(taken & ~self._remote))
        for name in self._named(taken & self._remote):
            # Whether a relay takes the call depends on all of it but the source.
            call = Call(Request(*kind.call, "", name), _NOBODY, Token(Kind.NAME, name))
            if isinstance(permit(call, rule, call.target, self._system), Allow):
                found.add(name)
        found.discard("@default")
        if "@adminvm" in found:
            found.remove("@adminvm")
            found.add("dom0")
        if "@dispvm" in found:
            found.remove("@dispvm")
            base = source.default_dispvm
            if base and can_be_base(base, self._system):
                found.add(f"@dispvm:{base}")
        return found

    def _is_remote(self, target: str) -> bool:
        qube = self._system.find(target)
        return qube is not None and qube.type == "RemoteVM"

    def _qube(self, name: str) -> Domain:
        return self._system.domains[name]

    def _source_bits(self, token: Token) -> int:
        bits = self._by_source.get(token)
        if bits is None:
            found = (matches_qube(token, name, self._system) for name in self._names)
            bits = self._by_source[token] = self._bits(found)
        return bits

    def _target_bits(self, token: Token, base: str | None) -> int:
        bits = self._by_target.get((token, base))
        if bits is None:
            source = msgspec.structs.replace(_NOBODY, default_dispvm=base)
            request = Request("any", "+", "", "")
            calls = (Call(request, source, target) for target in self._tokens)
            found = (matches_target(token, call, self._system) for call in calls)
            bits = self._by_target[token, base] = self._bits(found)
        return bits

    def _named(self, bits: int) -> Iterator[str]:
        while bits:
            lowest = bits & -bits
            yield self._targets[lowest.bit_length() - 1]
            bits ^= lowest

    @staticmethod
    def _bits(found: Iterator[bool]) -> int:
        return sum(1 << i for i, is_set in enumerate(found) if is_set)
