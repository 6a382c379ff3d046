"""The daemon's side of the Admin API sockets.

One task a connection, each with its own bounds: a client that is slow, silent, malformed or
gone costs its own connection and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from caisson.admin import wire
from caisson.admin.bounds import ANSWER_SECONDS, REQUEST_SECONDS
from caisson.admin.registry import Door
from caisson.admin.responder import Responder
from caisson.errors import DaemonError, InternalError
from caisson.paths import Paths
from caisson.qrexec.link import peer_of

_log = structlog.get_logger()

_BACKLOG = 1024
_CHUNK = 65_536
_GROUP = "qubes"
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class AdminServer:
    """Serves the Admin API on its three sockets.

    Args:
        responder: answers requests.
        paths: where the sockets are.
        request_seconds: how long a client may take to send its request.
    """

    def __init__(
        self,
        responder: Responder,
        paths: Paths,
        *,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._responder = responder
        self._paths = paths
        self._request_seconds = request_seconds
        self._listeners: list[tuple[socket.socket, Door]] = []
        self._connection_ended = asyncio.Event()

    def bind(self) -> None:
        """Take the sockets; from here on clients can connect, and wait for `run`.

        Raises:
            DaemonError: another daemon answers there.
        """
        for door in Door:
            self._listeners.append((_listen(self._paths.qubesd.parent / door.value), door))

    async def run(self) -> None:
        """Serve until cancelled; then requests under way are cancelled too."""
        if not self._listeners:
            self.bind()
        try:
            with Hangups() as hangups:
                await self._run(hangups)
        finally:
            self.close()

    async def _run(self, hangups: Hangups) -> None:
        async with asyncio.TaskGroup() as group:
            for listener, door in self._listeners:
                group.create_task(self._accept(group, listener, hangups, door))

    def close(self) -> None:
        """Give the sockets up."""
        for listener, _ in self._listeners:
            # The paths stay: a successor may have bound them already, and takes over stale ones.
            listener.close()
        self._listeners.clear()

    async def _accept(
        self,
        group: asyncio.TaskGroup,
        listener: socket.socket,
        hangups: Hangups,
        door: Door,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                # Wait until a connection of ours ends; the second is for what others hold.
                _log.warning("admin.accept-delayed", reason=os.strerror(error.errno))
                self._connection_ended.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._connection_ended.wait(), 1.0)
                continue
            connection.setblocking(False)
            group.create_task(self._serve(connection, hangups, door))

    async def _serve(self, connection: socket.socket, hangups: Hangups, door: Door) -> None:
        try:
            request = await self._receive(connection)
            if request is not None:
                await self._responder.answer(request, door, _Client(connection, hangups))
        except (OSError, TimeoutError):
            # The client is gone or does not read. What it asked for was done.
            pass
        except Exception as error:  # noqa: BLE001 - one request must not end the daemon
            _log.error("admin.bug", exc_info=error)
        finally:
            connection.close()
            self._connection_ended.set()

    async def _receive(self, connection: socket.socket) -> wire.Request | None:
        """One whole request; None when it is not one."""
        untrusted = bytearray()
        if not _received_at_once(connection, untrusted):
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(self._request_seconds):
                while chunk := await loop.sock_recv(connection, _CHUNK):
                    untrusted += chunk
                    if len(untrusted) > wire.longest_request(untrusted):
                        break
        if not untrusted:
            return None
        try:
            return wire.parse_request(bytes(untrusted))
        except wire.FramingError as error:
            _log.warning("admin.request-dropped", reason=error.message)
            return None


@dataclass(frozen=True, slots=True)
class _Client:
    """A client at the other end of a connection."""

    connection: socket.socket
    hangups: Hangups

    @property
    def uid(self) -> int:
        """The user at the other end."""
        return peer_of(self.connection)[1]

    async def send(self, frame: bytes) -> None:
        """Hand over one frame; the client has a while to read it."""
        try:
            sent = self.connection.send(frame)
        except BlockingIOError:
            sent = 0
        if sent < len(frame):
            async with asyncio.timeout(ANSWER_SECONDS):
                rest = memoryview(frame)[sent:]
                await asyncio.get_running_loop().sock_sendall(self.connection, rest)

    def attended(self) -> AbstractContextManager[None]:
        """Cancel the current task when the client hangs up."""
        return self.hangups.cancelling(self.connection)


def _received_at_once(connection: socket.socket, untrusted: bytearray) -> bool:
    """Read what is there; whether that is all, as it nearly always is: no timer needed then."""
    try:
        while len(untrusted) <= wire.longest_request(untrusted):
            if not (chunk := connection.recv(_CHUNK)):
                break
            untrusted += chunk
    except BlockingIOError:
        return False
    return True


class Hangups:
    """Tells when a client that has half-closed its side is gone for good.

    After a half-close the socket stays readable for ever, so asyncio cannot wait for the rest;
    an edge-triggered epoll reports just the hang-up.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, Callable[[], object]] = {}

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._report)
        return self

    def __exit__(self, *_exc: object) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    @contextmanager
    def cancelling(self, connection: socket.socket) -> Iterator[None]:
        """Cancel the current task when the peer of `connection` goes."""
        task = asyncio.current_task()
        if task is None:
            raise InternalError("no task to cancel")
        descriptor = connection.fileno()
        self._waiting[descriptor] = task.cancel
        # No event but the hang-up is asked for, and that one always comes.
        self._epoll.register(descriptor, select.EPOLLET)
        try:
            yield
        finally:
            del self._waiting[descriptor]
            self._epoll.unregister(descriptor)

    def _report(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            if cancel := self._waiting.get(descriptor):
                cancel()


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path` for root and the group `qubes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _answers(path):
        raise DaemonError(
            f"another daemon answers at `{path}`", hint="end it first: `sudo caisson down`"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    umask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    except OSError as error:
        listener.close()
        raise DaemonError(f"cannot make the socket `{path}`: {error.strerror}") from None
    finally:
        os.umask(umask)
    with suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(_GROUP).gr_gid)
        path.chmod(0o660)
    listener.listen(_BACKLOG)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True
