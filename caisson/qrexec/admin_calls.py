"""qubesd's half of calls for the admin qube: takes them over from the broker and has them served.

The broker is not trusted: it parses what hostile qubes send. Only its user is heard; descriptors
must be pipes and are opened anew, so that nobody else can make them block; names are checked.
Who may do what is for the server to judge again (`judging`).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from caisson.errors import CaissonError, InternalError, ProtocolError
from caisson.names import QubeName, ServiceArgument, ServiceName, shown
from caisson.paths import Paths
from caisson.qrexec import sparing
from caisson.qrexec.admin_messages import (
    LONGEST,
    MOST_CALLS,
    PIPES,
    Done,
    Handover,
    Shares,
    TargetType,
    checked,
    encode,
    read_handover,
)
from caisson.qrexec.directories import prepare
from caisson.qrexec.link import listening, peer_of

BACKLOG = 1024
MOST_SILENT = 64
FIRST_MESSAGE_TIMEOUT = 5.0
_PAUSE = 0.2
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)

_log = structlog.get_logger("admin-calls")


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One call of a qube to the admin qube, as the broker tells of it.

    Args:
        source: the calling qube; never `dom0`.
        service: the service.
        argument: the text behind the `+`; empty for none.
        target_type: whether `requested` is a qube's name (or `uuid:` form), or a keyword.
        requested: the target that the caller asked for; a keyword without its `@`.
        stdin: what the caller writes, for reading. None of the three descriptors blocks.
        stdout: what the caller reads, for writing.
        stderr: messages for the caller, for writing.
        gone: set when the caller left.
        just_start: the caller waits for no input, output or end.
        answer: tells the exit code, which counts once; only needed before the call has ended.
    """

    source: QubeName
    service: ServiceName
    argument: ServiceArgument
    target_type: TargetType
    requested: str
    stdin: int
    stdout: int
    stderr: int
    gone: asyncio.Event
    just_start: bool = False
    answer: Callable[[int], None] = lambda _: None

    @property
    def target(self) -> str:
        """The requested target as a policy spells it."""
        return f"@{self.requested}" if self.target_type == "keyword" else self.requested


Serve = Callable[[AdminCall], Awaitable[int]]


