"""Grants: permissions for a while, each as the one `allow` line that a policy would have for it.

A grant names qubes by uuid, so that a new qube with an old name gets nothing.
It says nothing that a line of a policy could not say, and less: never every service, no service of
administration, and nothing of the admin qube, which serves nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from caisson.errors import ValueRefusedError
from caisson.names import ServiceArgument, ServiceName, UserName, shown
from caisson.policy.rules import EVERY, Rule, check_rule
from caisson.policy.syntax import Line, Location, RuleLine
from caisson.policy.tokens import NIL_UUID, Kind, Token

MOST_GRANTS = 256
LONGEST_SECONDS = 24 * 60 * 60
_SECOND = 1_000_000_000
_LONGEST_ARGUMENT = 1_024
_ELSEWHERE = "@default"
_ADMINISTRATION = ("admin.", "policy.", "internal.")
_DELEGATE = "delegate it by policy: docs/guides/delegate-administration.md"
_ID = re.compile(r"grant-[0-9a-f]{8}")
_UUID = re.compile(r"uuid:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A permission for a while, not yet checked: `rule_of` does that.

    Args:
        id: how it is called in lists, logs and decisions: `grant-` and eight hexadecimal digits.
        service: the service.
        argument: `*`, or starts with `+`.
        source: the calling qube, as `uuid:…`.
        target: `uuid:…`, `@dispvm`, `@dispvm:uuid:…` or `@default`.
        expires: nanoseconds on the clock that counts from the kernel's start, suspend included;
            from this moment on the grant is void.
        redirect: where a call to `@default` goes; None for other targets.
        user: the user in the target; None is the service's default.
        names: what the qubes were called when the grant was made, by `uuid:…`. For people.
        by: the user of the machine who made it. For people.
        made: when, in seconds since 1970. For people.
    """

    id: str
    service: str
    argument: str
    source: str
    target: str
    expires: int
    redirect: str | None = None
    user: str | None = None
    names: Mapping[str, str] = {}
    by: int | None = None
    made: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the policy line that says the same."""
        parameters = {"target": self.redirect, "user": self.user}
        return (
            self.service,
            self.argument,
            self.source,
            self.target,
            "allow",
            *(f"{name}={value}" for name, value in parameters.items() if value is not None),
        )

    @property
    def qubes(self) -> tuple[str, ...]:
        """The qubes that it is about, as `uuid:…`: without any of them it means nothing."""
        tokens = (self.source, self.target, self.redirect or "")
        bare = (token.removeprefix("@dispvm:") for token in tokens)
        return tuple(token for token in bare if token.startswith("uuid:"))

    def seconds_left(self, now: int) -> int:
        """How long it still holds, rounded up; `now` is as `expires`."""
        return -((now - self.expires) // _SECOND)


def rule_of(grant: Grant) -> Rule:
    """The rule that a grant stands for.

    Raises:
        CaissonError: it says what a policy could not say, or what no grant may.
    """
    if _ID.fullmatch(grant.id) is None:
        raise ValueRefusedError(f"`{shown(grant.id)}` is not the id of a grant")
    _check_service(grant.service, grant.argument)
    if grant.user is not None:
        UserName.parse(grant.user)
    if (grant.target == _ELSEWHERE) != (grant.redirect is not None):
        raise ValueRefusedError(
            f"a grant says where calls to `{_ELSEWHERE}` go, and of no others",
            f"use `{_ELSEWHERE}` with a target, or another target alone",
        )
    location = Location(grant.id, None)
    line = Line(location, " ".join(grant.fields), grant.fields)
    rule = check_rule(RuleLine(line, grant.service, grant.argument, 2))
    _check_qubes(rule)
    return rule


def rules_of(grants: Iterable[Grant]) -> tuple[Rule, ...]:
    """The rules of grants in the order in which they are tried: the latest word counts.

    Raises:
        CaissonError: as `rule_of`.
    """
    return tuple(rule_of(grant) for grant in grants)[::-1]


def live(grants: Iterable[Grant], now: int) -> tuple[Grant, ...]:
    """The grants that hold at a moment; `now` is as `Grant.expires`.

    One that would hold for longer than any may is not one that was granted.
    """
    latest = now + LONGEST_SECONDS * _SECOND
    return tuple(grant for grant in grants if now < grant.expires <= latest)


def _check_service(service: str, argument: str) -> None:
    if service == EVERY:
        raise ValueRefusedError(
            "a grant for every service is refused", "name one service; make a grant for each"
        )
    ServiceName.parse(service)
    if service.lower().startswith(_ADMINISTRATION):
        raise ValueRefusedError(
            f"`{service}` is administration, which is not granted for a while", _DELEGATE
        )
    if argument != EVERY:
        if not argument.startswith("+"):
            raise ValueRefusedError(f"argument `{shown(argument)}` does not start with `+`")
        ServiceArgument.parse(argument[1:])
        if len(argument) > _LONGEST_ARGUMENT:
            raise ValueRefusedError(
                f"the argument is longer than {_LONGEST_ARGUMENT} characters",
                "use `+*` for every argument",
            )


def _check_qubes(rule: Rule) -> None:
    if not _is_one_qube(rule.source) or rule.source.kind is not Kind.NAME:
        raise ValueRefusedError(
            f"`{shown(str(rule.source))}` is not the uuid of a calling qube",
            "calls of the admin qube are not policed",
        )
    target = rule.redirect or rule.target
    if target.kind is Kind.ADMINVM:
        raise ValueRefusedError(
            "what the admin qube serves is administration, which is not granted for a while",
            _DELEGATE,
        )
    if not _is_one_qube(target):
        raise ValueRefusedError(
            f"`{shown(str(target))}` is not one target",
            "name a qube, `@dispvm`, `@dispvm:QUBE`, or `@default` with a target",
        )
    if target == rule.source:
        raise ValueRefusedError("a qube cannot call itself")


def _is_one_qube(token: Token) -> bool:
    """Whether a token means one qube, or a new one, for as long as it exists and no longer."""
    if token.kind in (Kind.NAME, Kind.DISPVM_OF):
        return _UUID.fullmatch(token.value) is not None and token.value != NIL_UUID
    return token.kind is Kind.DISPVM
