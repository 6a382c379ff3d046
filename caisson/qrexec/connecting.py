"""Connecting the two sides of a decided call, and the one way out for every call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from caisson.names import DOM0
from caisson.qrexec import sparing, wire
from caisson.qrexec.audit import Audit
from caisson.qrexec.calls import Call, CallError, Ended, PipeBudget, Pipes, Untaken
from caisson.qrexec.channel import Channel
from caisson.qrexec.daemon_services import DaemonServices
from caisson.qrexec.dates import Dates
from caisson.qrexec.endpoint import MOST_WAITING, Endpoint
from caisson.qrexec.known import Known
from caisson.qrexec.targets import AGENT_TIMEOUT, Targets

CALLS_A_DRAIN = 8


class Connector:
    """Hands calls over to agents, and ends them.

    Args:
        known: what exists.
        audit: the record of calls.
        endpoint_of: the qube that is listened for under a name, if any.
        targets: discards what was made for a call.
        daemon: takes calls for the admin qube.
        descriptors: how many the broker may hold.
        most_dates: how many dates may be asked for at once.
        still: whether a call that waited would be decided in the same way now.
        sweep_later: have `expire` called soon.
    """

    def __init__(
        self,
        known: Known,
        audit: Audit,
        endpoint_of: Callable[[str], Endpoint | None],
        targets: Targets,
        daemon: DaemonServices,
        descriptors: int,
        most_dates: int,
        *,
        still: Callable[[Call], bool],
        sweep_later: Callable[[], None],
    ) -> None:
        self._known = known
        self._audit = audit
        self._endpoint_of = endpoint_of
        self._targets = targets
        self._daemon = daemon
        self._still = still
        self._sweep_later = sweep_later
        self._loop = asyncio.get_running_loop()
        self._pipes = PipeBudget()
        self._dates = Dates(most_dates, lambda call: self.fail(call, "the clock does not answer"))
        # Half of what the kernel lets lie unread in our sockets, at three descriptors a call.
        self._untaken = Untaken(descriptors // 6)
        self._behind: set[Endpoint] = set()

    def connect(self, call: Call, endpoint: Endpoint) -> None:
        """Connect the two sides, or wait for an agent that is behind."""
        if not endpoint.waiting and endpoint.agent is not None and not endpoint.agent.backed_up:
            self._to_agent(call, endpoint, endpoint.agent)
        elif len(endpoint.waiting) >= MOST_WAITING:
            self.fail(call, "too many calls wait for the target")
        else:
            endpoint.waiting.add(self._loop.time() + AGENT_TIMEOUT, call)
            self._behind.add(endpoint)
            self._sweep_later()
            self.drain(endpoint)

    def drain(self, endpoint: Endpoint) -> None:
        """Hand over the calls that wait, as far as the agent keeps up."""
        for _ in range(CALLS_A_DRAIN):
            if not endpoint.waiting or (agent := endpoint.agent) is None:
                return
            if agent.backed_up:
                break
            call = endpoint.waiting.next()
            if call.ended:
                continue
            if not self._still(call):
                self.refuse(call, "what the decision rested on changed while the target was busy")
            else:
                self._to_agent(call, endpoint, agent)
        # The rest in another turn of the loop, so that other qubes get theirs.
        if endpoint.waiting and endpoint.agent is not None:
            endpoint.agent.when_drained(lambda: self.drain(endpoint))

    def _to_agent(self, call: Call, endpoint: Endpoint, agent: Channel) -> None:
        user = call.user or str(self._known.infos.get(call.target, {}).get("default_user") or "")
        message = (
            wire.start_command(call.id, user, call.command, call.flags)
            if call.command
            else wire.start_service(call.id, user, call.descriptor, call.told_source, call.flags)
        )

        def start(service: tuple[int, int, int]) -> None:
            if not agent.send(message, service):
                raise CallError("the target does not take the call")
            call.serving = endpoint.serving
            call.serving[call.id] = call

        def give(pipes: Pipes) -> None:
            if call.redirected:
                with self._dates.between(call, pipes) as service:
                    start(service)
                return
            if self._pipes.take(call):
                pipes.enlarge()
            start(pipes.service)

        self._hand_over(call, give)

    def to_daemon(self, call: Call, requested: str) -> None:
        """Connect the caller with qubesd, which serves the admin qube's services itself.

        Args:
            call: the call.
            requested: the target that the caller asked for, as the policy takes it.
        """

        def ended(code: int | None) -> None:
            if code is None:
                self._lose(call)
            else:
                self.end(call, Ended.EXITED, wire.exited(code), code)

        self._hand_over(
            call, lambda pipes: self._daemon.hand_over(call, requested, pipes.service, ended)
        )

    def _hand_over(self, call: Call, give: Callable[[Pipes], None]) -> None:
        """Give each side its ends of the pipes, and step out of the way."""
        client = call.client
        if client is None or not self._untaken.admits(call.source):
            self.fail(call, "the caller does not take its pipes")
            return
        call.slot = self._audit.begin(call.record(Ended.BROKER_GONE, None, ""))
        if call.slot is None:
            self.refuse(call, "the audit log cannot be written")
            return
        try:
            pipes = Pipes.make()
        except OSError as e:
            self.fail(call, f"no pipes: {e.strerror}")
            return
        try:
            give(pipes)
            if client.send(wire.ACCEPTED, pipes.caller):
                self._untaken.add(client, call.source)
            else:
                self.fail(call, "the caller does not take its pipes")
        except CallError as e:
            self.fail(call, str(e))
        finally:
            pipes.close()

    def expire(self, now: float) -> bool:
        """Fail the calls that waited too long for an agent; whether others wait."""
        for endpoint in tuple(self._behind):
            for call in endpoint.waiting.expired(now):
                self.fail(call, "the target's agent does not answer")
            if not endpoint.waiting:
                self._behind.discard(endpoint)
        return bool(self._behind)

    def forget(self, endpoint: Endpoint) -> None:
        """The qube ended: so do its calls, and those to it."""
        self._behind.discard(endpoint)
        for call in tuple(endpoint.calls):
            self.end(call, Ended.CALLER_GONE)
        self.lose_calls(endpoint)

    def lose_calls(self, endpoint: Endpoint) -> None:
        """The agent that would end these calls is gone."""
        for call in (*endpoint.serving.values(), *endpoint.waiting.take_all()):
            self._lose(call)

    def _lose(self, call: Call) -> None:
        told = wire.problem(wire.Code.LOST, "the connection to the other qube was lost")
        self.end(call, Ended.TARGET_GONE, told, wire.Code.LOST)

    def refuse(self, call: Call, reason: str) -> None:
        """End a call that cannot be decided, or whose decision does not hold any more."""
        call.decision = "refuse"
        self.end(call, Ended.REFUSED, wire.REFUSED, wire.Code.REFUSED, reason)

    def fail(self, call: Call, reason: str) -> None:
        """The caller learns that it failed; not why, which may name qubes that it must not know."""
        told = reason if call.source == DOM0 else "the target could not be reached"
        self.end(
            call, Ended.FAILED, wire.problem(wire.Code.PROBLEM, told), wire.Code.PROBLEM, reason
        )

    def end(
        self,
        call: Call,
        how: Ended,
        message: bytes | None = None,
        code: int | None = None,
        reason: str = "",
    ) -> None:
        """The one way out: write it down, tell the caller, give everything back."""
        if call.ended:
            return
        call.ended = True
        if how is Ended.EXITED and call.redirected:
            # Not even the code of the clock is told: who just starts it hears nothing more.
            right = code == 0 and (bool(call.flags) or self._dates.answer(call))
            code = 0 if right else wire.Code.PROBLEM
            message = wire.exited(code)
        self._dates.give_back(call)
        self._audit.write(call.record(how, code, reason))
        if call.slot is not None:
            self._audit.end(call.slot)
        if how in {Ended.REFUSED, Ended.FAILED} and reason:
            sparing.info("a call failed", qube=call.source, call=call.id, reason=reason)
        client, call.client = call.client, None
        endpoint = self._endpoint_of(call.source)
        if client is not None:
            self._untaken.remove(client)
            if message is not None:
                client.send(message)
            client.finish()
            if endpoint is not None:
                endpoint.forget(client)
        if endpoint is not None:
            endpoint.calls.discard(call)
        self._give_back(call)

    def _give_back(self, call: Call) -> None:
        """What a call held, other than its client."""
        if call.serving is not None:
            call.serving.pop(call.id, None)
            call.serving = None
        self._pipes.give_back(call)
        self._daemon.leave(call)
        if call.disposable:
            self._targets.discard(call.disposable)
        if call.task is not None and not call.shielded and call.task is not asyncio.current_task():
            call.task.cancel()
        call.task = None
