"""A session's socket: non-blocking datagrams, descriptors out, none in, bounded queues."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import termios
from collections import deque
from collections.abc import Callable, Sequence

from caisson.qrexec.link import peer_of
from caisson.qrexec.wire import LONGEST

# One buffer for all: a message is taken out of it before the next is read.
_buffer = bytearray(LONGEST + 1)
_view = memoryview(_buffer)
_BROKEN = socket.MSG_TRUNC | socket.MSG_CTRUNC
_READS_A_TURN = 8
_count = array.array("i", [0])


class Channel:
    """One connection of a program in a qube.

    Args:
        sock: the connected, non-blocking socket.
        queue: how many messages may wait until the peer reads.
        on_message: called with each datagram.
        on_closed: called once when the peer is gone, or broke the protocol; with the reason.
    """

    __slots__ = (
        "_behind",
        "_drained",
        "_fd",
        "_loop",
        "_on_closed",
        "_on_message",
        "_out",
        "_queue",
        "_sock",
        "_writing",
        "closing",
        "gid",
        "pid",
        "uid",
    )

    def __init__(
        self,
        sock: socket.socket,
        queue: int,
        on_message: Callable[[bytes], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = sock
        # By number: for a socket the event loop builds a text that it then throws away.
        self._fd = sock.fileno()
        # The kernel says "writable" again below this, so waiting for that never spins.
        self._behind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 4
        self._queue = queue
        self._on_message = on_message
        self._on_closed = on_closed
        self._out: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._drained: Callable[[], None] | None = None
        self._writing = False
        self.closing = False
        self.pid, self.uid, self.gid = peer_of(sock)

    def start(self) -> None:
        """Begin to read; what has already arrived is handled at once."""
        if self._sock is not None:
            self._loop.add_reader(self._fd, self._readable)
            self._readable()

    def handle(
        self, on_message: Callable[[bytes], None], on_closed: Callable[[str], None], queue: int
    ) -> None:
        """Give the session to its next owner, when its first message has told its role."""
        self._on_message, self._on_closed, self._queue = on_message, on_closed, queue

    @property
    def open(self) -> bool:
        """Whether the socket is open."""
        return self._sock is not None

    @property
    def unread(self) -> int:
        """Bytes of the kernel's that hold what was sent and the peer has not read yet."""
        if self._sock is None:
            return 0
        fcntl.ioctl(self._fd, termios.TIOCOUTQ, _count)
        return _count[0]

    @property
    def backed_up(self) -> bool:
        """Whether the peer is behind with reading: descriptors should not wait on its account."""
        return bool(self._out) or self.unread > self._behind

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call once when the peer has read most of what was sent."""
        self._drained = callback
        self._watch_writing()

    def _watch_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)

    def _readable(self) -> None:
        for _ in range(_READS_A_TURN):
            if self._sock is None or self.closing:
                return
            try:
                # No room for ancillary data: the kernel drops descriptors, and says so.
                count, _, flags, _ = self._sock.recvmsg_into([_view], 0, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError as e:
                self._gone(e.strerror or "error")
                return
            if flags & _BROKEN:
                self._gone(
                    "it sent descriptors"
                    if flags & socket.MSG_CTRUNC
                    else "its message is too long"
                )
                return
            if count == 0:
                self._gone("")
                return
            self._on_message(bytes(_view[:count]))

    def _gone(self, reason: str) -> None:
        on_closed = self._on_closed
        self.close()
        on_closed(reason)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send, or queue while the peer does not read; duplicates what it queues.

        Returns:
            Whether the message is sent or queued; False: the peer is gone or its queue is full.
        """
        if self._sock is None:
            return False
        if not self._out:
            try:
                self._transmit(message, descriptors)
            except BlockingIOError:
                pass
            except OSError:
                return False
            else:
                return True
        if len(self._out) >= self._queue:
            return False
        self._out.append((message, tuple(_duplicates(descriptors))))
        self._watch_writing()
        return True

    def _transmit(self, message: bytes, descriptors: Sequence[int]) -> None:
        assert self._sock is not None  # noqa: S101
        if descriptors:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            self._sock.sendmsg([message], [rights], socket.MSG_NOSIGNAL)
        else:
            self._sock.send(message, socket.MSG_NOSIGNAL)

    def _writable(self) -> None:
        while self._out:
            message, descriptors = self._out[0]
            try:
                self._transmit(message, descriptors)
            except BlockingIOError:
                return
            except OSError as e:
                self._gone(e.strerror or "error")
                return
            self._out.popleft()
            _close_all(descriptors)
        self._stop_writing()
        if self.closing:
            self.close()
        elif self._drained is not None:
            drained, self._drained = self._drained, None
            drained()

    def _stop_writing(self) -> None:
        if self._writing and self._sock is not None:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def finish(self) -> None:
        """Close when everything queued is sent; nothing more is read."""
        self.closing = True
        if self._sock is not None:
            if self._out:
                self._loop.remove_reader(self._fd)
            else:
                self.close()

    def leave(self) -> None:
        """Tell the peer that nothing more comes, and go on reading until it hangs up."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close now."""
        if self._sock is None:
            return
        self._loop.remove_reader(self._fd)
        self._stop_writing()
        self._sock.close()
        self._sock = None
        self._drained = None
        # They refer to the session and its call: a cycle, which would outlive both by far.
        self._on_message = self._on_closed = _ignore
        while self._out:
            _close_all(self._out.popleft()[1])


def _ignore(_: object) -> None:
    return


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    made: list[int] = []
    try:
        made.extend(os.dup(d) for d in descriptors)
    except OSError:
        _close_all(made)
        raise
    return made


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
