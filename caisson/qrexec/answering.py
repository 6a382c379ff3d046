"""Unix sockets on which each connection is one request and one answer.

Every bound is here: the size of a request, the time to send it and to take the answer, the
number of connections. A peer that hangs up takes its request back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from caisson.errors import CaissonError, DaemonError
from caisson.names import DOM0
from caisson.qrexec import sparing
from caisson.qrexec.link import address, peer_of

BACKLOG = 1024
MOST_CONNECTIONS = 128
PATIENCE = 5.0
"""Seconds in which a request must have been sent, and an answer taken."""

_PIECE = 65_536
_ACCEPTS_A_TURN = 8
_PAUSE = 0.2
_SOCKET_MODE = 0o660

_log = structlog.get_logger("policy")

Answer = bytes | Awaitable[bytes]
AnswerTo = Callable[[bytes, int], Answer]
"""Called with a whole request and the peer's user; what must wait ends if the peer hangs up."""
EndOf = Callable[[bytearray, int], bool]
"""Whether a request is whole, of which so many bytes came just now; its end of file ends it too."""


class Answering:
    """One listening socket.

    Args:
        path: where to listen; root and the socket's group may connect.
        longest: bytes of the longest request; a longer one is hung up on.
        ended: whether a request is whole before its sender says so by end of file.
        answer: answers one; a `CaissonError` is logged, and nothing is answered.
        spawn: runs what serves one connection.
        most: how many connections are served at once; others wait.
    """

    def __init__(
        self,
        path: Path,
        *,
        longest: int,
        ended: EndOf,
        answer: AnswerTo,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        most: int = MOST_CONNECTIONS,
    ) -> None:
        self._path = path
        self._longest = longest
        self._ended = ended
        self._answer = answer
        self._spawn = spawn
        self._most = most
        self._listener: socket.socket | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._accepting = False

    def listen(self) -> None:
        """Bind the socket, if it is not there already, in place of an earlier one.

        Raises:
            DaemonError: it cannot be bound.
        """
        there = _is_socket(self._path)
        if self._listener is not None and there:
            return
        self._stop_listening()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if there:
                self._path.unlink()
            sock.bind(address(self._path))
            self._path.chmod(_SOCKET_MODE)
            sock.listen(BACKLOG)
        except OSError as e:
            sock.close()
            raise DaemonError(
                f"cannot listen at `{self._path}`: {(e.strerror or str(e)).lower()}",
                hint=self._remedy(e),
            ) from None
        self._listener = sock
        self._resume()

    def _remedy(self, error: OSError) -> str | None:
        match error.errno:
            case None:
                return "socket paths have at most 107 bytes: choose a shorter one"
            case errno.ENOENT | errno.ENOTDIR:
                return f"make the directory `{self._path.parent}` first"
            case errno.EADDRINUSE:
                return "what is there is no socket: choose another place"
        return None

    def close(self) -> None:
        """Take the socket away, and every connection."""
        if self._listener is not None:
            self._stop_listening()
            with contextlib.suppress(OSError):
                self._path.unlink()
        for session in tuple(self._sessions):
            session.cancel()

    def _stop_listening(self) -> None:
        self._pause()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _pause(self) -> None:
        if self._accepting and self._listener is not None:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener)

    def _resume(self) -> None:
        if not self._accepting and self._listener is not None and len(self._sessions) < self._most:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._listener, self._acceptable)

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            if self._listener is None:
                return
            if len(self._sessions) >= self._most:
                self._pause()
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as e:
                # Out of descriptors: wait until some are free.
                self._tell("cannot accept", e.strerror or str(e))
                self._pause()
                asyncio.get_running_loop().call_later(_PAUSE, self._resume)
                return
            sock.setblocking(False)
            session = self._spawn(self._serve(sock))
            self._sessions.add(session)
            session.add_done_callback(partial(self._forget, sock))

    def _forget(self, sock: socket.socket, session: asyncio.Task[None]) -> None:
        sock.close()  # where the session was cancelled before it began
        self._sessions.discard(session)
        self._resume()

    async def _serve(self, sock: socket.socket) -> None:
        try:
            _, uid, _ = peer_of(sock)
            async with asyncio.timeout(PATIENCE):
                request = await self._read(sock)
            answer = self._answer(request, uid)
            reply = answer if isinstance(answer, bytes) else await _unless_gone(sock, answer)
            if reply is not None:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.get_running_loop().sock_sendall(sock, reply)
        except CaissonError as e:
            self._tell("a request is not answered", e.message)
        except TimeoutError:
            self._tell("a request is not answered", "its sender is too slow")
        except OSError as e:
            self._tell("a request is not answered", e.strerror or str(e))
        except Exception:  # noqa: BLE001 - one request must not end the others
            _log.exception("this is a bug in Caisson, report it")
        finally:
            sock.close()  # now: the peer waits for the end of the answer

    def _tell(self, event: str, reason: str) -> None:
        # Those who may connect are programs of the admin qube.
        sparing.warning(event, qube=DOM0, socket=self._path.name, reason=reason)

    async def _read(self, sock: socket.socket) -> bytes:
        """A whole request.

        Raises:
            DaemonError: it is too long.
        """
        loop = asyncio.get_running_loop()
        untrusted = bytearray()
        while chunk := await loop.sock_recv(sock, _PIECE):
            untrusted += chunk
            if len(untrusted) > self._longest:
                raise DaemonError(f"the request is longer than {self._longest} bytes")
            if self._ended(untrusted, len(chunk)):
                break
        return bytes(untrusted)


def _is_socket(path: Path) -> bool:
    """Whether there is a socket, rather than a link to one, or another file."""
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False


async def _unless_gone(sock: socket.socket, work: Awaitable[bytes]) -> bytes | None:
    """What `work` gives; nothing, and its end, if the peer hangs up before."""
    with hang_up_of(sock) as gone:
        task = asyncio.ensure_future(work)
        waiting: set[asyncio.Future[Any]] = {task, gone}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        try:
            return None if task.cancelled() else task.result()
        finally:
            # The task holds what it raises, whose traceback holds this frame: a cycle.
            del task, waiting


@contextlib.contextmanager
def hang_up_of(sock: socket.socket) -> Iterator[asyncio.Future[None]]:
    """A future for the moment when the peer hangs up; that it half-closed does not count."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def gone() -> None:
        if not future.done():
            future.set_result(None)

    with contextlib.closing(select.epoll()) as epoll:
        # No events asked for: epoll then tells of a full hang-up only.
        epoll.register(sock.fileno(), 0)
        loop.add_reader(epoll.fileno(), gone)
        try:
            yield future
        finally:
            loop.remove_reader(epoll.fileno())
            future.cancel()
