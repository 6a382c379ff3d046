"""What follows from one snapshot for the index: matching tokens, and sets of targets as bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import compress

from caisson.policy.resolution import Call, may_run
from caisson.policy.rules import Action, Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import Kind, Token

_NOT_ADMIN = "@"
_BITS = bytes.maketrans(b"01", b"\x00\x01")


def general_keys(sort: str) -> tuple[str, ...]:
    """The tokens that match all qubes of a sort: their type, and whether they are not dom0."""
    if sort.startswith(_NOT_ADMIN):
        return ("*", "@anyvm", f"@type:{sort.removeprefix(_NOT_ADMIN)}")
    return ("*", f"@type:{sort}")


class View:
    """What follows from one snapshot: the tokens that match a qube, and target sets as bits.

    Args:
        domains: the snapshot.
        former: the view of an earlier one; what it found out is used where it still holds.
    """

    def __init__(self, domains: SystemInfo, former: View | None = None) -> None:
        self.domains = domains
        # By the rows that match a call: what all rules together offer it.
        self.offered: dict[tuple[int, ...], int] = {}
        # By the number of a rule: see `mention`.
        self.mentioned: dict[int, tuple[int, int]] = {}
        self._keys: dict[str, tuple[str, ...]] = {}
        self._source_keys: dict[str, tuple[str, tuple[str, ...]]] = {}
        if former is not None and "_by_token" in former.__dict__:
            self._follow(former)

    def _follow(self, former: View) -> None:
        """Take over the target sets, if none but the sets of some qubes changed."""
        changes = self.domains.changes_since(former.domains)
        if changes is None:
            return
        found = dict(former._by_token)
        for old, new in changes:
            if not old or not new or old.template_for_dispvms != new.template_for_dispvms:
                return  # there are other targets now
            for key, bit in _tokens_of(old, former.bit):
                found[key] &= ~bit
                if not found[key]:
                    del found[key]  # or whoever sets ever new tags makes it grow
            for key, bit in _tokens_of(new, former.bit):
                found[key] = found.get(key, 0) | bit
        self._universe, self.bit = former._universe, former.bit
        self._by_token = found

    def qube_keys(self, qube: Domain) -> tuple[str, ...]:
        """The tokens of rules that match a qube."""
        keys = self._keys.get(qube.name)
        if keys is None:
            sort, own = self.source_keys(qube)
            keys = self._keys[qube.name] = (*general_keys(sort), *own)
        return keys

    def source_keys(self, qube: Domain) -> tuple[str, tuple[str, ...]]:
        """The same in two parts: the sort of qube (see `general_keys`), and its own tokens."""
        keys = self._source_keys.get(qube.name)
        if keys is None:
            keys = self._source_keys[qube.name] = (
                f"{'' if qube.name == 'dom0' else _NOT_ADMIN}{qube.type}",
                (*self._references(qube), *(f"@tag:{tag}" for tag in qube.tags)),
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
            for key, bit in _tokens_of(qube, self.bit):
                found[key] = found.get(key, 0) | bit
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

    def mention(self, rule: Rule) -> tuple[int, int]:
        """The targets that a rule offers, and those that it speaks of; a denial offers none."""
        bits = self.expand(rule.redirect or rule.target)
        if rule.action is not Action.DENY:
            return bits, bits
        if rule.target.kind in (Kind.ANY, Kind.NAME) and bits & self.bit.get("dom0", 0):
            # See `reference.withdrawn`: who denies the qube denies its keyword too.
            bits |= self.bit["@adminvm"]
        return 0, bits

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


def _tokens_of(qube: Domain, bits: dict[str, int]) -> Iterator[tuple[str, int]]:
    """The tokens for many qubes that stand for this one too, each with the target it adds."""
    bit = bits[qube.name]
    yield f"@type:{qube.type}", bit
    for tag in qube.tags:
        yield f"@tag:{tag}", bit
        if qube.template_for_dispvms:
            yield f"@dispvm:@tag:{tag}", bits[f"@dispvm:{qube.name}"]
