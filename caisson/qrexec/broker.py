"""The broker itself: what qubesd and the qubes say to it, and whose turn it is.

`deciding` judges calls, `connecting` connects and ends them.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from caisson.errors import CaissonError, DaemonError
from caisson.names import DOM0, QubeName
from caisson.paths import Paths
from caisson.qrexec import dates, sparing, wire
from caisson.qrexec.admin_messages import MOST_CALLS as MOST_TO_DAEMON
from caisson.qrexec.advising import DESCRIPTORS, Adviser, Sockets
from caisson.qrexec.answering import MOST_CONNECTIONS as MOST_ADVISED
from caisson.qrexec.asking import Person
from caisson.qrexec.audit import Audit
from caisson.qrexec.calls import Call, CallError, Ended
from caisson.qrexec.channel import Channel
from caisson.qrexec.connecting import Connector
from caisson.qrexec.daemon_link import DaemonLink
from caisson.qrexec.daemon_services import DaemonServices
from caisson.qrexec.deciding import LINK_PATIENCE, Decider
from caisson.qrexec.directories import GUI_SOCKET, POLICY_SOCKET, SIMPLE_SOCKET
from caisson.qrexec.endpoint import CLIENT_QUEUE, MOST_CALLS, Endpoint
from caisson.qrexec.judging import Judge, View
from caisson.qrexec.known import Known
from caisson.qrexec.link import (
    Admit,
    AgentGone,
    AgentHello,
    CloseQube,
    Holding,
    OpenQube,
    Reject,
    SetUp,
    Snapshot,
    ToBroker,
)
from caisson.qrexec.rules import Rules
from caisson.qrexec.targets import Targets

AGENT_GRACE = 10.0
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
        self._known = Known()
        self._link = DaemonLink(paths.link, daemon_uid, on_message=self._obey)
        self._endpoints: dict[str, Endpoint] = {}
        self._dom0 = Endpoint(self, DOM0, paths.dom0_socket, 0o660)
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS
        most_to_daemon = min(MOST_TO_DAEMON, descriptors // 8)
        most_advised = min(MOST_ADVISED, descriptors // 64)
        most_dates = min(dates.MOST_DATES, descriptors // 64)
        self._budget = (
            descriptors
            - most_to_daemon
            - DESCRIPTORS * most_advised
            - dates.DESCRIPTORS * most_dates
        )
        self._connections = 0
        self._targets = Targets(self._link, self._endpoints, self._background)
        self._connector = Connector(
            self._known,
            self._audit,
            self._endpoint_of,
            self._targets,
            DaemonServices(paths.admin_calls, daemon_uid, most_to_daemon),
            self._budget,
            most_dates,
            still=lambda call: self._decider.still(call),  # noqa: PLW0108 - it is made below
            sweep_later=self._sweep_later,
        )
        self._judge = Judge(self._rules, self._known)
        person = Person(paths, self._known, self._background)
        self._advising = Adviser(self._situation, person, self._audit.write, self._at_once).servers(
            Sockets(
                paths.policy_sockets / POLICY_SOCKET,
                paths.policy_sockets / SIMPLE_SOCKET,
                paths.policy_sockets / GUI_SOCKET,
            ),
            self._spawn,
            most_advised,
        )
        self._decider = Decider(
            self._known,
            self._judge,
            self._link,
            self._audit,
            self._endpoints,
            self._targets,
            person,
            self._connector,
            self._spawn,
        )
        self._silent: set[Endpoint] = set()
        self._paused: set[Endpoint] = set()
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
            for server in self._advising:
                server.close()
            self._audit.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.create_task(work)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        self._spawn(_safely(work))

    def _endpoint_of(self, name: str) -> Endpoint | None:
        return self._dom0 if name == DOM0 else self._endpoints.get(name)

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
                    if endpoint.fresh:
                        self._connector.lose_served(endpoint)
                    self._targets.settle(name, True)
                    self._connector.drain(endpoint)
            case Reject(name, pid, reason):
                if (endpoint := self._endpoints.get(name)) is not None:
                    endpoint.reject(pid, reason)

    def _take(self, snapshot: Snapshot) -> None:
        if snapshot.full:
            self._known.clear()
        self._known.take(snapshot.domains, snapshot.removed)
        if snapshot.full:
            # qubesd made the directories before it listened.
            self._audit.ready()
            self._rules.current()
            self._listen(self._dom0)
            self._advise()
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

    def _advise(self) -> None:
        for server in self._advising:
            try:
                server.listen()
            except DaemonError as e:
                _log.error("cannot listen for those who ask for decisions", error=str(e))

    def _at_once(self) -> View | None:
        """What is decided on for others, as for calls: with a log and a live link only."""
        if not self._audit.ready():
            return None
        self._link.pump()
        return self._judge.now() if self._link.synced else None

    async def _situation(self) -> View:
        """The same, waiting for the link a little."""
        if (view := self._at_once()) is not None:
            return view
        if not self._audit.ready():
            raise CallError("the audit log cannot be written")
        try:
            async with asyncio.timeout(LINK_PATIENCE):
                await self._link.wait_synced()
        except TimeoutError:
            raise CallError("qubesd is not running") from None
        return self._judge.now()

    def _close(self, name: str) -> None:
        endpoint = self._endpoints.pop(name, None)
        if endpoint is None:
            return
        endpoint.close()
        self._paused.discard(endpoint)
        self._ring.pop(endpoint, None)
        self._connector.forget(endpoint)
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

    def silent(self, endpoint: Endpoint) -> None:
        """A connection must speak in time."""
        self._silent.add(endpoint)
        self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(1.0, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        now = self._loop.time()
        self._silent = {endpoint for endpoint in self._silent if endpoint.expire(now)}
        paused, self._paused = self._paused, set()
        for endpoint in paused:
            endpoint.resume()
        if self._connector.expire(now) or self._silent:
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
            self._connector.lose_calls(endpoint)

    def set_up(self, endpoint: Endpoint, pid: int, message: wire.SetUpEnded) -> None:
        """Tell qubesd that the set-up of a qube is over."""
        self._link.send(SetUp(endpoint.name, pid, message.failures))

    def exited(self, endpoint: Endpoint, message: wire.Exited) -> None:
        """The service ended: so does the call."""
        call = endpoint.serving.get(message.id)
        if call is not None:
            self._connector.end(call, Ended.EXITED, wire.exited(message.code), message.code)

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
            call.requested_source = message.requested_source
            call.flags = message.flags
        self._own(endpoint, call, channel)
        if len(endpoint.calls) > MOST_CALLS:
            self._connector.refuse(call, f"the qube has {MOST_CALLS} calls in flight")
        else:
            self._submit(endpoint, call)

    def _submit(self, endpoint: Endpoint, call: Call) -> None:
        if endpoint.served:
            endpoint.undecided.append(call)
        else:
            self._in_turn(endpoint)
            self._decider.begin(call)

    def _own(self, endpoint: Endpoint, call: Call, channel: Channel) -> None:
        endpoint.calls.add(call)

        def left(reason: str) -> None:
            if reason:
                sparing.warning("a session is closed", qube=endpoint.name, reason=reason)
            endpoint.forget(channel)
            self._connector.end(call, Ended.CALLER_GONE)

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
                    self._decider.begin(call)
                    break
            endpoint.resume()


async def _safely(work: Coroutine[Any, Any, None]) -> None:
    """What runs beside the calls takes nothing else with it when it fails."""
    try:
        await work
    except Exception:  # noqa: BLE001 - the broker goes on
        _log.exception("this is a bug in Caisson, report it")
