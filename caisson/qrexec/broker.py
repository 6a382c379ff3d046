"""The broker itself: decides calls, connects the two sides, and writes down what happened.

The way of an allowed call between running qubes is synchronous, from the caller's datagram to
the agent's; whatever must wait (a person, a start, qubesd) goes on in a task of its own.
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from caisson.errors import CaissonError, DaemonError, ValueRefusedError
from caisson.names import DOM0, QubeName
from caisson.paths import Paths
from caisson.policy import Allow, Ask, Decision, Deny, SystemInfo
from caisson.policy import Request as PolicyRequest
from caisson.qrexec import sparing, wire
from caisson.qrexec.asking import Person
from caisson.qrexec.audit import Audit
from caisson.qrexec.calls import Call, CallError, Ended, PipeBudget, Pipes, Untaken
from caisson.qrexec.channel import Channel
from caisson.qrexec.daemon_link import DaemonLink
from caisson.qrexec.endpoint import (
    CLIENT_QUEUE,
    FIRST_MESSAGE_TIMEOUT,
    MOST_CALLS,
    MOST_WAITING,
    Endpoint,
)
from caisson.qrexec.link import (
    Admit,
    AgentGone,
    AgentHello,
    CloseQube,
    Holding,
    OpenQube,
    Reject,
    Snapshot,
    ToBroker,
)
from caisson.qrexec.rules import Rules
from caisson.qrexec.targets import AGENT_TIMEOUT, Targets

LINK_PATIENCE = 5.0
AGENT_GRACE = 10.0
CALLS_A_DRAIN = 8
RESERVED_DESCRIPTORS = 256

_log = structlog.get_logger("broker")


class Broker:
    """One broker of one instance.

    Args:
        paths: the instance.
        daemon_uid: the user that qubesd runs as.
    """

    def __init__(self, paths: Paths, daemon_uid: int = 0) -> None:
        self._paths = paths
        self._audit = Audit(paths.audit)
        self._rules = Rules(paths)
        self._link = DaemonLink(paths.link, daemon_uid, on_message=self._obey)
        self._system = SystemInfo({})
        self._infos: dict[str, Mapping[str, Any]] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._dom0 = Endpoint(self, DOM0, paths.dom0_socket, 0o660)
        self._budget = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS
        self._connections = 0
        self._pipes = PipeBudget()
        self._person = Person(paths.prompt_agent, self._background)
        self._targets = Targets(self._link, self._endpoints, self._background)
        self._silent: deque[tuple[float, Channel, Endpoint]] = deque()
        self._paused: set[Endpoint] = set()
        self._behind: set[Endpoint] = set()
        # Half of what the kernel lets lie unread in our sockets, at three descriptors a call.
        self._untaken = Untaken(self._budget // 6)
        self._sweeping = False
        self._ring: dict[Endpoint, None] = {}
        self._turn_due = False
        self._tasks: asyncio.TaskGroup
        self._loop: asyncio.AbstractEventLoop

    async def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Serve for ever.

        Args:
            on_ready: called once, when the first snapshot is there.
        """
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._link.run())
                await self._link.wait_synced()
                if on_ready is not None:
                    on_ready()
        finally:
            for endpoint in (self._dom0, *self._endpoints.values()):
                endpoint.close()
            self._audit.close()

    # What qubesd says.

    def _obey(self, message: ToBroker) -> None:
        match message:
            case Snapshot():
                self._take(message)
            case OpenQube(name):
                self._open(name)
            case CloseQube(name):
                self._close(name)
            case Admit(name, pid):
                endpoint = self._endpoints.get(name)
                if endpoint is not None and endpoint.admit(pid):
                    self._targets.settle(name, True)
                    self._drain(endpoint)
            case Reject(name, pid, reason):
                if (endpoint := self._endpoints.get(name)) is not None:
                    endpoint.reject(pid, reason)

    def _take(self, snapshot: Snapshot) -> None:
        if snapshot.full:
            self._infos = {}
            self._system = SystemInfo({})
        for name in snapshot.removed:
            self._infos.pop(name, None)
        self._infos.update(snapshot.domains)
        try:
            self._system = self._system.with_changes(snapshot.domains, snapshot.removed)
        except ValueRefusedError:
            self._take_one_by_one(snapshot)
        if snapshot.full:
            # qubesd made the directories before it listened.
            self._audit.ready()
            self._rules.current()
            self._listen(self._dom0)
            wanted = set(snapshot.open)
            # A qube that ended and came back while the link was down has a new directory.
            for name, endpoint in tuple(self._endpoints.items()):
                if name not in wanted or not endpoint.reachable:
                    self._close(name)
            for name in snapshot.open:
                self._open(name)
            for endpoint in self._endpoints.values():
                endpoint.examine_again()
            self._link.send(Holding(sorted(self._targets.held)))
            self._targets.discard_again()

    def _take_one_by_one(self, snapshot: Snapshot) -> None:
        """A qube with malformed information does not exist for decisions; the others do."""
        self._system = self._system.with_changes({}, [*snapshot.removed, *snapshot.domains])
        for name, info in snapshot.domains.items():
            try:
                self._system = self._system.with_changes({name: info})
            except ValueRefusedError as e:
                self._infos.pop(name, None)
                _log.error("a qube is left out", error=str(e))

    def _open(self, name: str) -> None:
        if name in self._endpoints or name == DOM0:
            return
        qube = QubeName.parse(name)
        path = self._paths.socket_dir(qube) / "qrexec"
        endpoint = Endpoint(self, qube, path, 0o666)
        if self._listen(endpoint):
            self._endpoints[name] = endpoint

    def _listen(self, endpoint: Endpoint) -> bool:
        try:
            endpoint.listen()
        except OSError as e:
            _log.error("cannot listen for a qube", qube=endpoint.name, error=str(e))
            return False
        return True

    def _close(self, name: str) -> None:
        endpoint = self._endpoints.pop(name, None)
        if endpoint is None:
            return
        endpoint.close()
        self._paused.discard(endpoint)
        self._behind.discard(endpoint)
        self._ring.pop(endpoint, None)
        for call in tuple(endpoint.calls):
            self._end(call, Ended.CALLER_GONE)
        self._lose_calls(endpoint)
        self._targets.settle(name, False)

    # What endpoints say.

    def allowance(self) -> int:
        """A qube may hold as many connections as are free: there is always room for another."""
        return self._budget - self._connections

    def connections_changed(self, by: int) -> None:
        """Count the open connections of all qubes."""
        self._connections += by

    def paused(self, endpoint: Endpoint) -> None:
        """Try again soon."""
        self._paused.add(endpoint)
        self._sweep_later()

    def silent(self, channel: Channel, endpoint: Endpoint) -> None:
        """The connection must speak in time."""
        self._silent.append((self._loop.time() + FIRST_MESSAGE_TIMEOUT, channel, endpoint))
        self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(1.0, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        now = self._loop.time()
        while self._silent and self._silent[0][0] <= now:
            _, channel, endpoint = self._silent.popleft()
            endpoint.expire(channel)
        paused, self._paused = self._paused, set()
        for endpoint in paused:
            endpoint.resume()
        for endpoint in tuple(self._behind):
            for call in endpoint.waiting.expired(now):
                self._fail(call, "the target's agent does not answer")
            if not endpoint.waiting:
                self._behind.discard(endpoint)
        if self._silent or self._behind:
            self._sweep_later()

    def examine(self, endpoint: Endpoint, applicant: Channel, hello: wire.Hello) -> None:
        """Have qubesd look at a process that claims to be the agent."""
        self._link.send(AgentHello(endpoint.name, applicant.pid, applicant.uid, hello.report))

    def agent_gone(self, endpoint: Endpoint) -> None:
        """Tell qubesd; the agent may come back and bring its exit codes."""
        self._link.send(AgentGone(endpoint.name))
        self._loop.call_later(AGENT_GRACE, self._agent_missing, endpoint)

    def _agent_missing(self, endpoint: Endpoint) -> None:
        if endpoint.agent is None:
            self._lose_calls(endpoint)

    def _lose_calls(self, endpoint: Endpoint) -> None:
        for call in (*endpoint.serving.values(), *endpoint.waiting.take_all()):
            self._end(call, Ended.TARGET_GONE, wire.exited(wire.Code.LOST), wire.Code.LOST)

    def exited(self, endpoint: Endpoint, message: wire.Exited) -> None:
        """The service ended: so does the call."""
        call = endpoint.serving.get(message.id)
        if call is not None:
            self._end(call, Ended.EXITED, wire.exited(message.code), message.code)

    def malformed(self, endpoint: Endpoint, channel: Channel, error: CaissonError) -> None:
        """Refuse, and write it down; in its turn, like a call."""
        call = Call(endpoint.name, channel)
        call.malformed = error.message
        self._own(endpoint, call, channel)
        self._submit(endpoint, call)

    def request(
        self,
        endpoint: Endpoint,
        channel: Channel,
        message: wire.ClientCall | wire.AdminCall,
    ) -> None:
        """A new call: at once if the qube has no other that waits, else in its turn."""
        call = Call(endpoint.name, channel)
        if isinstance(message, wire.AdminCall):
            name, call.plus, call.argument = message.service.partition("+")
            call.service = name
            call.command = message.command
            call.user = message.user
            call.told_source = message.source
            call.requested = message.qube
            call.flags = message.flags
        else:
            call.service, call.argument = message.service, message.argument
            call.requested = message.target
            call.flags = message.flags
        self._own(endpoint, call, channel)
        if len(endpoint.calls) > MOST_CALLS:
            self._refuse(call, f"the qube has {MOST_CALLS} calls in flight")
        else:
            self._submit(endpoint, call)

    def _submit(self, endpoint: Endpoint, call: Call) -> None:
        if endpoint.served:
            endpoint.undecided.append(call)
        else:
            self._in_turn(endpoint)
            self._begin(call)

    def _own(self, endpoint: Endpoint, call: Call, channel: Channel) -> None:
        endpoint.calls.add(call)

        def left(reason: str) -> None:
            if reason:
                sparing.warning("a session is closed", qube=endpoint.name, reason=reason)
            endpoint.forget(channel)
            self._end(call, Ended.CALLER_GONE)

        def spoke(_: bytes) -> None:
            endpoint.end_session(channel)
            left("it spoke after its request")

        channel.handle(spoke, left, CLIENT_QUEUE)

    # Turns: in each turn of the loop, each qube gets one decision.

    def _in_turn(self, endpoint: Endpoint) -> None:
        endpoint.served = True
        self._ring[endpoint] = None
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        ring, self._ring = self._ring, {}
        for endpoint in ring:
            endpoint.served = False
            while endpoint.undecided:
                call = endpoint.undecided.popleft()
                if not call.ended:
                    self._in_turn(endpoint)
                    self._begin(call)
                    break
            endpoint.resume()

    # Deciding.

    def _begin(self, call: Call) -> None:
        if call.malformed:
            self._refuse(call, call.malformed)
            return
        if not self._audit.ready():
            self._refuse(call, "the audit log cannot be written")
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
        return self._rules.decide(
            PolicyRequest(
                service=call.service,
                argument=f"+{call.argument}",
                source=call.source,
                target=call.requested,
            ),
            self._system,
        )

    def _deny(self, call: Call, deny: Deny) -> None:
        call.decision = "deny"
        call.rule = deny.rule
        if deny.notify:
            self._person.tell(call, "deny", call.requested)
        self._end(call, Ended.DENIED, wire.REFUSED, wire.Code.REFUSED, deny.text)

    def _allowed(self, call: Call, allow: Allow) -> None:
        """Go on with an allowed call; its way is synchronous if the target runs."""
        call.rule = allow.rule
        call.allow = allow
        call.identity = _identity(self._system, allow.target)
        call.user = allow.user or ""
        if allow.relay is not None:
            self._fail(call, "targets on other machines are not supported yet")
            return
        if allow.target.startswith("@dispvm:"):
            call.decision = "allow"
            call.target = allow.target
            self._spawn(call, self._in_disposable(call, allow))
            return
        target = self._system.find(allow.target)
        if target is None:
            self._refuse(call, "the target does not exist")
            return
        call.target = target.name
        if target.name == call.source:
            call.decision = "deny"
            self._end(
                call, Ended.DENIED, wire.REFUSED, wire.Code.REFUSED, "a qube cannot call itself"
            )
            return
        call.decision = "allow"
        if allow.notify:
            self._person.tell(call, "allow", call.target)
        if target.name == DOM0:
            self._in_admin_qube(call)
            return
        endpoint = self._endpoints.get(target.name)
        if endpoint is not None and endpoint.agent is not None:
            self._connect(call, endpoint)
        else:
            self._spawn(call, self._in_started(call, allow.autostart))

    def _in_admin_qube(self, call: Call) -> None:
        """Services of the admin qube: none are run yet.

        The Admin API over qrexec will pass the call on to qubesd here.
        """
        self._end(
            call,
            Ended.FAILED,
            wire.problem(wire.Code.NOT_FOUND, "the admin qube has no such service"),
            wire.Code.NOT_FOUND,
            "no services in the admin qube",
        )

    def _admin_call(self, call: Call) -> None:
        """A call by the admin qube is not policed; it is written down all the same."""
        call.decision = "allow"
        call.target = call.requested
        endpoint = self._endpoints.get(call.target)
        if endpoint is None:
            self._fail(call, f"qube `{call.target}` is not running")
        elif endpoint.agent is not None:
            self._connect(call, endpoint)
        else:
            self._spawn(call, self._in_endpoint(call))

    # What takes time.

    def _spawn(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        call.task = self._tasks.create_task(self._guard(call, work))

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(_safely(work))

    async def _guard(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """A call that fails takes nothing else with it."""
        try:
            await work
        except CallError as e:
            self._fail(call, str(e))
        except DaemonError as e:
            self._fail(call, f"qubesd: {e.message}")
        except Exception:  # noqa: BLE001 - one call must not end the broker
            _log.exception("a call failed; this is a bug in Caisson, report it", call=call.id)
            self._fail(call, "internal error")

    async def _ask(self, call: Call, ask: Ask) -> None:
        """Ask a person, then judge again: the world may have changed meanwhile."""
        call.rule = ask.rule
        asked_of = self._system
        source = self._system.find(call.source)
        if source is None or source.guivm is None:
            self._refuse(call, "the calling qube has no GUI qube that could be asked")
            return
        if source.guivm != DOM0:
            self._refuse(call, f"GUI qube `{source.guivm}`: only `dom0` is supported yet")
            return
        try:
            answer = await self._person.ask(call, ask, self._system, self._infos)
        except CaissonError as e:
            call.decision = "deny"
            self._end(call, Ended.DENIED, wire.REFUSED, wire.Code.REFUSED, e.message)
            return
        call.answered_by = answer.by
        if answer.target is None:
            self._deny(call, ask.refuse())
            return
        self._link.pump()
        again = self._judge(call) if self._link.synced else None
        chosen = again.choose(answer.target) if isinstance(again, Ask) else again
        call.task = None
        if chosen is None:
            self._refuse(call, "qubesd went away")
        elif _identity(asked_of, answer.target) != _identity(self._system, answer.target):
            self._refuse(call, "the chosen qube is not the one that was shown")
        elif isinstance(chosen, Deny):
            self._deny(call, chosen)
        elif isinstance(chosen, Allow) and (
            isinstance(again, Ask) or chosen.target == answer.target
        ):
            self._allowed(call, chosen)
        else:
            self._refuse(call, "the policy changed while the person was asked")

    async def _in_started(self, call: Call, autostart: bool) -> None:
        """Start the target first; if it runs already, wait for its agent."""
        if call.target not in self._endpoints:
            if not autostart:
                raise CallError("the target does not run, and the rule says `autostart=no`")
            await self._targets.start(call.target, call.source)
        await self._in_endpoint(call)

    async def _in_endpoint(self, call: Call) -> None:
        endpoint = await self._targets.agent(call.target)
        if call.allow is not None and not self._still(call, call.allow):
            self._refuse(call, "what the decision rested on changed while the target started")
        elif not call.ended:
            self._connect(call, endpoint)

    def _still(self, call: Call, allow: Allow) -> bool:
        """Whether the decision is the same after a wait."""
        self._link.pump()
        if not self._link.synced or _identity(self._system, allow.target) != call.identity:
            return False
        again = self._judge(call)
        if isinstance(again, Ask) and call.answered_by is not None:
            again = again.choose(allow.target)
        return isinstance(again, Allow) and (again.target, again.user) == (allow.target, allow.user)

    async def _in_disposable(self, call: Call, allow: Allow) -> None:
        """Run the call in a disposable of its own, which ends with the call."""
        base = allow.target.removeprefix("@dispvm:")
        found = self._system.find(base)
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

    # Connecting and ending.

    def _connect(self, call: Call, endpoint: Endpoint) -> None:
        """Connect the two sides, or wait for an agent that is behind."""
        if not endpoint.waiting and endpoint.agent is not None and not endpoint.agent.backed_up:
            self._hand_over(call, endpoint, endpoint.agent)
        elif len(endpoint.waiting) >= MOST_WAITING:
            self._fail(call, "too many calls wait for the target")
        else:
            endpoint.waiting.add(self._loop.time() + AGENT_TIMEOUT, call)
            self._behind.add(endpoint)
            self._sweep_later()
            self._drain(endpoint)

    def _drain(self, endpoint: Endpoint) -> None:
        """Hand over the calls that wait, as far as the agent keeps up."""
        for _ in range(CALLS_A_DRAIN):
            if not endpoint.waiting or (agent := endpoint.agent) is None:
                return
            if agent.backed_up:
                break
            call = endpoint.waiting.next()
            if call.ended:
                continue
            if call.allow is not None and not self._still(call, call.allow):
                self._refuse(call, "what the decision rested on changed while the target was busy")
            else:
                self._hand_over(call, endpoint, agent)
        # The rest in another turn of the loop, so that other qubes get theirs.
        if endpoint.waiting and endpoint.agent is not None:
            endpoint.agent.when_drained(lambda: self._drain(endpoint))

    def _hand_over(self, call: Call, endpoint: Endpoint, agent: Channel) -> None:
        """Give each side its ends of the pipes, and step out of the way."""
        client = call.client
        if client is None or not self._untaken.admits(call.source):
            self._fail(call, "the caller does not take its pipes")
            return
        call.slot = self._audit.begin(call.record(Ended.BROKER_GONE, None, ""))
        if call.slot is None:
            self._refuse(call, "the audit log cannot be written")
            return
        try:
            pipes = Pipes.make()
        except OSError as e:
            self._fail(call, f"no pipes: {e.strerror}")
            return
        user = call.user or str(self._infos.get(call.target, {}).get("default_user") or "")
        message = (
            wire.start_command(call.id, user, call.command)
            if call.command
            else wire.start_service(call.id, user, call.descriptor, call.told_source, call.flags)
        )
        try:
            if self._pipes.take(call):
                pipes.enlarge()
            if not agent.send(message, pipes.service):
                self._fail(call, "the target does not take the call")
                return
            call.serving = endpoint.serving
            call.serving[call.id] = call
            if client.send(wire.ACCEPTED, pipes.caller):
                self._untaken.add(client, call.source)
            else:
                self._fail(call, "the caller does not take its pipes")
        finally:
            pipes.close()

    def _refuse(self, call: Call, reason: str) -> None:
        call.decision = "refuse"
        self._end(call, Ended.REFUSED, wire.REFUSED, wire.Code.REFUSED, reason)

    def _fail(self, call: Call, reason: str) -> None:
        """The caller learns that it failed; not why, which may name qubes that it must not know."""
        told = reason if call.source == DOM0 else "the target could not be reached"
        self._end(
            call, Ended.FAILED, wire.problem(wire.Code.PROBLEM, told), wire.Code.PROBLEM, reason
        )

    def _end(
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
        self._audit.write(call.record(how, code, reason))
        if call.slot is not None:
            self._audit.end(call.slot)
        if how in {Ended.REFUSED, Ended.FAILED} and reason:
            sparing.info("a call failed", qube=call.source, call=call.id, reason=reason)
        client, call.client = call.client, None
        endpoint = self._dom0 if call.source == DOM0 else self._endpoints.get(call.source)
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
        if call.disposable:
            self._targets.discard(call.disposable)
        if call.task is not None and not call.shielded and call.task is not asyncio.current_task():
            call.task.cancel()
        call.task = None


async def _safely(work: Coroutine[Any, Any, None]) -> None:
    """What runs beside the calls takes nothing else with it when it fails."""
    try:
        await work
    except Exception:  # noqa: BLE001 - the broker goes on
        _log.exception("this is a bug in Caisson, report it")


def _identity(system: SystemInfo, target: str) -> str | None:
    """Which qube a target is, or is based on: a name may pass to another qube in the meantime."""
    found = system.find(target.removeprefix("@dispvm:"))
    return None if found is None else found.uuid
