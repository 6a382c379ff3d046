"""Delegated administration: what other qubes than the admin qube may do and see.

The policy decides, as for every call between qubes: an administrator of some qubes is a qube
with rules such as `admin.vm.Start * mgmt @tag:created-by-mgmt allow target=dom0`.
It is asked three times: whether the method may be called, whether what it would bring about is
allowed (`rights`), and for lists and events, about each qube that they would show.
"""

from __future__ import annotations

from contextvars import ContextVar

from caisson.errors import PermissionDeniedError
from caisson.ext.interface import Extension, Filter, Question, judgement, permission
from caisson.ext.rights import AnyOf, needed
from caisson.model import Change, Event, Qube
from caisson.names import DOM0, QubeName, shown

_person_agreed: ContextVar[bool] = ContextVar("person_agreed", default=False)
"""Whether the call that this task serves was one that a person was asked about."""


class AdminExtension(Extension):
    """Judges every caller but the admin qube by policy."""

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

    @permission("admin.vm.List")
    def show_listed(self, question: Question) -> Filter | None:
        """Show only the qubes that the caller may list one by one, without a question."""
        if question.origin.name == DOM0:
            return None
        source, method = question.origin.name, question.method
        return lambda item: (
            isinstance(item, Qube) and self.core.policy.allows(source, method, "", item.name)
        )

    @permission("admin.Events", "admin.vm.Stats")
    def show_events(self, question: Question) -> Filter | None:
        """Show only events that the caller may hear of, without a question."""
        if question.origin.name == DOM0:
            return None
        source, method = question.origin.name, question.method
        return lambda item: isinstance(item, Event) and self._may_hear(source, method, item)

    def _may_hear(self, source: QubeName, method: str, event: Event) -> bool:
        about = event.subject or event.kwargs.get("vm") or DOM0
        return self.core.policy.allows(source, method, event.name.replace(":", "_"), about)

    @judgement
    def judge(self, origin: QubeName, change: Change) -> None:
        """Refuse a change that needs a right which the origin does not have.

        A right that a person would be asked about counts only if one was: for this very call.
        """
        policy = self.core.policy
        has = policy.permits if _person_agreed.get() else policy.allows
        for what, rights in needed(self.core.system, change):
            if not any(
                has(origin, right.service, right.argument, right.target) for right in rights
            ):
                raise PermissionDeniedError(f"qube `{origin}` may not {what}", hint=_remedy(rights))


def _remedy(rights: AnyOf) -> str:
    if not rights:
        return "only the admin qube may"
    right = rights[0]
    return (
        f"the policy would have to allow it `{right.service}` `+{right.argument}` "
        f"on `{right.target}`"
    )
