"""qubesd's half of the link to the broker: the server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from caisson.errors import CaissonError
from caisson.names import QubeName, shown
from caisson.paths import Paths
from caisson.policy import SystemInfo
from caisson.qrexec.directories import prepare, prepare_qube, remove_qube, socket_dirs
from caisson.qrexec.known import Known
from caisson.qrexec.link import (
    LONGEST_LINE,
    Ack,
    Admit,
    AgentGone,
    AgentHello,
    CloseQube,
    Holding,
    Opened,
    OpenQube,
    Operation,
    Reject,
    Reply,
    Request,
    SetUp,
    Snapshot,
    ToBroker,
    encode,
    encode_domain,
    in_pieces,
    listening,
    peer_of,
    read_to_daemon,
)

ACK_TIMEOUT = 10.0
SLOWEST = 16 * 1024 * 1024
"""Bytes a second that a broker takes in: what waits for it adds to the time that it has."""
MOST_REQUESTS = 4096
_BACKLOG = 4
LONGEST_DOMAIN = LONGEST_LINE // 2

DomainInfo = Mapping[str, Any]

_log = structlog.get_logger("link")

Hello = Callable[[QubeName, int, int, Mapping[str, Any]], None]
"""Called with the qube, the agent's pid and uid, and its barrier report."""
OnSetUp = Callable[[QubeName, int, int], None]
"""Called with the qube, the agent's pid, and how many things failed."""
Gone = Callable[[QubeName], None]
OnRequest = Callable[[Operation, QubeName, QubeName], Awaitable[str]]
"""Called with the operation, the qube and the calling qube; gives the name of the target."""


