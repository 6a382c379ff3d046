"""Syntax to rules: every field of a rule checked, every parameter typed.

Specification sheet `qrexec`, section 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from caisson.errors import PolicyError
from caisson.names import shown
from caisson.policy.syntax import Line, Location, RuleLine
from caisson.policy.tokens import Kind, Role, Token, parse_rule_token

EVERY = "*"
_SERVICE = re.compile(r"\*|[A-Za-z0-9._-]+")
_ARGUMENT = re.compile(r"\*|\+[A-Za-z0-9._+-]*")
_SOURCE, _TARGET, _ACTION, _PARAMETERS = range(4)


class Action(StrEnum):
    """What a rule says about the calls that it matches."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One checked rule.

    `service` is a name or `*`; `argument` is `*` or starts with `+`.
    `included_from` are the directives that led to the file, the outermost first.
    Hidden from the garbage collector: nothing in it can refer back to it, and thousands of them
    would have every load pause for collections.
    """

    service: str
    argument: str
    source: Token
    target: Token
    action: Action
    location: Location
    redirect: Token | None = None
    default_target: Token | None = None
    user: str | None = None
    notify: bool = False
    autostart: bool = True
    included_from: tuple[Location, ...] = ()

    def at(self, location: Location, included_from: tuple[Location, ...]) -> Rule:
        """The same rule, written in another place."""
        return Rule(
            self.service,
            self.argument,
            self.source,
            self.target,
            self.action,
            location,
            self.redirect,
            self.default_target,
            self.user,
            self.notify,
            self.autostart,
            included_from,
        )

    def __str__(self) -> str:
        """The rule as a line of the new format; what is the default is left out."""
        words = [self.service, self.argument, str(self.source), str(self.target), self.action]
        if self.redirect is not None:
            words.append(f"target={self.redirect}")
        if self.default_target is not None:
            words.append(f"default_target={self.default_target}")
        if self.user is not None:
            words.append(f"user={self.user}")
        if not self.autostart:
            words.append("autostart=no")
        if self.notify is not (self.action is Action.DENY):
            words.append(f"notify={'yes' if self.notify else 'no'}")
        return " ".join(words)


_KNOWN: Mapping[str, frozenset[Action]] = {
    "target": frozenset({Action.ALLOW, Action.ASK}),
    "default_target": frozenset({Action.ASK}),
    "user": frozenset({Action.ALLOW, Action.ASK}),
    "notify": frozenset(Action),
    "autostart": frozenset({Action.ALLOW, Action.ASK}),
}
_BOOLEANS = {"yes": True, "no": False}
_ACTIONS = {str(action): action for action in Action}


def check_rule(line: RuleLine, included_from: tuple[Location, ...] = ()) -> Rule:
    """Return the rule that a line states.

    Raises:
        PolicyError: with file, line and column of the first field that is wrong.
    """
    if line.first:  # else the directive or the file's name gave them, checked there
        check_service(line.line, 0, line.service, line.argument)
    source = _token(line, _SOURCE, line.source, Role.SOURCE)
    target = _token(line, _TARGET, line.target, Role.TARGET)
    action = _ACTIONS.get(line.action)
    if action is None:
        raise line.line.error(
            line.first + _ACTION,
            f"unknown action `{shown(line.action)}`",
            "use `allow`, `ask` or `deny`; parameters follow after a blank",
        )
    values = _parameters(line, action) if line.parameters else {}
    rule = Rule(
        service=line.service,
        argument=line.argument,
        source=source,
        target=target,
        action=action,
        location=line.line.location,
        redirect=_redirect(line, values, "target"),
        default_target=_redirect(line, values, "default_target"),
        user=values["user"][1] or None if "user" in values else None,
        notify=_boolean(line, values, "notify", action is Action.DENY),
        autostart=_boolean(line, values, "autostart", True),
        included_from=included_from,
    )
    if action is Action.ALLOW and target.kind is Kind.DEFAULT and rule.redirect is None:
        raise line.line.error(
            line.first + _TARGET,
            "`allow` for `@default` does not say which qube",
            "add `target=NAME`, or use `ask`",
        )
    return rule


def check_service(line: Line, field: int, service: str, argument: str) -> None:
    """Check the service and argument that stand at `field` and behind it.

    Raises:
        PolicyError: with file, line and column.
    """
    if _SERVICE.fullmatch(service) is None:
        raise line.error(
            field,
            f"`{shown(service)}` is not a service name",
            "use `*`, or letters, digits, `.`, `_` and `-`; the argument is the next field",
        )
    if _ARGUMENT.fullmatch(argument) is None:
        raise line.error(
            field + 1,
            f"`{shown(argument)}` is not a service argument",
            "use `*` for any, `+` for none, or `+` and letters, digits, `.`, `_`, `+`, `-`",
        )
    if service == EVERY and argument != EVERY:
        raise line.error(
            field + 1,
            "an argument without a service means nothing",
            "use `*` for both, or name a service",
        )


def _token(line: RuleLine, field: int, text: str, role: Role) -> Token:
    try:
        return parse_rule_token(text, role)
    except PolicyError as e:
        raise line.line.error(line.first + field, e.message, e.hint) from None


def _parameters(line: RuleLine, action: Action) -> dict[str, tuple[int, str]]:
    """The parameters by name, each with the index of its field."""
    values: dict[str, tuple[int, str]] = {}
    for field, text in enumerate(line.parameters, line.first + _PARAMETERS):
        name, equals, value = text.partition("=")
        if not equals:
            raise line.line.error(
                field,
                f"`{shown(text)}` is not a parameter",
                "write `NAME=VALUE`; comments need a line of their own",
            )
        if name not in _KNOWN:
            raise line.line.error(
                field, f"unknown parameter `{shown(name)}`", f"known are {', '.join(_KNOWN)}"
            )
        if action not in _KNOWN[name]:
            raise line.line.error(field, f"`{name}=` has no meaning with `{action}`")
        if name in values:
            raise line.line.error(field, f"`{name}=` is given twice")
        values[name] = (field, value)
    return values


def _redirect(line: RuleLine, values: dict[str, tuple[int, str]], name: str) -> Token | None:
    if name not in values:
        return None
    field, text = values[name]
    return _token(line, field - line.first, text, Role.REDIRECT)


def _boolean(line: RuleLine, values: dict[str, tuple[int, str]], name: str, default: bool) -> bool:
    if name not in values:
        return default
    field, text = values[name]
    if text not in _BOOLEANS:
        raise line.line.error(field, f"`{name}={shown(text)}` is neither yes nor no")
    return _BOOLEANS[text]
