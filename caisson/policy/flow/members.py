"""Who may take part in a flow, as rules see them, and which of them a token means, as bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from caisson.policy.flow import bits
from caisson.policy.tokens import Kind, Token

_EVERYBODY = (Kind.ANY, Kind.ANYVM)


class Member(msgspec.Struct, frozen=True):
    """A qube, or one that may come to be.

    `name` is empty for one that no rule can name. `is_base`: disposables can be made of it.
    `calls`: it can make calls that policy judges. `answers`: calls can arrive at it.
    `absent`: there is no such qube, but one has it as its `default_dispvm`.
    """

    name: str = ""
    type: str = ""
    tags: frozenset[str] = frozenset()
    uuid: str | None = None
    is_base: bool = False
    internal: bool = False
    calls: bool = True
    answers: bool = True
    absent: bool = False


class Defaults(msgspec.Struct, frozen=True):
    """Callers that have their `default_dispvm` in common: one of `bases`, or maybe none."""

    callers: int
    bases: int
    maybe_none: bool


class Population:
    """Members, each a bit, and the sets that tokens stand for.

    A set of *requests* has more bits, since a caller can ask for more than members. With n
    members: bit i is the member itself; n, the keyword `@adminvm`; n + 1, `@default`;
    n + 2, `@dispvm` by a caller without `default_dispvm`; n + 3 + i, `@dispvm:` of member i;
    2n + 3 + i, `@dispvm` by a caller whose `default_dispvm` is member i.
    A set of *offers* (the list of an `ask`) is alike, but n + 1 is the keyword `@dispvm`.

    Args:
        members: all of them; the admin qube, if it is there, is called `dom0`.
        defaults: how they divide by `default_dispvm`.
    """

    def __init__(self, members: Sequence[Member], defaults: Sequence[Defaults]) -> None:
        self.members = members
        self.defaults = defaults
        self.size = size = len(members)
        self.everybody = self._those(i for i, m in enumerate(members) if not m.absent)
        self.base = self._those(i for i, m in enumerate(members) if m.is_base)
        self.internal = self._those(i for i, m in enumerate(members) if m.internal)
        self.callers = self._those(i for i, m in enumerate(members) if m.calls and not m.absent)
        self.answering = self._those(i for i, m in enumerate(members) if m.answers and not m.absent)
        self._references = self._gathered(_references(m) for m in members)
        self._types = self._gathered([m.type] for m in members)
        self._tags = self._gathered(m.tags for m in members)
        self.dom0 = self._references.get("dom0", 0)
        self.admin_keyword = 1 << size
        self.default_keyword = self.own_keyword = 1 << size + 1
        self.baseless = 1 << size + 2
        everything = (1 << size) - 1
        self.own_requests = self.own_disposables(everything) | self.baseless
        self.all_requests = (
            self.everybody
            | self.admin_keyword
            | self.default_keyword
            | self.disposables(self.base)
            | self.own_requests
        )
        self._shared: dict[int, int] = {}
        self._known_requests: dict[Token, int] = {}
        self._known_offers: dict[Token, int] = {}

    def _those(self, numbers: Iterable[int]) -> int:
        return bits.of(numbers, self.size)

    def _gathered(self, keys: Iterable[Iterable[str]]) -> dict[str, int]:
        found: dict[str, list[int]] = {}
        for number, of_one in enumerate(keys):
            for key in of_one:
                found.setdefault(key, []).append(number)
        return {key: self._those(numbers) for key, numbers in found.items()}

    def shared(self, some: int) -> int:
        """A set, once in memory however often it is kept: rules repeat the same few."""
        return self._shared.setdefault(some, some)

    # Between the sets of members and the larger ones.

    def disposables(self, bases: int) -> int:
        """The requests for a new disposable of one of these, by name."""
        return bases << self.size + 3

    def own_disposables(self, bases: int) -> int:
        """The requests `@dispvm` by callers that have one of these as `default_dispvm`."""
        return bases << 2 * self.size + 3

    def named(self, requests: int) -> int:
        """The members that are asked for themselves."""
        return requests & (1 << self.size) - 1

    def bases_asked(self, requests: int) -> int:
        """The members of which a disposable is asked for by name."""
        return requests >> self.size + 3 & (1 << self.size) - 1

    def own_bases_asked(self, requests: int) -> int:
        """The members of which a disposable is asked for by `@dispvm`."""
        return requests >> 2 * self.size + 3

    # What tokens mean.

    def called(self, reference: str) -> int:
        """The members with this name or `uuid:` form, present or not."""
        return self._references.get(reference, 0)

    def matching(self, token: Token) -> int:
        """The members that a token of a rule matches, as callers or as targets."""
        match token.kind:
            case Kind.ANY:
                return self.everybody
            case Kind.ANYVM:
                return self.everybody & ~self.dom0
            case Kind.NAME | Kind.ADMINVM:
                return self.called(token.key) & self.everybody
            case Kind.TYPE:
                return self._types.get(token.value, 0) & self.everybody
            case Kind.TAG:
                return self._tags.get(token.value, 0)
            case _:
                return 0

    def requests(self, target: Token) -> int:
        """The requests that a rule with this TARGET matches."""
        found = self._known_requests.get(target)
        if found is None:
            found = self._known_requests[target] = self._requests(target)
        return found

    def _requests(self, target: Token) -> int:
        found = self.matching(target)
        if target.key == "dom0" or target.kind is Kind.ANY:
            found |= self.admin_keyword
        if target.kind in _EVERYBODY or target.kind is Kind.DEFAULT:
            found |= self.default_keyword
        if target.kind in _EVERYBODY:
            found |= self.disposables(self.base)
        if target.kind in _EVERYBODY or target.kind is Kind.DISPVM:
            found |= self.own_requests
        if target.kind is Kind.DISPVM_OF:
            named = self.called(target.value)
            found |= self.disposables(named & self.base) | self.own_disposables(named)
        if target.kind is Kind.DISPVM_TAG:
            tagged = self._tags.get(target.value, 0) & self.base
            found |= self.disposables(tagged) | self.own_disposables(tagged)
        return found

    def offers(self, token: Token) -> int:
        """What a rule about this token puts into the lists of `ask`."""
        found = self._known_offers.get(token)
        if found is None:
            found = self._known_offers[token] = self._offers(token)
        return found

    def _offers(self, token: Token) -> int:
        match token.kind:
            case Kind.ADMINVM:
                return self.admin_keyword
            case Kind.DISPVM:
                return self.own_keyword
            case Kind.ANY | Kind.ANYVM:
                return self.matching(token) | self.disposables(self.base) | self.own_keyword
            case Kind.DISPVM_OF:
                return self.disposables(self.called(token.value) & self.base)
            case Kind.DISPVM_TAG:
                return self.disposables(self._tags.get(token.value, 0) & self.base)
            case _:
                return self.matching(token)

    def withdrawn(self, token: Token) -> int:
        """What a rule that denies this token takes out of the lists of `ask`."""
        found = self.offers(token)
        if token.kind in (Kind.ANY, Kind.NAME) and found & self.dom0:
            found |= self.admin_keyword
        return found


def _references(member: Member) -> list[str]:
    names = [member.name] if member.name else []
    return [*names, f"uuid:{member.uuid}"] if member.uuid and member.name != "dom0" else names