class BrokerLink:
    """qubesd's half: the server.

    It remembers what was pushed and opened, so that a broker that comes back gets everything;
    `known` is what was pushed last, for decisions of qubesd's own.

    Args:
        paths: the instance.
        uid: the broker's user; nobody else is heard.
        gid: the broker's group.
        on_hello: a process says that it is the agent of a qube; answer with `admit` or `reject`.
        on_gone: the session of a qube's agent ended.
        on_set_up: an agent says that the set-up of its qube is over.
        on_request: start a qube, make or discard a disposable; errors are `CaissonError`.
        disposables: those that were made for calls, by this daemon or an earlier one.
    """

    def __init__(
        self,
        paths: Paths,
        uid: int,
        gid: int,
        *,
        on_hello: Hello,
        on_gone: Gone,
        on_set_up: OnSetUp,
        on_request: OnRequest,
        disposables: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._paths = paths
        self._uid = uid
        self._gid = gid
        self._on_hello = on_hello
        self._on_gone = on_gone
        self._on_set_up = on_set_up
        self._on_request = on_request
        self._disposables = disposables
        self.known = Known(with_infos=False)
        # As they stand on the link: a tenth of what they take as objects, and nothing to collect.
        self._domains: dict[str, msgspec.Raw] = {}
        self._open: dict[str, None] = {}
        self._seq = 0
        self._peer: _BrokerPeer | None = None
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[asyncio.Task[None]] = set()
        self._connected = asyncio.Event()
        self._closing = False
        self._prepared = False

    def bind(self) -> None:
        """Take the socket; from here on the broker can connect, and waits for `start`."""
        self._prepare()
        self._listener = listening(self._paths.link, socket.SOCK_STREAM, self._gid, _BACKLOG)

    async def start(self) -> None:
        """Serve the broker; call it after running qubes were adopted."""
        if self._listener is None:
            self.bind()
        for name in socket_dirs(self._paths):
            if name not in self._open:
                self._remove(name)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=self._listener, limit=LONGEST_LINE, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Stop listening and hang up; calls in flight go on."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        elif self._listener is not None:
            self._listener.close()
        if self._peer is not None:
            self._peer.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._sessions, return_exceptions=True)

    @property
    def system_info(self) -> SystemInfo:
        """What exists, as the broker is told."""
        return self.known.system

    @property
    def connected(self) -> bool:
        """Whether a broker is there."""
        return self._peer is not None

    async def wait_connected(self) -> None:
        """Return when a broker is there."""
        await self._connected.wait()

    async def push(self, changed: Mapping[str, DomainInfo], removed: Iterable[str] = ()) -> None:
        """Hand over what changed; returns when the broker decides by it, or when it is gone."""
        gone = [str(name) for name in removed]
        fresh = {str(name): encode_domain(info) for name, info in changed.items()}
        for name in [name for name, told in fresh.items() if len(told) > LONGEST_DOMAIN]:
            # What was stored before there were bounds: it must not keep the broker from the rest.
            _log.error("a qube has too many marks: it is left out", qube=shown(name))
            del fresh[name]
            gone.append(name)
        self.known.take({name: changed[name] for name in fresh}, gone)
        for name in gone:
            self._domains.pop(name, None)
        self._domains |= fresh
        self._seq += 1
        if self._peer is not None:
            message = Snapshot(seq=self._seq, full=False, domains=fresh, removed=gone)
            await self._peer.deliver(message)

    async def replace(self, domains: Mapping[str, DomainInfo]) -> None:
        """Hand over everything that exists; returns as `push` does."""
        await self.push(domains, [name for name in self._domains if name not in domains])

    async def open_qube(self, name: QubeName) -> Path:
        """Make the qube's socket directory; returns it when the broker listens, or is gone.

        Without a broker the directory is there all the same: the agent waits for its socket.
        """
        self._prepare()
        path = prepare_qube(self._paths, name, self._uid, self._gid)
        self._open[name] = None
        if self._peer is not None:
            await self._peer.open(name)
        return path

    async def close_qube(self, name: QubeName) -> None:
        """Take the qube's socket, sessions and directory away."""
        self._open.pop(name, None)
        if self._peer is not None:
            self._peer.send(CloseQube(name))
        self._remove(name)

    def _remove(self, name: QubeName) -> None:
        try:
            remove_qube(self._paths, name)
        except OSError as e:
            # The broker owns the directory: what it may have put there is its own matter.
            _log.warning("a socket directory stays", qube=name, error=str(e))

    def admit(self, name: QubeName, pid: int) -> None:
        """The process is the qube's agent, and its barriers are up: let calls reach it."""
        if self._peer is not None:
            self._peer.send(Admit(name, pid))

    def reject(self, name: QubeName, pid: int, reason: str) -> None:
        """The process is not served, and told why."""
        if self._peer is not None:
            self._peer.send(Reject(name, pid, reason))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._sessions.add(task)
            task.add_done_callback(self._sessions.discard)
        sock = writer.get_extra_info("socket")
        pid, uid, _ = peer_of(sock)
        if uid != self._uid:
            _log.warning("stranger on the link refused", uid=uid, pid=pid)
            writer.close()
            return
        if self._peer is not None:
            self._peer.hang_up()
        peer = _BrokerPeer(writer)
        self._peer = peer
        peer.tell(Snapshot(seq=self._seq, full=True, domains=self._domains, open=list(self._open)))
        self._connected.set()
        try:
            await self._read(reader, peer)
        except ConnectionError:
            _log.info("the broker is gone")
        except (OSError, ValueError, CaissonError) as e:
            # ValueError: a line longer than the bound, or not a message.
            _log.warning("the broker broke the link protocol", error=shown(str(e)))
        finally:
            peer.hang_up()
            if self._peer is peer:
                self._peer = None
                self._connected.clear()
            # Nobody is left who would say that these calls ended.
            for name in () if self._closing else peer.disposables:
                self._spawn(self._discard(name))

    async def _read(self, reader: asyncio.StreamReader, peer: _BrokerPeer) -> None:
        while line := await reader.readline():
            match read_to_daemon(line):
                case Ack(seq):
                    peer.acked(seq)
                case Opened(name):
                    peer.opened(name)
                case AgentHello() | AgentGone() | SetUp() as told:
                    self._hear_of_agent(told)
                case Holding(names):
                    # Calls that ended with a former broker or daemon left theirs behind.
                    for name in set(self._disposables()) - set(names):
                        self._spawn(self._discard(name))
                case Request() as request:
                    if len(self._tasks) >= MOST_REQUESTS:
                        peer.send(Reply(request.id, ok=False, error="too many requests"))
                    else:
                        self._spawn(self._answer(peer, request))

    def _hear_of_agent(self, told: AgentHello | AgentGone | SetUp) -> None:
        name = QubeName.parse(told.name)
        match told:
            case AgentHello(_, pid, uid, report):
                self._on_hello(name, pid, uid, msgspec.to_builtins(report))
            case AgentGone():
                self._on_gone(name)
            case SetUp(_, pid, failures):
                self._on_set_up(name, pid, failures)

    def _prepare(self) -> None:
        if not self._prepared:
            prepare(self._paths, self._uid, self._gid)
            self._prepared = True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, peer: _BrokerPeer, request: Request) -> None:
        try:
            name = QubeName.parse(request.name)
            value = await self._on_request(request.op, name, QubeName.parse(request.source))
        except CaissonError as e:
            peer.send(Reply(request.id, ok=False, error=str(e)))
            return
        except Exception:  # noqa: BLE001 - one request must not end the link
            _log.exception("a request of the broker failed", op=str(request.op))
            peer.send(Reply(request.id, ok=False, error="internal error of qubesd"))
            return
        if request.op is Operation.DISPOSABLE:
            if peer.alive:
                peer.disposables.add(value)
            else:
                await self._discard(value)
        elif request.op is Operation.DISCARD:
            peer.disposables.discard(request.name)
        peer.send(Reply(request.id, ok=True, value=value))

    async def _discard(self, name: str) -> None:
        try:
            await self._on_request(Operation.DISCARD, QubeName.parse(name), QubeName("dom0"))
        except CaissonError as e:
            _log.warning("a disposable was not discarded", qube=shown(name), error=str(e))


