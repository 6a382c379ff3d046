"""Deciding: from a caller's request to a target that is there to be connected.

The way of an allowed call between running qubes is synchronous; whatever must wait (a person,
a start, qubesd) goes on in a task of its own, and the call is judged again after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from caisson.errors import CaissonError, DaemonError
from caisson.names import CLOCK_SERVICE, DOM0
from caisson.policy import Allow, Ask, Decision, Deny, SystemInfo
from caisson.qrexec import wire
from caisson.qrexec.asking import Person
from caisson.qrexec.audit import Audit
from caisson.qrexec.calls import Call, CallError, Ended
from caisson.qrexec.connecting import Connector
from caisson.qrexec.daemon_link import DaemonLink
from caisson.qrexec.endpoint import Endpoint
from caisson.qrexec.judging import Judge
from caisson.qrexec.known import Known, identity
from caisson.qrexec.targets import Targets

LINK_PATIENCE = 5.0
_CLOCK_ARGUMENTS = frozenset({"", "nanoseconds"})
"""What is asked of the clock in the admin qube's name: nothing that a caller made up."""

_log = structlog.get_logger("broker")


class Decider:
    """Decides each call by the policy and by what exists.

    Args:
        known: what exists.
        judge: the policy, and what it decides.
        link: the link to qubesd, without which nothing is decided.
        audit: the record of calls, without which nothing is decided either.
        endpoints: the qubes that run, by name.
        targets: starts qubes and makes disposables.
        person: is asked where the policy says so.
        connector: connects the two sides.
        spawn: begins a task that lives as long as the broker.
    """

    def __init__(
        self,
        known: Known,
        judge: Judge,
        link: DaemonLink,
        audit: Audit,
        endpoints: Mapping[str, Endpoint],
        targets: Targets,
        person: Person,
        connector: Connector,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._known = known
        self._policy = judge
        self._link = link
        self._audit = audit
        self._endpoints = endpoints
        self._targets = targets
        self._person = person
        self._connector = connector
        self._spawn_task = spawn

    def begin(self, call: Call) -> None:
        """Decide a call: now if nothing has to be waited for."""
        if call.malformed:
            self._connector.refuse(call, call.malformed)
            return
        if not self._audit.ready():
            self._connector.refuse(call, "the audit log cannot be written")
            return
        self._link.pump()
        if call.ended:
            return
        if self._link.synced:
            self._decide(call)
        else:
            self._spawn(call, self._decide_later(call))

    async def _decide_later(self, call: Call) -> None:
        """Without qubesd nobody knows what exists: wait for it, a little."""
        try:
            async with asyncio.timeout(LINK_PATIENCE):
                await self._link.wait_synced()
        except TimeoutError:
            raise CallError("qubesd is not running") from None
        call.task = None
        self._decide(call)

    def _decide(self, call: Call) -> None:
        if call.source == DOM0:
            self._admin_call(call)
            return
        decision = self._judge(call)
        match decision:
            case Deny():
                self._deny(call, decision)
            case Allow():
                self._allowed(call, decision)
            case Ask():
                self._spawn(call, self._ask(call, decision))

    def _judge(self, call: Call) -> Decision:
        return self._policy.judge(
            call.source, call.service, call.argument, call.requested, call.requested_source
        )

    def _deny(self, call: Call, deny: Deny) -> None:
        call.decision = "deny"
        call.rule = deny.rule
        if deny.notify:
            self._person.tell(call, "deny", call.requested)
        self._connector.end(call, Ended.DENIED, wire.REFUSED, wire.Code.REFUSED, deny.text)

    def _allowed(self, call: Call, allow: Allow) -> None:
        """Go on with an allowed call; its way is synchronous if the target runs."""
        call.rule = allow.rule
        call.allow = allow
        call.told_source = allow.source
        call.identity = _identities(self._known.system, allow)
        call.user = allow.user or ""
        if allow.target.startswith("@dispvm:"):
            call.decision = "allow"
            call.target = allow.target
            self._spawn(call, self._in_disposable(call, allow))
            return
        target = self._known.system.find(allow.relay or allow.target)
        if target is None:
            self._connector.refuse(call, "the target does not exist")
            return
        call.target = target.name
        if allow.relay is not None:
            call.relayed = allow.service
        elif target.name == call.told_source:
            call.decision = "deny"
            self._connector.end(
                call, Ended.DENIED, wire.REFUSED, wire.Code.REFUSED, "a qube cannot call itself"
            )
            return
        call.decision = "allow"
        if allow.notify:
            self._person.tell(call, "allow", allow.target if call.relayed else call.target)
        if target.name == DOM0:
            self._in_admin_qube(call, allow)
            return
        endpoint = self._endpoints.get(target.name)
        if endpoint is not None and endpoint.agent is not None:
            self._connector.connect(call, endpoint)
        else:
            self._spawn(call, self._in_started(call, allow.autostart))

    def _in_admin_qube(self, call: Call, allow: Allow) -> None:
        """Have qubesd serve it: it knows which services there are."""
        clock = self._clock_for(call)
        if clock is None:
            self._connector.to_daemon(call, allow.requested_target)
            return
        # The admin qube's clock is another qube's: that one is asked, in the admin qube's name.
        call.redirected = True
        call.target = clock.name
        call.told_source = DOM0
        call.user = ""
        self._connector.connect(call, clock)

    def _clock_for(self, call: Call) -> Endpoint | None:
        """The qube that tells the time in place of the admin qube, if it runs and does not ask."""
        if call.service != CLOCK_SERVICE or call.argument not in _CLOCK_ARGUMENTS:
            return None
        name = self._known.clockvm
        if name is None or name in {DOM0, call.source}:
            return None
        endpoint = self._endpoints.get(name)
        return endpoint if endpoint is not None and endpoint.agent is not None else None

    def _admin_call(self, call: Call) -> None:
        """A call by the admin qube is not policed; it is written down all the same."""
        call.decision = "allow"
        call.target = call.requested
        endpoint = self._endpoints.get(call.target)
        if endpoint is None:
            self._connector.fail(call, f"qube `{call.target}` is not running")
        elif endpoint.agent is not None:
            self._connector.connect(call, endpoint)
        else:
            self._spawn(call, self._in_endpoint(call))

    # What takes time.

    def _spawn(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        call.task = self._spawn_task(self._guard(call, work))

    async def _guard(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """A call that fails takes nothing else with it."""
        try:
            await work
        except CallError as e:
            self._connector.fail(call, str(e))
        except DaemonError as e:
            self._connector.fail(call, f"qubesd: {e.message}")
        except Exception:  # noqa: BLE001 - one call must not end the broker
            _log.exception("a call failed; this is a bug in Caisson, report it", call=call.id)
            self._connector.fail(call, "internal error")

    async def _ask(self, call: Call, ask: Ask) -> None:
        """Ask a person, then judge again: the world may have changed meanwhile."""
        call.rule = ask.rule
        call.told_source = ask.source
        asked_of = self._known.system
        source = self._known.system.find(ask.source)
        if source is None or source.guivm is None:
            self._connector.refuse(call, "the calling qube has no GUI qube that could be asked")
            return
        try:
            answer = await self._person.ask(call, ask, source.guivm)
        except CaissonError as e:
            call.decision = "deny"
            self._connector.end(call, Ended.DENIED, wire.REFUSED, wire.Code.REFUSED, e.message)
            return
        call.answered_by = answer.by
        if answer.target is None:
            self._deny(call, ask.refuse(answer.reason))
            return
        self._link.pump()
        call.task = None
        if not self._link.synced:
            self._connector.refuse(call, "qubesd went away")
            return
        try:
            chosen = after_answer(answer.target, self._judge(call), asked_of, self._known.system)
        except CallError as e:
            self._connector.refuse(call, str(e))
            return
        if isinstance(chosen, Deny):
            self._deny(call, chosen)
        else:
            self._allowed(call, chosen)

    async def _in_started(self, call: Call, autostart: bool) -> None:
        """Start the target first; if it runs already, wait for its agent."""
        if call.target not in self._endpoints:
            if not autostart:
                raise CallError("the target does not run, and the rule says `autostart=no`")
            await self._targets.start(call.target, call.source)
        await self._in_endpoint(call)

    async def _in_endpoint(self, call: Call) -> None:
        endpoint = await self._targets.agent(call.target)
        if not self.still(call):
            self._connector.refuse(
                call, "what the decision rested on changed while the target started"
            )
        elif not call.ended:
            self._connector.connect(call, endpoint)

    def still(self, call: Call) -> bool:
        """Whether the decision is the same after a wait; the admin qube's calls are not policed."""
        allow = call.allow
        if allow is None:
            return True
        self._link.pump()
        system = self._known.system
        if not self._link.synced or _identities(system, allow) != call.identity:
            return False
        if call.redirected and self._known.clockvm != call.target:
            return False
        again = self._judge(call)
        if isinstance(again, Ask) and call.answered_by is not None:
            again = again.choose(allow.target)
        return isinstance(again, Allow) and _way(again) == _way(allow)

    async def _in_disposable(self, call: Call, allow: Allow) -> None:
        """Run the call in a disposable of its own, which ends with the call."""
        base = allow.target.removeprefix("@dispvm:")
        found = self._known.system.find(base)
        # If the caller leaves meanwhile, the answer is still awaited: somebody must discard it.
        call.shielded = True
        try:
            name = await self._targets.disposable(found.name if found else base, call.source)
        finally:
            call.shielded = False
        if call.ended:
            self._targets.discard(name)
            return
        call.disposable = call.target = name
        await self._in_endpoint(call)


def after_answer(target: str, again: Decision, then: SystemInfo, now: SystemInfo) -> Allow | Deny:
    """What a person's pick leads to, by what is true after it.

    Args:
        target: what the person picked.
        again: what the policy says of the call now.
        then: what existed when the person was asked.
        now: what exists now.

    Raises:
        CallError: the person picked something else than what this would be.
    """
    if identity(then, target) != identity(now, target):
        raise CallError("the chosen qube is not the one that was shown")
    if isinstance(again, Ask):
        return again.choose(target)
    if isinstance(again, Allow) and again.target != target:
        raise CallError("the policy changed while the person was asked")
    return again


def _way(allow: Allow) -> tuple[str | None, ...]:
    """From whom an allowed call comes, where it goes, and as what."""
    return allow.source, allow.target, allow.user, allow.relay, allow.service


def _identities(system: SystemInfo, allow: Allow) -> tuple[str | None, ...]:
    """Which qubes the target and its relay are: a name may pass to another qube."""
    relay = (identity(system, allow.relay),) if allow.relay is not None else ()
    return identity(system, allow.target), *relay
