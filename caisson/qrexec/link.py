"""The link between qubesd and the broker: a unix stream of JSON lines.

qubesd tells the broker what exists (`Snapshot`), which qubes run (`OpenQube`) and whose agent is
genuine (`Admit`); the broker reports agents and asks for starts and disposables.

Two promises:
- `BrokerLink.push` returns when the broker decides by the pushed state, or can no longer decide.
- The broker decides nothing without a live link: `DaemonLink.pump` reads, before each decision,
  everything that qubesd has sent so far, and its end.

qubesd does not trust the broker (which parses what hostile qubes send): lines are bounded, names
are checked, and the peer's user is checked on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import structlog

from caisson.errors import CaissonError, DaemonError
from caisson.names import QubeName, shown
from caisson.paths import Paths
from caisson.qrexec.directories import prepare, prepare_qube, remove_qube, socket_dirs

LONGEST_LINE = 16 * 1024 * 1024
ACK_TIMEOUT = 10.0
MOST_REQUESTS = 4096

DomainInfo = Mapping[str, Any]

_log = structlog.get_logger("link")


class Operation(StrEnum):
    """What the broker asks qubesd for."""

    START = "start"
    DISPOSABLE = "disposable"
    DISCARD = "discard"


class Barrier(msgspec.Struct, frozen=True):
    """One barrier as the agent found it from inside."""

    up: bool
    detail: str = ""


class Report(msgspec.Struct, frozen=True):
    """What the agent says of the walls around it."""

    barriers: dict[str, Barrier]
    version: str = ""


class Snapshot(msgspec.Struct, frozen=True, tag=True):
    """What exists: everything (`full`), or what changed.

    `domains` is as in `internal.GetSystemInfo`; `open`, with `full`, names all running qubes.
    """

    seq: int
    full: bool
    domains: dict[str, dict[str, Any]]
    removed: list[str] = []
    open: list[str] = []


class OpenQube(msgspec.Struct, frozen=True, tag=True):
    """Listen for this qube."""

    name: str


class CloseQube(msgspec.Struct, frozen=True, tag=True):
    """The qube ended: take its socket and sessions away."""

    name: str


class Admit(msgspec.Struct, frozen=True, tag=True):
    """The process that said hello is the qube's agent, and its barriers are up."""

    name: str
    pid: int


class Reject(msgspec.Struct, frozen=True, tag=True):
    """The process that said hello is not served."""

    name: str
    pid: int
    reason: str


