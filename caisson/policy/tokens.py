"""Tokens: the words of a policy that stand for qubes.

Specification sheet `qrexec`, section 3.1: which token may stand in which place.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

import msgspec

from caisson.errors import PolicyError
from caisson.names import shown

NIL_UUID = "uuid:00000000-0000-0000-0000-000000000000"
_LONGEST_REMEMBERED = 128
_ADMIN_QUBE = frozenset({"dom0", "@adminvm", NIL_UUID})


class Kind(Enum):
    """What a token stands for."""

    NAME = "a qube, by name or `uuid:`"
    ANY = "*"
    ANYVM = "@anyvm"
    ADMINVM = "@adminvm"
    DEFAULT = "@default"
    DISPVM = "@dispvm"
    TYPE = "@type:"
    TAG = "@tag:"
    DISPVM_OF = "@dispvm:"
    DISPVM_TAG = "@dispvm:@tag:"


class Role(Enum):
    """The place where a token stands, and the kinds that may stand there."""

    SOURCE = frozenset(Kind) - {Kind.DEFAULT, Kind.DISPVM}
    TARGET = frozenset(Kind)
    REDIRECT = frozenset({Kind.NAME, Kind.ADMINVM, Kind.DISPVM, Kind.DISPVM_OF})
    REQUEST = REDIRECT | {Kind.DEFAULT}


class Token(msgspec.Struct, frozen=True):
    """A checked token: its kind, and the name, type or tag that it carries."""

    kind: Kind
    value: str = ""

    def __str__(self) -> str:
        """The token as it is written in a policy."""
        return self.value if self.kind is Kind.NAME else self.kind.value + self.value

    @property
    def key(self) -> str:
        """The token's text with the three spellings of the admin qube made one."""
        text = str(self)
        return "dom0" if text in _ADMIN_QUBE else text


ANY = Token(Kind.ANY)
ANYVM = Token(Kind.ANYVM)
ADMINVM = Token(Kind.ADMINVM)
DEFAULT = Token(Kind.DEFAULT)
DISPVM = Token(Kind.DISPVM)

_NO_NAME = frozenset(("", "*", "@"))
_FIXED = {t.kind.value: t for t in (ANY, ANYVM, ADMINVM, DEFAULT, DISPVM)}
_PLACES = {
    Role.SOURCE: "a source",
    Role.TARGET: "a target",
    Role.REDIRECT: "the value of `target=` or `default_target=`",
    Role.REQUEST: "the target of a call",
}
_EXPECTED = {
    Role.SOURCE: "use a name, `*`, `@anyvm`, `@adminvm`, `@type:TYPE` or `@tag:TAG`",
    Role.TARGET: "use a name, `*`, `@anyvm`, `@adminvm`, `@default`, `@dispvm`, "
    "`@dispvm:NAME`, `@dispvm:@tag:TAG`, `@type:TYPE` or `@tag:TAG`",
    Role.REDIRECT: "use a name, `@adminvm`, `@dispvm` or `@dispvm:NAME`",
    Role.REQUEST: "use a name, `@adminvm`, `@default`, `@dispvm` or `@dispvm:NAME`",
}


def is_admin_qube(name: str) -> bool:
    """Whether a name or keyword means dom0, in any of its three spellings."""
    return name in _ADMIN_QUBE


def parse_token(untrusted: str, role: Role) -> Token:
    """Return the token that `untrusted` spells.

    Raises:
        PolicyError: it is no token, or none that may stand in this place.
    """
    if untrusted[:1] not in _NO_NAME:
        return Token(Kind.NAME, untrusted)  # as most are, and it may stand everywhere
    token = _classify(untrusted)
    if token is None:
        raise PolicyError(f"`{shown(untrusted)}` is not {_PLACES[role]}", hint=_EXPECTED[role])
    if token.kind not in role.value:
        raise PolicyError(f"`{shown(untrusted)}` cannot be {_PLACES[role]}", hint=_EXPECTED[role])
    return token


@lru_cache(maxsize=8192)
def parse_rule_token(text: str, role: Role) -> Token:
    """`parse_token` with a memory: a policy repeats the same few tokens."""
    return parse_token(text, role)


@lru_cache(maxsize=8192)
def _short_request(untrusted: str) -> Token:
    return parse_token(untrusted, Role.REQUEST)


def parse_request_token(untrusted: str) -> Token:
    """`parse_token` for the target of a call, with a memory of its own: callers repeat theirs.

    Raises:
        PolicyError: as `parse_token`.
    """
    if len(untrusted) > _LONGEST_REMEMBERED:
        return parse_token(untrusted, Role.REQUEST)
    return _short_request(untrusted)


def _classify(text: str) -> Token | None:
    if text in _FIXED:
        return _FIXED[text]
    if not text:
        return None
    if not text.startswith("@"):
        return Token(Kind.NAME, text)
    # The longest prefix first: `@dispvm:@tag:` begins like `@dispvm:`.
    for kind in (Kind.DISPVM_TAG, Kind.DISPVM_OF, Kind.TYPE, Kind.TAG):
        if text.startswith(kind.value):
            value = text[len(kind.value) :]
            return Token(kind, value) if value and not value.startswith("@") else None
    return None
