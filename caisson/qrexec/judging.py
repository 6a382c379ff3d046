"""What the policy says about a call, by the files as they are now and by what exists now."""

from __future__ import annotations

from caisson.names import DOM0
from caisson.policy import Allow, Ask, Decision, Request
from caisson.qrexec.known import Known
from caisson.qrexec.rules import Rules


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

    def judge(self, source: str, service: str, argument: str, target: str) -> Decision:
        """Decide one call.

        Args:
            source: the calling qube.
            service: the service.
            argument: the text behind the `+`; empty for none.
            target: what the caller asks for, as a policy spells it (`work`, `@adminvm`).
        """
        return self._rules.decide(
            Request(service, f"+{argument}", source, target), self._known.system
        )

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the call may reach the admin qube without a question.

        The admin qube itself is not policed: nobody acts in its name here.
        """
        return source != DOM0 and _reaches_dom0(self.judge(source, service, argument, target))

    def permits(self, source: str, service: str, argument: str, target: str) -> bool:
        """As `allows`, or after a person was asked who may pick the admin qube."""
        if source == DOM0:
            return False
        decision = self.judge(source, service, argument, target)
        if isinstance(decision, Ask):
            return _reaches_dom0(decision.choose(DOM0))
        return _reaches_dom0(decision)


def _reaches_dom0(decision: Decision) -> bool:
    return isinstance(decision, Allow) and decision.target == DOM0 and decision.relay is None
