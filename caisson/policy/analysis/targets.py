"""The targets of calls as bits of an integer, so that a set of them costs what one costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress

from caisson.policy.analysis.slices import Entry
from caisson.policy.resolution import may_run
from caisson.policy.system import Domain
from caisson.policy.view import View

_BITS = bytes.maketrans(b"01", b"\x00\x01")
_KEYWORDS = ("@adminvm", "@default", "@dispvm")
_KEYWORD_KEYS = (("*", "dom0"), ("*", "@anyvm", "@default"), ("*", "@anyvm", "@dispvm"))


class Targets:
    """All that a qube of a system can call, as bits of an integer.

    A `uuid:` form is called as its name is, but for a qube's own, and a name that no qube has as
    `@default`.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        qubes = list(view.domains.domains.values())
        bases = [q for q in qubes if q.template_for_dispvms]
        names = [*(q.name for q in qubes), *(f"@dispvm:{q.name}" for q in bases), *_KEYWORDS]
        self.names = names
        self.bit = {name: 1 << number for number, name in enumerate(names)}
        self.everything = (1 << len(names)) - 1
        self.matched: dict[str, int] = {}
        for qube in qubes:
            self._match(qube.name, view.qube_keys(qube))
        for base in bases:
            self._match(f"@dispvm:{base.name}", ("*", "@anyvm", *view.base_keys(base.name)))
        for name, keys in zip(_KEYWORDS, _KEYWORD_KEYS, strict=True):
            self._match(name, keys)
        self.kinds = self._kinds(qubes, bases)

    def _match(self, name: str, keys: Sequence[str]) -> None:
        for key in keys:
            self.matched[key] = self.matched.get(key, 0) | self.bit[name]

    def _kinds(self, qubes: list[Domain], bases: list[Domain]) -> list[int]:
        """Sets of targets of which one is as the other once a rule allows a call to them."""
        admin = self.bit["@adminvm"] | self.bit.get("dom0", 0)
        new = sum(self.bit[f"@dispvm:{base.name}"] for base in bases)
        kinds: dict[object, int] = {}
        for qube in qubes:
            relay = self._view.domains.find(qube.relayvm) if qube.relayvm else None
            relayed = qube.type == "RemoteVM" and (relay is not None, bool(qube.transport_rpc))
            kind = (may_run(qube.name, self._view.domains), relayed)
            if qube.name != "dom0":
                kinds[kind] = kinds.get(kind, 0) | self.bit[qube.name]
        return [admin, new, self.bit["@default"], self.bit["@dispvm"], *kinds.values()]

    def names_of(self, bits: int) -> tuple[str, ...]:
        """The names of some targets."""
        return tuple(compress(self.names, f"{bits:b}"[::-1].encode().translate(_BITS)))

    def first(self, bits: int) -> str:
        """The name of one of some targets."""
        return self.names[(bits & -bits).bit_length() - 1]

    def cells(
        self, entries: Sequence[Entry], base: str | None
    ) -> Iterator[tuple[Entry | None, int]]:
        """Which targets each rule decides, for a source that all of these rules speak of.

        Args:
            entries: the rules in order.
            base: the qube that the source makes disposables from.
        """
        asked = frozenset(self._view.base_keys(base) if base else ())
        new, undecided = self.bit["@dispvm"], self.everything
        for entry in entries:
            bits = self.matched.get(entry.target, 0)
            if entry.target in asked:
                bits |= new
            if bits & undecided:
                yield entry, bits & undecided
                undecided &= ~bits
        if undecided:
            yield None, undecided

    def classes(self, bits: int, apart: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Split a set of targets into such that are treated alike, each with its number.

        Those of `apart` go first, whatever their kind.
        """
        for number, part in enumerate((*apart, *self.kinds)):
            if bits & part:
                yield number, bits & part
                bits &= ~part
