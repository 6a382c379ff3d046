"""What the policy says about a call, by the files as they are now and by what exists now."""

from __future__ import annotations

from caisson.names import DOM0
from caisson.policy import (
    Allow,
    Ask,
    BrokenPolicy,
    Decision,
    PolicyError,
    PolicySet,
    Request,
    SystemInfo,
    decide,
)
from caisson.qrexec.known import Known
from caisson.qrexec.rules import Rules

_MOST_REMEMBERED = 4_096
_LONGEST_REMEMBERED = 256
"""An argument may be as long as a request."""


class View:
    """One policy and one snapshot of what exists; what it said once it need not find out again.

    Args:
        policy: the rules.
        system: what exists.
    """

    def __init__(self, policy: PolicySet | BrokenPolicy, system: SystemInfo) -> None:
        self._policy = policy
        self.system = system
        self._allowed: dict[tuple[str, str, str, str], bool] = {}

    def is_of(self, policy: PolicySet | BrokenPolicy, system: SystemInfo) -> bool:
        """Whether it is a view of just these."""
        return self._policy is policy and self.system is system

    def judge(
        self, source: str, service: str, argument: str, target: str, requested_source: str = ""
    ) -> Decision:
        """Decide one call, see `Judge.judge`; `requested_source` as in `Request`."""
        request = Request(service, f"+{argument}", source, target, requested_source)
        return decide(request, self._policy, self.system)

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the call may reach the admin qube without a question.

        The admin qube itself is not policed: nobody acts in its name here.
        """
        call = (source, service, argument, target)
        allowed = self._allowed.get(call)
        if allowed is None:
            allowed = source != DOM0 and _reaches_dom0(self.judge(*call))
            if len(self._allowed) >= _MOST_REMEMBERED:
                self._allowed.clear()
            if len(argument) <= _LONGEST_REMEMBERED:
                self._allowed[call] = allowed
        return allowed

    def permits(self, source: str, service: str, argument: str, target: str) -> bool:
        """As `allows`, or after a person was asked who may pick the admin qube."""
        if source == DOM0:
            return False
        decision = self.judge(source, service, argument, target)
        if isinstance(decision, Ask):
            return _reaches_dom0(decision.choose(DOM0))
        return _reaches_dom0(decision)


class Judge:
    """Judges calls, without side effects: some 20 microseconds each.

    The broker decides by it; qubesd has one of its own and so need not believe the broker, and
    shows a qube only what it may ask for.

    Args:
        rules: the policy; a changed file counts for the very next call.
        known: what exists.
    """

    def __init__(self, rules: Rules, known: Known) -> None:
        self._rules = rules
        self._known = known
        self._view = View(BrokenPolicy(PolicyError("it is not read yet")), known.system)

    def now(self) -> View:
        """What the files say and what exists now: for judgements with nothing awaited between.

        Looking at the files is most of what a judgement costs.
        """
        policy, system = self._rules.current(), self._known.system
        if not self._view.is_of(policy, system):
            self._view = View(policy, system)
        return self._view

    def judge(
        self, source: str, service: str, argument: str, target: str, requested_source: str = ""
    ) -> Decision:
        """Decide one call.

        Args:
            source: the calling qube.
            service: the service.
            argument: the text behind the `+`; empty for none.
            target: what the caller asks for, as a policy spells it (`work`, `@adminvm`).
            requested_source: the RemoteVM that the caller says to be the relay of; empty: none.
        """
        return self.now().judge(source, service, argument, target, requested_source)

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the call may reach the admin qube without a question."""
        return self.now().allows(source, service, argument, target)

    def permits(self, source: str, service: str, argument: str, target: str) -> bool:
        """As `allows`, or after a person was asked who may pick the admin qube."""
        return self.now().permits(source, service, argument, target)


def _reaches_dom0(decision: Decision) -> bool:
    return isinstance(decision, Allow) and decision.target == DOM0 and decision.relay is None