class AdminCalls:
    """Takes calls over from the broker.

    Args:
        paths: the instance.
        uid: the broker's user; nobody else is heard.
        gid: the broker's group.
        serve: serves one call and gives its exit code; must not close the descriptors.
    """

    def __init__(self, paths: Paths, uid: int, gid: int, *, serve: Serve) -> None:
        self._paths = paths
        self._uid = uid
        self._gid = gid
        self._serve = serve
        self._listener: socket.socket | None = None
        self._shares = Shares()
        self._sessions = asyncio.Semaphore(MOST_CALLS + MOST_SILENT)

    def bind(self) -> None:
        """Take the socket; from here on the broker can connect, and waits for `run`.

        Raises:
            DaemonError: it cannot be made.
        """
        prepare(self._paths, self._uid, self._gid)
        self._listener = listening(
            self._paths.admin_calls, socket.SOCK_SEQPACKET, self._gid, BACKLOG
        )
        self._listener.setblocking(False)

    def close(self) -> None:
        """Give the socket up; calls in flight go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def run(self) -> None:
        """Serve until cancelled; then calls in flight are cancelled too."""
        if self._listener is None:
            self.bind()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._sessions.acquire()
                    connection = await self._accept()
                    session = tasks.create_task(self._session(connection))
                    session.add_done_callback(lambda _: self._sessions.release())
        finally:
            self.close()

    async def _accept(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        if self._listener is None:
            raise InternalError("not listening")
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as e:
                if e.errno not in _OUT_OF_RESOURCES:
                    raise
                # Some are free again soon.
                _log.warning("cannot accept", error=e.strerror)
                await asyncio.sleep(_PAUSE)
            else:
                connection.setblocking(False)
                return connection

    async def _session(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._check(connection)
                async with self._taken_over(connection) as call:
                    call.answer(await self._serve(call))
            except (CaissonError, TimeoutError) as e:
                reason = shown(str(e) or "no message in time")
                sparing.warning("a call is dropped", qube="?", reason=reason)
            except OSError as e:
                # The caller or the broker is gone.
                _log.debug("a call is dropped", reason=e.strerror)
            except Exception:  # noqa: BLE001 - one call must not end the daemon
                _log.exception("a call failed; this is a bug in Caisson, report it")

    def _check(self, connection: socket.socket) -> None:
        _, uid, gid = peer_of(connection)
        if (uid, gid) != (self._uid, self._gid):
            raise ProtocolError(f"user {uid}, group {gid} is not the broker")

    @asynccontextmanager
    async def _taken_over(self, connection: socket.socket) -> AsyncIterator[AdminCall]:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as held:
            with contextlib.ExitStack() as sent:
                async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT):
                    handover, descriptors = await _received(connection, sent)
                source, service, argument = checked(handover)
                if not self._shares.take(source):
                    raise ProtocolError(f"`{source}` has too many calls in flight")
                held.callback(self._shares.give_back, source)
                stdin, stdout, stderr = _opened_anew(descriptors, held)
            gone = asyncio.Event()
            # Whatever comes now, a message or the end: the broker has nothing more to say.
            held.callback(loop.remove_reader, connection)
            loop.add_reader(connection, _noted, connection, gone)
            answered = False

            def answer(code: int) -> None:
                nonlocal answered
                if answered or gone.is_set():
                    return
                answered = True
                # A broker that hung up a moment ago needs no answer.
                with contextlib.suppress(OSError):
                    connection.send(encode(Done(code)), socket.MSG_NOSIGNAL)

            yield AdminCall(
                source,
                service,
                argument,
                handover.target_type,
                handover.requested,
                stdin,
                stdout,
                stderr,
                gone,
                handover.just_start,
                answer,
            )


async def _received(
    connection: socket.socket, held: contextlib.ExitStack
) -> tuple[Handover, list[int]]:
    """The one message of a connection; whatever descriptors come are closed with `held`.

    Raises:
        ProtocolError: it is not one message with three descriptors.
    """
    space = socket.CMSG_LEN(PIPES * array.array("i").itemsize)
    while True:
        try:
            untrusted, ancillary, flags, _ = connection.recvmsg(
                LONGEST, space, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            await _readable(connection)
        else:
            break
    sent = list(_descriptors(ancillary))
    for descriptor in sent:
        held.callback(os.close, descriptor)
    if not untrusted:
        raise ProtocolError("the connection ended without a call")
    if flags & socket.MSG_TRUNC:
        raise ProtocolError("the message is too long")
    if flags & socket.MSG_CTRUNC or len(sent) != PIPES:
        raise ProtocolError(f"expected {PIPES} descriptors")
    return read_handover(untrusted), sent


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found = array.array("i")
            found.frombytes(raw[: len(raw) // found.itemsize * found.itemsize])
            yield from found


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _noted(connection: socket.socket, gone: asyncio.Event) -> None:
    gone.set()
    asyncio.get_running_loop().remove_reader(connection)


def _opened_anew(sent: list[int], held: contextlib.ExitStack) -> list[int]:
    """The same pipes with a status of our own: the broker, which has a copy, cannot change it.

    Raises:
        ProtocolError: one is no pipe.
    """
    if not all(stat.S_ISFIFO(os.fstat(descriptor).st_mode) for descriptor in sent):
        raise ProtocolError("a descriptor is not a pipe")
    made = []
    for descriptor, mode in zip(sent, _MODES, strict=True):
        # A pipe opens also when its other end is closed: that caller waits for nothing.
        made.append(os.open(f"/proc/self/fd/{descriptor}", mode | os.O_NONBLOCK | os.O_CLOEXEC))
        held.callback(os.close, made[-1])
    return made
