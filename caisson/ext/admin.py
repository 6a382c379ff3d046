"""Delegated administration: what other qubes than the admin qube may do and see.

The policy decides, as for every call between qubes: an administrator of some qubes is a qube
with rules such as `admin.vm.Start * mgmt @tag:created-by-mgmt allow target=dom0`.
It is asked three times: whether the method may be called, whether what it would bring about is
allowed (`rights`), and about each qube, event or value that the answer would show.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from weakref import WeakSet

from caisson.errors import PermissionDeniedError
from caisson.ext.interface import (
    Core,
    Extension,
    Filter,
    Policy,
    Question,
    judgement,
    permission,
    rule,
)
from caisson.ext.rights import Right, needed, refusal
from caisson.model import Change, Event, Qube, RemoveQube, System
from caisson.names import DOM0, QubeName, shown

_person_agreed: ContextVar[bool] = ContextVar("person_agreed", default=False)
"""Whether the call that this task serves was one that a person was asked about."""
_FAREWELLS = ("domain-pre-delete", "domain-delete")


class _Hearing:
    """What one listener may hear of.

    A policy cannot judge what is about a qube that is gone, so that is done before it goes.
    """

    def __init__(self, policy: Policy, source: QubeName, method: str) -> None:
        self._policy = policy
        self._source = source
        self._method = method
        self._leaving: dict[str, frozenset[str]] = {}

    def __call__(self, item: Qube | Event | Right) -> bool:
        if not isinstance(item, Event):
            return False
        about = item.kwargs.get("vm", "")
        if item.subject is None and item.name in _FAREWELLS:
            may = item.name in self._leaving.get(about, ())
            if item.name == _FAREWELLS[-1]:
                self._leaving.pop(about, None)
            return may
        return self._allows(item.name, item.subject or about or DOM0)

    def leaves(self, qube: QubeName) -> None:
        """Judge what will be told of the removal of a qube that is still there."""
        self._leaving[qube] = frozenset(name for name in _FAREWELLS if self._allows(name, qube))

    def _allows(self, event: str, about: str) -> bool:
        return self._policy.allows(self._source, self._method, event.replace(":", "_"), about)


class AdminExtension(Extension):
    """Judges every caller but the admin qube by policy."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._hearings: WeakSet[_Hearing] = WeakSet()

    @permission("*")
    def ask_policy(self, question: Question) -> None:
        """Refuse a call that the policy does not allow, whichever way it came."""
        if question.origin.name == DOM0:
            return
        call = (
            question.origin.name,
            question.method,
            question.untrusted_argument,
            question.destination.name,
        )
        allowed = self.core.policy.allows(*call)
        _person_agreed.set(not allowed)
        if not allowed and not self.core.policy.permits(*call):
            raise PermissionDeniedError(
                f"qube `{question.origin.name}` may not call "
                f"`{question.method}+{shown(question.untrusted_argument)}` "
                f"on `{question.destination.name}`",
                hint="the policy in /etc/qubes/policy.d decides",
            )

    @permission("admin.vm.List", "admin.pool.volume.List")
    def show_listed(self, question: Question) -> Filter | None:
        """Show only the qubes that the caller may list one by one, without a question."""
        if question.origin.name == DOM0:
            return None
        source = question.origin.name
        return lambda item: (
            isinstance(item, Qube)
            and self.core.policy.allows(source, "admin.vm.List", "", item.name)
        )

    @permission("*.property.GetAll", "*.property.GetDefault", "admin.vm.feature.CheckWith*")
    def show_values(self, question: Question) -> Filter | None:
        """Show only the values that the caller may read one by one."""
        if question.origin.name == DOM0:
            return None
        has = self._holder(question.origin.name)
        return lambda item: isinstance(item, Right) and has(item)

    @permission("admin.Events", "admin.vm.Stats")
    def show_events(self, question: Question) -> Filter | None:
        """Show only events that the caller may hear of, without a question."""
        if question.origin.name == DOM0:
            return None
        hearing = _Hearing(self.core.policy, question.origin.name, question.method)
        self._hearings.add(hearing)
        return hearing

    @rule
    def judge_farewells(self, system: System, change: Change) -> Change:
        """Decide who will hear that a qube is gone; the change stays as it is."""
        for op in change.ops:
            if isinstance(op, RemoveQube):
                for hearing in self._hearings:
                    hearing.leaves(system.by_uuid[op.uuid].name)
        return change

    @judgement
    def judge(self, origin: QubeName, change: Change) -> None:
        """Refuse a change that needs a right which the origin does not have."""
        has = self._holder(origin)
        for what, rights in needed(self.core.system, change):
            if not any(map(has, rights)):
                raise refusal(origin, what, rights)

    def _holder(self, origin: QubeName) -> Callable[[Right], bool]:
        """Tells whether the origin has a right.

        One that a person would be asked about counts only if one was: for this very call.
        """
        policy = self.core.policy
        has = policy.permits if _person_agreed.get() else policy.allows
        return lambda right: has(origin, right.service, right.argument, right.target)