class Reply(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `Request`."""

    id: int
    ok: bool
    value: str = ""
    error: str = ""


class Ack(msgspec.Struct, frozen=True, tag=True):
    """The broker decides by the snapshot of this number."""

    seq: int


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The broker listens for this qube."""

    name: str


class AgentHello(msgspec.Struct, frozen=True, tag=True):
    """A process of the qube claims to be its agent; `pid` and `uid` come from the kernel."""

    name: str
    pid: int
    uid: int
    report: Report


class AgentGone(msgspec.Struct, frozen=True, tag=True):
    """The session of the qube's agent ended."""

    name: str


class Request(msgspec.Struct, frozen=True, tag=True):
    """Start `name`; make a disposable of `name` for `source`; or discard the disposable `name`."""

    id: int
    op: Operation
    name: str
    source: str


ToBroker = Snapshot | OpenQube | CloseQube | Admit | Reject | Reply
ToDaemon = Ack | Opened | AgentHello | AgentGone | Request


def plain_name(value: object) -> str:
    """A name as text: names are `str` of their own types, which the encoder does not know."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"`{type(value).__name__}` has no place on the link")


_encoder = msgspec.json.Encoder(enc_hook=plain_name)
_to_broker: msgspec.json.Decoder[ToBroker] = msgspec.json.Decoder(ToBroker)
_to_daemon: msgspec.json.Decoder[ToDaemon] = msgspec.json.Decoder(ToDaemon)


def encode(message: ToBroker | ToDaemon) -> bytes:
    """One message as it stands on the link."""
    return _encoder.encode(message) + b"\n"


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end of a unix socket, by the kernel's word."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", raw)
    return pid, uid, gid


def address(path: Path) -> str:
    """The shortest form of a socket's path: the kernel takes 107 bytes."""
    absolute, relative = str(path), os.path.relpath(path)
    return relative if len(relative) < len(absolute) else absolute


# --- qubesd's half ------------------------------------------------------------------------------

Hello = Callable[[QubeName, int, int, Mapping[str, Any]], None]
"""Called with the qube, the agent's pid and uid, and its barrier report."""
Gone = Callable[[QubeName], None]
OnRequest = Callable[[Operation, QubeName, QubeName], Awaitable[str]]
"""Called with the operation, the qube and the calling qube; gives the name of the target."""


class BrokerLink:
    """qubesd's half: the server.

    It remembers what was pushed and opened, so that a broker that comes back gets everything.

    Args:
        paths: the instance.
        uid: the broker's user; nobody else is heard.
        gid: the broker's group.
        on_hello: a process says that it is the agent of a qube; answer with `admit` or `reject`.
        on_gone: the session of a qube's agent ended.
        on_request: start a qube, make or discard a disposable; errors are `CaissonError`.
    """

    def __init__(
        self,
        paths: Paths,
        uid: int,
        gid: int,
        *,
        on_hello: Hello,
        on_gone: Gone,
        on_request: OnRequest,
    ) -> None:
        self._paths = paths
        self._uid = uid
        self._gid = gid
        self._on_hello = on_hello
        self._on_gone = on_gone
        self._on_request = on_request
        self._domains: dict[str, dict[str, Any]] = {}
        self._open: dict[str, None] = {}
        self._seq = 0
        self._peer: _BrokerPeer | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connected = asyncio.Event()
        self._closing = False
        self._prepared = False

    async def start(self) -> None:
        """Make the broker's directories and listen; call it after running qubes were adopted."""
        self._prepare()
        for name in socket_dirs(self._paths):
            if name not in self._open:
                self._remove(name)
        path = self._paths.link
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(address(path))
        os.chown(path, 0, self._gid)
        path.chmod(0o660)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=sock, limit=LONGEST_LINE, backlog=4
        )

    async def close(self) -> None:
        """Stop listening and hang up; calls in flight go on."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        if self._peer is not None:
            self._peer.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
        fresh = {str(name): dict(info) for name, info in changed.items()}
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
        peer.send(Snapshot(seq=self._seq, full=True, domains=self._domains, open=list(self._open)))
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
            match _to_daemon.decode(line):
                case Ack(seq):
                    peer.acked(seq)
                case Opened(name):
                    peer.opened(name)
                case AgentHello(name, pid, uid, report):
                    self._on_hello(QubeName.parse(name), pid, uid, msgspec.to_builtins(report))
                case AgentGone(name):
                    self._on_gone(QubeName.parse(name))
                case Request() as request:
                    if len(self._tasks) >= MOST_REQUESTS:
                        peer.send(Reply(request.id, ok=False, error="too many requests"))
                    else:
                        self._spawn(self._answer(peer, request))

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

    async def deliver(self, snapshot: Snapshot) -> None:
        """Send, and wait until the broker decides by it or can no longer decide."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[snapshot.seq] = future
        self.send(snapshot)
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
        done, _ = await asyncio.wait([future], timeout=ACK_TIMEOUT)
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


# --- the broker's half --------------------------------------------------------------------------


