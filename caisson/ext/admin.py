"""Delegated administration: what other qubes than the admin qube may do and see.

The policy decides, as for every call between qubes: an administrator of some qubes is a qube
with rules such as `admin.vm.Start * mgmt @tag:created-by-mgmt allow target=dom0`.
It is asked three times: whether the method may be called, whether what it would bring about is
allowed (`rights`), and about each qube, event or value that the answer would show.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

from caisson.errors import PermissionDeniedError
from caisson.ext.interface import (
    Core,
    Extension,
    Filter,
    Policy,
    Question,
    Shown,
    View,
    judgement,
    on,
    permission,
    rule,
)
from caisson.ext.rights import Right, needed, refusal
from caisson.model import ADMIN_UUID, Change, Event, Qube, RemoveQube, System
from caisson.names import DOM0, QubeName, shown

_person_agreed: ContextVar[bool] = ContextVar("person_agreed", default=False)
"""Whether the call that this task serves was one that a person was asked about."""


_MOST_LEAVING = 256


class AdminExtension(Extension):
    """Judges every caller but the admin qube by policy."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._leaving: dict[UUID, View] = {}

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
        return _Listed(self.core.policy, question.origin.name)

    @permission("*.property.GetAll", "*.property.GetDefault", "admin.vm.feature.CheckWith*")
    def show_values(self, question: Question) -> Filter | None:
        """Show only the values that the caller may read one by one."""
        if question.origin.name == DOM0:
            return None

        def values() -> Shown:
            has = self._holder(question.origin.name)
            return lambda item: isinstance(item, Right) and has(item)

        return values

    @permission("admin.Events", "admin.vm.Stats")
    def show_events(self, question: Question) -> Filter | None:
        """Show only events that the caller may hear of, without a question."""
        if question.origin.name == DOM0:
            return None
        return _Heard(self, question.origin.name, question.method)

    def view_for(self, now: View, event: Event) -> View:
        """What an event is judged by: the end of a qube by what was before it, else `now`."""
        if event.about is None or event.about in self.core.system.by_uuid:
            return now
        return self._leaving.get(event.about, now)

    @rule
    def note_leaving(self, system: System, change: Change) -> Change:
        """Remember what was before a qube goes: the policy cannot judge what is not there."""
        del system
        for op in change.ops:
            if isinstance(op, RemoveQube):
                if len(self._leaving) >= _MOST_LEAVING:
                    self._leaving.pop(next(iter(self._leaving)))
                self._leaving[op.uuid] = self.core.policy.now()
        return change

    @on("domain-remove-from-disk")
    async def forget(self, event: Event) -> None:
        """That is the last that is told about a qube."""
        if event.about is not None:
            self._leaving.pop(event.about, None)

    @judgement
    def judge(self, origin: QubeName, change: Change) -> None:
        """Refuse a change that needs a right which the origin does not have."""
        has = self._holder(origin)
        for what, rights in needed(self.core.system, change):
            if not any(map(has, rights)):
                raise refusal(origin, what, rights)

    def _holder(self, origin: QubeName) -> Callable[[Right], bool]:
        """Tells whether the origin has a right, with nothing awaited in between.

        One that a person would be asked about counts only if one was: for this very call.
        """
        now = self.core.policy.now()
        has = now.permits if _person_agreed.get() else now.allows
        return lambda right: has(origin, right.service, right.argument, right.target)


@dataclass(frozen=True, slots=True)
class _Listed:
    """Shows the qubes that `source` may list one by one."""

    policy: Policy
    source: QubeName

    def __call__(self) -> Shown:
        now = self.policy.now()
        return lambda item: (
            isinstance(item, Qube)
            and now.allows(self.source, "admin.vm.List", "", _reference(item.uuid))
        )


@dataclass(frozen=True, slots=True)
class _Heard:
    """Shows the events that `source` may hear of through `method`."""

    extension: AdminExtension
    source: QubeName
    method: str

    def __call__(self) -> Shown:
        now = self.extension.core.policy.now()
        return lambda item: isinstance(item, Event) and self._may_hear(now, item)

    def _may_hear(self, now: View, event: Event) -> bool:
        if event.about is not None:
            target = _reference(event.about)
        elif event.subject is None:
            target = DOM0
        else:  # which qube of that name is meant, nobody knows
            return False
        argument = event.name.replace(":", "_")
        view = self.extension.view_for(now, event)
        return view.allows(self.source, self.method, argument, target)


def _reference(uuid: UUID) -> str:
    """How a policy spells just this qube, whoever has its name later."""
    return DOM0 if uuid == ADMIN_UUID else f"uuid:{uuid}"
