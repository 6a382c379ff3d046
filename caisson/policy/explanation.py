"""What an explanation of a decision says, as types; `caisson.policy.explain` makes it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from caisson.errors import PolicyError
from caisson.policy.outcome import Decision, Request
from caisson.policy.rules import Action, Rule
from caisson.policy.syntax import Location


class Field(StrEnum):
    """A field of a rule that a call has to match."""

    SERVICE = "service"
    ARGUMENT = "argument"
    SOURCE = "source"
    TARGET = "target"


class Mismatch(msgspec.Struct, frozen=True):
    """A field that a rule failed on, and why, for people."""

    field: Field
    text: str


class Try(msgspec.Struct, frozen=True):
    """A rule that was tried.

    `failed_on` are all its fields that do not match; of a rule of another service, the service
    alone. Empty: this rule decides.
    """

    rule: Rule
    failed_on: tuple[Mismatch, ...]

    @property
    def decides(self) -> bool:
        """Whether it is the first rule that matches."""
        return not self.failed_on

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields that do not match."""
        return tuple(mismatch.field for mismatch in self.failed_on)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        location = self.rule.location
        return {
            "rule": location.rule,
            "file": location.file,
            "line": location.line,
            "included_from": [str(place) for place in self.rule.included_from],
            "text": str(self.rule),
            "decides": self.decides,
            "failed_on": [{"field": str(m.field), "text": m.text} for m in self.failed_on],
        }


class StepKind(StrEnum):
    """What happened to a request on its way, before or behind the rule."""

    EMPTY_TARGET = "empty-target"
    UNKNOWN_TARGET = "unknown-target"
    ALIAS = "alias"
    REQUESTED_SOURCE = "requested-source"
    UNPOLICED = "unpoliced"
    DISPOSABLE = "disposable"
    REDIRECT = "redirect"
    USER = "user"
    AUTOSTART = "autostart"
    LOOPBACK = "loopback"
    RELAY = "relay"
    LIST = "list"
    DEFAULT_TARGET = "default-target"
    REFUSED = "refused"


class Step(msgspec.Struct, frozen=True):
    """One step of a request on its way."""

    kind: StepKind
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"kind": str(self.kind), "text": self.text}


class Absence(StrEnum):
    """Why a person cannot pick a target."""

    CALLER = "caller"
    INTERNAL = "internal"
    DENIED = "denied"
    NO_RULE = "no-rule"
    NOT_RUNNING = "not-running"


class Absent(msgspec.Struct, frozen=True):
    """A target that a person cannot pick, and why.

    `location` is the rule that denies it, or the one that says autostart=no.
    """

    target: str
    why: Absence
    location: Location | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        rule = self.location.rule if self.location else None
        return {"target": self.target, "why": str(self.why), "rule": rule}


class Place(msgspec.Struct, frozen=True):
    """Where in a policy a line is to be added.

    `before` is the number of the line that it goes before; None: the end of the file.
    """

    file: str
    before: int | None

    def __str__(self) -> str:
        if self.before is None:
            return f"at the end of {self.file}"
        return f"in {self.file}, before line {self.before}"


class AddRule(msgspec.Struct, frozen=True):
    """With this line in this place, the call becomes what the line says.

    `offers`: it is a question already; with the line, what the caller wants can be picked.
    """

    becomes: Action
    line: str
    place: Place
    offers: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.line}"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "kind": "add-rule",
            "becomes": str(self.becomes),
            "offers_target": self.offers,
            "line": self.line,
            "file": self.place.file,
            "before_line": self.place.before,
        }


class RevokeGrant(msgspec.Struct, frozen=True):
    """Without this grant, which comes before every line, the policy decides like that."""

    becomes: Action
    grant: str

    def __str__(self) -> str:
        return f"`caisson policy revoke {self.grant}`"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"kind": "revoke-grant", "becomes": str(self.becomes), "grant": self.grant}