class DaemonLink:
    """The broker's half: connects, reads without blocking, and connects again when it is lost.

    Args:
        path: qubesd's socket.
        uid: qubesd's user.
        on_message: called, in order, with everything that qubesd sends.
    """

    def __init__(
        self,
        path: Path,
        uid: int,
        *,
        on_message: Callable[[ToBroker], None],
    ) -> None:
        self._path = path
        self._uid = uid
        self._on_message = on_message
        self._sock: socket.socket | None = None
        self._in = bytearray()
        self._out = bytearray()
        self._lost = asyncio.Event()
        self._synced = asyncio.Event()
        self._requests: dict[int, asyncio.Future[str]] = {}
        self._next = 0

    @property
    def synced(self) -> bool:
        """Whether the link lives and a full snapshot came through it."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return when the link lives and a full snapshot came through it."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keep the link up, for ever."""
        pause = 0.02
        while True:
            try:
                await self._connect()
            except (OSError, DaemonError) as e:
                if pause == 0.02:  # noqa: PLR2004
                    _log.info("waiting for qubesd", error=str(e))
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 0.5)
                continue
            pause = 0.02
            _log.info("connected to qubesd")
            await self._lost.wait()

    async def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(address(self._path))
            self._check(sock)
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        self._lost.clear()
        asyncio.get_running_loop().add_reader(sock, self.pump)

    def _check(self, sock: socket.socket) -> None:
        _, uid, _ = peer_of(sock)
        if uid != self._uid:
            raise DaemonError(f"the link's other end runs as user {uid}, not {self._uid}")

    def pump(self) -> None:
        """Read and obey everything that qubesd has sent so far."""
        while self._sock is not None:
            try:
                chunk = self._sock.recv(262_144)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            if not chunk:
                self._lose("qubesd closed the link")
                return
            self._in += chunk
            if b"\n" in chunk:
                self._obey()
            elif len(self._in) > LONGEST_LINE:
                self._lose("qubesd sent an endless line")

    def _obey(self) -> None:
        *lines, rest = self._in.split(b"\n")
        self._in = bytearray(rest)
        for line in lines:
            try:
                message = _to_broker.decode(line)
            except msgspec.DecodeError as e:
                self._lose(f"qubesd sent what is no message: {e}")
                return
            match message:
                case Reply(number, ok, value, error):
                    self._settle(number, ok, value, error)
                case Snapshot(seq, full):
                    self._on_message(message)
                    if full:
                        self._synced.set()
                    self.send(Ack(seq))
                case OpenQube(name):
                    self._on_message(message)
                    self.send(Opened(name))
                case _:
                    self._on_message(message)

    def _settle(self, number: int, ok: bool, value: str, error: str) -> None:
        future = self._requests.pop(number, None)
        if future is None or future.done():
            return
        if ok:
            future.set_result(value)
        else:
            future.set_exception(DaemonError(error))

    def send(self, message: ToDaemon) -> None:
        """Send a message; without a link it is lost."""
        if self._sock is None:
            return
        idle = not self._out
        self._out += encode(message)
        if idle:
            self._flush()

    def _flush(self) -> None:
        if self._sock is None:
            return
        loop = asyncio.get_running_loop()
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError as e:
            self._lose(str(e))
            return
        del self._out[:sent]
        if len(self._out) > LONGEST_LINE:
            self._lose("qubesd does not read")
        elif self._out:
            loop.add_writer(self._sock, self._flush)
        else:
            loop.remove_writer(self._sock)

    async def request(self, op: Operation, name: str, source: str) -> str:
        """Ask qubesd for something; gives its answer.

        Raises:
            DaemonError: qubesd refused, failed or went away.
        """
        if self._sock is None:
            raise DaemonError("qubesd is not running", hint="start it: caisson up")
        self._next += 1
        number = self._next
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._requests[number] = future
        self.send(Request(number, op, name, source))
        try:
            return await future
        finally:
            self._requests.pop(number, None)

    def _lose(self, why: str) -> None:
        if self._sock is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        self._sock.close()
        self._sock = None
        self._in.clear()
        self._out.clear()
        self._synced.clear()
        _log.warning("the link to qubesd is lost", reason=shown(why))
        for future in self._requests.values():
            if not future.done():
                future.set_exception(DaemonError("qubesd went away"))
        self._lost.set()
