"""What goes into a decision and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from caisson.errors import ValueRefusedError
from caisson.names import ServiceArgument, shown
from caisson.policy.rules import Action
from caisson.policy.syntax import Location


class Request(msgspec.Struct, frozen=True):
    """A call that a qube wants to make.

    Args:
        service: the name of the service.
        argument: a `ServiceArgument` (the text behind the first `+`), or plain text that starts
            with this `+`; `+`, empty and None are all a call without an argument.
        source: the calling qube.
        target: what the caller asks for: a name, `uuid:…`, `@adminvm`, `@default` (or empty),
            `@dispvm`, `@dispvm:NAME`.
        requested_source: the RemoteVM that the caller, its relay, speaks for; empty: none.

    Raises:
        ValueRefusedError: `argument` is plain text without its `+`.
    """

    service: str
    argument: str | None
    source: str
    target: str
    requested_source: str = ""

    def __post_init__(self) -> None:
        """Give the argument its one form."""
        argument = self.argument
        if isinstance(argument, ServiceArgument):
            # Its text may itself start with `+`, so the type decides, not the first character.
            argument = f"+{argument}"
        elif not argument:
            argument = "+"
        elif argument[0] != "+":
            raise ValueRefusedError(
                f"argument `{shown(argument)}` does not start with `+`",
                hint="pass a ServiceArgument, or the text from the first `+` on",
            )
        msgspec.structs.force_setattr(self, "argument", argument)

    @property
    def descriptor(self) -> str:
        """Service and argument in one word, as `s.X+a`; a bare `+` is left out."""
        return self.service if self.argument == "+" else f"{self.service}{self.argument}"


class Reason(StrEnum):
    """Why a call is denied."""

    SYNTAX = "syntax"
    NO_RULE = "no-rule"
    RULE = "rule"
    BAD_TARGET = "bad-target"
    BAD_SOURCE = "bad-source"
    NO_TARGET = "no-target"
    NOT_RUNNING = "not-running"
    LOOPBACK = "loopback"
    NOT_OFFERED = "not-offered"
    RELAY = "relay"


class Deny(msgspec.Struct, frozen=True):
    """The call is refused.

    `notify`: tell the person. `text`: the reason, for people. `location`: the rule, if one did it.
    """

    action: ClassVar[Action] = Action.DENY
    reason: Reason
    text: str
    notify: bool = True
    location: Location | None = None

    @property
    def rule(self) -> str | None:
        """The rule in the short form `30-user.policy:7`."""
        return self.location.rule if self.location else None

    def as_dict(self) -> dict[str, Any]:
        """The decision as `caisson policy decide` prints it."""
        return {
            "decision": "deny",
            "notify": self.notify,
            "reason": str(self.reason),
            "rule": self.rule,
            "text": self.text,
        }


class Allow(msgspec.Struct, frozen=True):
    """The call may go to `target`.

    `target` is a name, a `uuid:` form, or `@dispvm:NAME`: a new disposable of this qube.
    `user`: None is the service's default user. `autostart`: a halted target may be started.
    `source` is whom the service is told of: the caller, or the RemoteVM that it relays for.
    For a RemoteVM target, `relay` is the qube that runs `service` in its place.
    """

    action: ClassVar[Action] = Action.ALLOW
    target: str
    requested_target: str
    source: str
    service: str
    location: Location
    user: str | None = None
    autostart: bool = True
    notify: bool = False
    relay: str | None = None

    @property
    def rule(self) -> str:
        """The rule in the short form `30-user.policy:7`."""
        return self.location.rule

    @property
    def text(self) -> str:
        """The reason, for people."""
        return f"allowed by {self.location}"

    def as_dict(self) -> dict[str, Any]:
        """The decision as `caisson policy decide` prints it."""
        shown_relay = {"relay": self.relay, "service": self.service} if self.relay else {}
        return {
            "decision": "allow",
            "target": self.target,
            "requested_target": self.requested_target,
            "user": self.user,
            "autostart": self.autostart,
            "notify": self.notify,
            "rule": self.rule,
            **shown_relay,
        }


class Ask(msgspec.Struct, frozen=True, eq=False):
    """A person decides, and picks one of `targets`.

    `default_target` may be preselected; the caller's own wish never is.
    """

    action: ClassVar[Action] = Action.ASK
    requested_target: str
    source: str
    location: Location
    default_target: str | None
    user: str | None
    autostart: bool
    notify: bool
    list_targets: Callable[[], tuple[str, ...]]
    permit: Callable[[str], Allow | Deny]

    @property
    def targets(self) -> tuple[str, ...]:
        """What the person may pick from, sorted; never empty."""
        return self.list_targets()

    @property
    def rule(self) -> str:
        """The rule in the short form `30-user.policy:7`."""
        return self.location.rule

    @property
    def text(self) -> str:
        """The reason, for people."""
        return f"asked because of {self.location}"

    def choose(self, untrusted_target: str) -> Allow | Deny:
        """What a person's answer leads to.

        The answer is judged on the snapshot of the question.
        A caller that has newer ones decides the request again first, and chooses on that.
        """
        if untrusted_target not in self.targets:
            return Deny(
                Reason.NOT_OFFERED,
                f"`{shown(untrusted_target)}` was not among the targets to pick from",
                self.notify,
                self.location,
            )
        return self.permit(untrusted_target)

    def refuse(self, why: str = "") -> Deny:
        """What a refusal leads to; `why` says more where no person refused just now."""
        text = why or f"denied by the person ({self.text})"
        return Deny(Reason.RULE, text, self.notify, self.location)

    def as_dict(self) -> dict[str, Any]:
        """The decision as `caisson policy decide` prints it."""
        return {
            "decision": "ask",
            "targets": list(self.targets),
            "default_target": self.default_target,
            "requested_target": self.requested_target,
            "user": self.user,
            "autostart": self.autostart,
            "notify": self.notify,
            "rule": self.rule,
        }


Decision = Allow | Ask | Deny