class _BrokerPeer:
    """One connection of a broker, as qubesd sees it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._opening: dict[str, asyncio.Future[None]] = {}
        self.disposables: set[str] = set()
        self.alive = True

    def send(self, message: ToBroker) -> None:
        if self.alive:
            self._writer.write(encode(message))

    def tell(self, snapshot: Snapshot) -> None:
        for piece in in_pieces(snapshot):
            self.send(piece)

    async def deliver(self, snapshot: Snapshot) -> None:
        """Send, and wait until the broker decides by it or can no longer decide."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[snapshot.seq] = future
        self.tell(snapshot)
        await self._bounded(future, "a snapshot")

    async def open(self, name: str) -> None:
        future = self._opening.get(name)
        if future is None:
            future = self._opening[name] = asyncio.get_running_loop().create_future()
        self.send(OpenQube(name))
        await self._bounded(future, "a new qube")

    async def _bounded(self, future: asyncio.Future[None], what: str) -> None:
        if not self.alive:
            return
        waiting = self._writer.transport.get_write_buffer_size()
        done, _ = await asyncio.wait([future], timeout=ACK_TIMEOUT + waiting / SLOWEST)
        if not done:
            # It hangs. It reads the end of the link before its next decision.
            _log.error("the broker did not acknowledge in time; hanging up", waited_for=what)
            self.hang_up()

    def acked(self, seq: int) -> None:
        for number in [n for n in self._waiting if n <= seq]:
            _settle(self._waiting.pop(number))

    def opened(self, name: str) -> None:
        if (future := self._opening.pop(name, None)) is not None:
            _settle(future)

    def hang_up(self) -> None:
        if not self.alive:
            return
        self.alive = False
        sock = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        self._writer.transport.abort()
        for future in (*self._waiting.values(), *self._opening.values()):
            _settle(future)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
