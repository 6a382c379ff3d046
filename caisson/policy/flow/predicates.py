"""Assertions about every system: `tag:vault never reaches netvm`.

A predicate is a conjunction of literals about one qube: `tag:T`, `type:T`, `name:N` (or just the
name), `netvm` (it has a network qube, or is one), `relay` (a RemoteVM is connected through it),
`base` (disposables can be made of it), `any`; `not` before a literal negates it. `internet` stands
alone, for the outside world.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec

from caisson.errors import ValueRefusedError
from caisson.names import shown

_LONGEST = 1_000
_NEVER = " never reaches "
_HINT = (
    "write `PREDICATE never reaches PREDICATE`; a predicate is `tag:T`, `type:T`, a name, `netvm`, "
    "`relay`, `base`, `internet` or `any`, joined by `and`, negated by `not`"
)
_ASSUMED_HINT = "write `no PREDICATE`, for `no qube is all of that`, or `PREDICATE has no netvm`"


class Aspect(Enum):
    """What a literal speaks about."""

    TAG = "tag:"
    TYPE = "type:"
    NAME = "name:"
    NETVM = "netvm"
    RELAY = "relay"
    BASE = "base"
    ANY = "any"


class Profile(msgspec.Struct, frozen=True):
    """What predicates and rules may know of a qube; an empty name or uuid is one without meaning.

    `net`: it has a network qube or an uplink, or gives others a network. How a RemoteVM is
    connected is another matter, and so is being its relay.
    """

    name: str
    type: str
    tags: frozenset[str]
    net: bool
    uuid: str = ""
    is_base: bool = False
    is_relay: bool = False


class Literal(msgspec.Struct, frozen=True):
    """One statement about a qube, or its opposite."""

    aspect: Aspect
    value: str = ""
    negated: bool = False

    def __str__(self) -> str:
        return f"{'not ' if self.negated else ''}{self.aspect.value}{self.value}"

    def opposite(self) -> Literal:
        """What is true where this is not."""
        return Literal(self.aspect, self.value, not self.negated)

    def holds(self, qube: Profile) -> bool:
        """Whether it is true of a qube."""
        return self._matches(qube) is not self.negated

    def _matches(self, qube: Profile) -> bool:
        match self.aspect:
            case Aspect.TAG:
                return self.value in qube.tags
            case Aspect.TYPE:
                return self.value == qube.type
            case Aspect.NAME:
                return self.value == qube.name
            case Aspect.NETVM | Aspect.RELAY | Aspect.BASE:
                known = {Aspect.NETVM: qube.net, Aspect.RELAY: qube.is_relay}
                return known.get(self.aspect, qube.is_base)
            case Aspect.ANY:
                return True


_DOM0 = frozenset({Literal(Aspect.NAME, "dom0"), Literal(Aspect.TYPE, "AdminVM")})


class Predicate(msgspec.Struct, frozen=True):
    """A conjunction of literals; None stands for the outside world."""

    literals: frozenset[Literal] | None

    def __str__(self) -> str:
        if self.literals is None:
            return "internet"
        return " and ".join(sorted(map(str, self.literals))) or "any"

    def holds(self, qube: Profile) -> bool:
        """Whether it is true of a qube."""
        return self.literals is not None and all(each.holds(qube) for each in self.literals)

    def is_end(self, qube: Profile) -> bool:
        """Whether it is true of a qube as the end of an assertion: of dom0, only if it says so."""
        means_dom0 = not _DOM0.isdisjoint(self.literals or ())
        return self.holds(qube) and (means_dom0 or qube.name != "dom0")


class Assertion(msgspec.Struct, frozen=True):
    """No data flows from a qube of the first kind to another of the second."""

    source: Predicate
    target: Predicate

    def __str__(self) -> str:
        return f"{self.source}{_NEVER}{self.target}"


def parse_assertion(untrusted: str) -> Assertion:
    """The assertion that a text states.

    Raises:
        ValueRefusedError: it states none.
    """
    source, never, target = _spaced(untrusted).partition(_NEVER)
    if not never:
        raise ValueRefusedError(f"`{shown(untrusted)}` is not an assertion", hint=_HINT)
    return Assertion(_predicate(source, untrusted), _predicate(target, untrusted))


def parse_assumption(untrusted: str) -> Predicate:
    """What no qube is, by an assumption.

    Raises:
        ValueRefusedError: the text states none.
    """
    text = _spaced(untrusted)
    if text.startswith("no "):
        found = _predicate(text.removeprefix("no "), untrusted)
    elif text.endswith(" has no netvm"):
        found = _predicate(text.removesuffix(" has no netvm") + " and netvm", untrusted)
    else:
        raise ValueRefusedError(f"`{shown(untrusted)}` is not an assumption", hint=_ASSUMED_HINT)
    if not found.literals:
        raise ValueRefusedError(
            f"`{shown(untrusted)}` says nothing about a qube", hint=_ASSUMED_HINT
        )
    return found


def _spaced(untrusted: str) -> str:
    if len(untrusted) > _LONGEST:
        raise ValueRefusedError(f"the text is longer than {_LONGEST} characters", hint=_HINT)
    return " ".join(untrusted.split())


def _predicate(untrusted: str, whole: str) -> Predicate:
    words = untrusted.split(" and ")
    if words == ["internet"]:
        return Predicate(None)
    literals = [_literal(word.strip(), whole) for word in words]
    return Predicate(frozenset(_meaningful(literals)))


def _meaningful(literals: Iterable[Literal]) -> Iterable[Literal]:
    return (each for each in literals if each != Literal(Aspect.ANY))


def _literal(untrusted: str, whole: str) -> Literal:
    word = untrusted.removeprefix("not ")
    negated = word != untrusted
    if word in (each.value for each in (Aspect.NETVM, Aspect.RELAY, Aspect.BASE, Aspect.ANY)):
        return Literal(Aspect(word), "", negated)
    for aspect in (Aspect.TAG, Aspect.TYPE, Aspect.NAME):
        if word.startswith(aspect.value):
            return Literal(aspect, _value(word.removeprefix(aspect.value), whole), negated)
    return Literal(Aspect.NAME, _value(word, whole), negated)


def _value(untrusted: str, whole: str) -> str:
    if untrusted in {"", "internet", "not", "and"} or not untrusted.isprintable():
        raise ValueRefusedError(f"`{shown(whole)}` is not understood", hint=_HINT)
    if set(untrusted) & set(" :@*"):
        raise ValueRefusedError(
            f"`{shown(untrusted)}` is neither a name, nor a tag or type", hint=_HINT
        )
    return untrusted