class AddTag(msgspec.Struct, frozen=True):
    """With this tag on this qube, an earlier rule matches.

    `others` counts the other rules that name the tag, which then speak of the qube too.
    """

    becomes: Action
    qube: str
    tag: str
    location: Location
    others: int

    def __str__(self) -> str:
        text = f"tag `{self.qube}` with `{self.tag}`: then {self.location} matches"
        if self.others:
            text += f"; {self.others} more {'rule names' if self.others == 1 else 'rules name'} it"
        return text

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "kind": "add-tag",
            "becomes": str(self.becomes),
            "qube": self.qube,
            "tag": self.tag,
            "rule": self.location.rule,
            "other_rules_with_tag": self.others,
        }


class StartQube(msgspec.Struct, frozen=True):
    """If this qube runs, the same rule lets the call through."""

    becomes: Action
    qube: str

    def __str__(self) -> str:
        return f"start `{self.qube}` first"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"kind": "start-qube", "becomes": str(self.becomes), "qube": self.qube}


class SetDisposable(msgspec.Struct, frozen=True):
    """With a base for its disposables, such as this one, the caller gets one."""

    becomes: Action
    qube: str
    base: str

    def __str__(self) -> str:
        return f"set default_dispvm of `{self.qube}`, for example to `{self.base}`"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "kind": "set-default-dispvm",
            "becomes": str(self.becomes),
            "qube": self.qube,
            "base": self.base,
        }


class CallOtherwise(msgspec.Struct, frozen=True):
    """With another target or argument, the policy as it is lets the call through."""

    becomes: Action
    request: Request
    location: Location

    def __str__(self) -> str:
        target = self.request.target or "no target"
        return f"call `{self.request.descriptor}` with `{target}` ({self.location})"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "kind": "call-otherwise",
            "becomes": str(self.becomes),
            "argument": self.request.argument,
            "target": self.request.target,
            "rule": self.location.rule,
        }


Suggestion = AddRule | RevokeGrant | AddTag | StartQube | SetDisposable | CallOtherwise


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A decision, and everything that led to it.

    Args:
        request: the call.
        decision: what the fast evaluator decides.
        before: what the request became before rules were tried.
        tried: every rule that was tried, in order, up to the one that decides.
        after: what became of the call behind the rule.
        absent: the targets that a person asked by the deciding rule cannot pick.
        suggestions: what would change the decision; each was tried.
        error: why the policy does not load; None if it does.
    """

    request: Request
    decision: Decision
    before: tuple[Step, ...] = ()
    tried: tuple[Try, ...] = ()
    after: tuple[Step, ...] = ()
    absent: tuple[Absent, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    error: PolicyError | None = None

    @property
    def deciding(self) -> Rule | None:
        """The rule that decides; None if none matches, or none was tried."""
        return self.tried[-1].rule if self.tried and self.tried[-1].decides else None

    @property
    def of_service(self) -> tuple[Try, ...]:
        """The tried rules that speak of this service."""
        return tuple(each for each in self.tried if Field.SERVICE not in each.fields)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON; rules of other services are only counted."""
        return self._as_dict(self.of_service)

    def as_dict_of_every_rule(self) -> dict[str, Any]:
        """The same for JSON, with rules of other services."""
        return self._as_dict(self.tried)

    def _as_dict(self, tried: tuple[Try, ...]) -> dict[str, Any]:
        error = self.error
        return {
            "request": {
                "service": str(self.request.service),
                "argument": str(self.request.argument),
                "source": self.request.source,
                "target": self.request.target,
                "requested_source": self.request.requested_source,
            },
            "decision": self.decision.as_dict(),
            "before": [step.as_dict() for step in self.before],
            "rules": [each.as_dict() for each in tried],
            "rules_of_other_services": len(self.tried) - len(self.of_service),
            "after": [step.as_dict() for step in self.after],
            "absent": [each.as_dict() for each in self.absent],
            "would_change": [each.as_dict() for each in self.suggestions],
            "error": None
            if error is None
            else {
                "message": error.message,
                "hint": error.hint,
                "file": error.file,
                "line": error.line,
                "column": error.column,
                "text": error.text,
            },
        }
