"""What an extension is: a class whose methods are marked for what they hear and decide."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeVar
from uuid import UUID

from caisson.ext.rights import Right
from caisson.lifecycle import Qubes
from caisson.model import Event, Qube, System

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "_caisson_hook"

Shown = Callable[[Qube | Event | Right], bool]
"""Whether a caller is shown a qube in a list, an event in a stream, or a value that another
method, which it would have the right to call, tells as well."""
Filter = Callable[[], Shown]
"""Called for every batch of them: what is shown by the rules as they are now.

Equal ones show the same, so that events are judged once for all streams of a caller.
"""
Handler = Callable[[Event], Awaitable[None]]
Permission = Callable[["Question"], Filter | None]


class View(Protocol):
    """The qrexec policy at one moment, as far as it decides about the Admin API.

    A target is the qube that a method is called on, `dom0` for the admin qube.
    """

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the policy allows the call without asking anybody."""
        ...

    def permits(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the policy allows the call, or would once a person agreed."""
        ...


class Policy(View, Protocol):
    """The qrexec policy as it is at every moment."""

    def now(self) -> View:
        """The policy and the system at this moment, cheaper for many judgements.

        Use it with nothing awaited in between, lest a right that is withdrawn go on.
        """
        ...


class NoPolicy:
    """The policy where there is none: nobody but the admin qube may do anything."""

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Never."""
        del source, service, argument, target
        return False

    permits = allows

    def now(self) -> NoPolicy:
        """The same."""
        return self


def _nothing_announced(_qube: Qube) -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Core:
    """What extensions work with.

    Args:
        qubes: the life of all qubes.
        policy: decides for callers other than the admin qube.
        untrusted_announced: what a qube says about itself, by key (`features-request/NAME`,
            `qubes-tools/NAME`); every byte is the qube's own.
        untrusted_announcing: the same, of qubes that say it in the call that is being served.
    """

    qubes: Qubes
    policy: Policy
    untrusted_announced: Callable[[Qube], Mapping[str, str]] = _nothing_announced
    untrusted_announcing: dict[UUID, Mapping[str, str]] = field(default_factory=dict)

    @property
    def system(self) -> System:
        """The model."""
        return self.qubes.system


@dataclass(frozen=True, slots=True)
class Question:
    """May `origin` call `method` with this argument on `destination`?

    The argument is as it came from the caller; that it is one for the method is not yet known.
    """

    origin: Qube
    method: str
    destination: Qube
    untrusted_argument: str


class Extension:
    """Base of all extensions; one object a daemon.

    Args:
        core: what it works with.
    """

    def __init__(self, core: Core) -> None:
        self.core = core


@dataclass(frozen=True, slots=True)
class Hook:
    """How a method of an extension is marked: its kind, and what it is about."""

    kind: str
    patterns: tuple[str, ...] = ()


def on(*events: str) -> Callable[[F], F]:
    """Mark `async def method(self, event)`: called after each event that fits a pattern.

    In the order of the events, one after the other, in a task of the extension's own.
    """
    return _marked(Hook("on", events))


def permission(*methods: str) -> Callable[[F], F]:
    """Mark `def method(self, question)`: asked before a method that fits a pattern is run.

    It raises `PermissionDeniedError` to refuse; it may return a `Filter` for what is listed,
    whose result must not raise.
    """
    return _marked(Hook("permission", methods))


def rule(method: F) -> F:
    """Mark `def method(self, system, change)`: turns a planned change into what really happens.

    Pure: it may add operations and events, or refuse by raising; all of it becomes one change.
    """
    return _marked(Hook("rule"))(method)


def judgement(method: F) -> F:
    """Mark `def method(self, origin, change)`: refuses what `origin` may not bring about.

    It sees what will happen, whichever method it was asked by.
    """
    return _marked(Hook("judgement"))(method)


def _marked(hook: Hook) -> Callable[[F], F]:
    def mark(method: F) -> F:
        setattr(method, _MARK, hook)
        return method

    return mark


def hooks_of(extension: Extension) -> list[tuple[Hook, Callable[..., Any]]]:
    """The marked methods of an extension, in the order of their definition."""
    found: dict[str, Hook] = {}
    for klass in reversed(type(extension).__mro__):
        for name, member in vars(klass).items():
            if isinstance(hook := getattr(member, _MARK, None), Hook):
                found[name] = hook
            else:
                found.pop(name, None)
    return [(hook, getattr(extension, name)) for name, hook in found.items()]
