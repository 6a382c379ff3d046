"""Byte streams to a machine (sheet `qrexec`, section 1.8): non-blocking.

A stream is a unix socket that the machine's side made, or, where `CAISSON_VCHAN_STREAMS` names a
prefix, whatever lies at `PREFIX.PORT`: a socket to connect to, or a character device.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caisson.errors import DaemonError
from caisson.paths import Paths
from caisson.qrexec.link import address

PIECE = 65_536
"""Bytes that are read in one turn of the loop; others get theirs in between."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1
_NOT_YET = (FileNotFoundError, ConnectionRefusedError, BlockingIOError)


@dataclass(frozen=True)
class Places:
    """Where the streams of one instance are.

    Args:
        directory: of the sockets `vchan.SERVER.CLIENT.PORT.sock`.
        prefix: of plain streams; None: there are none.
    """

    directory: Path
    prefix: Path | None = None

    @classmethod
    def of_environment(cls, paths: Paths) -> Places:
        """As `VCHAN_SOCKET_DIR` and `CAISSON_VCHAN_STREAMS` say; else below the root directory."""
        directory = os.environ.get("VCHAN_SOCKET_DIR")
        prefix = os.environ.get("CAISSON_VCHAN_STREAMS")
        return cls(
            Path(directory).absolute() if directory else paths.root / "run/vchan",
            Path(prefix).absolute() if prefix else None,
        )

    def of(self, server: int, client: int, port: int) -> Path:
        """Where the stream between two sides is."""
        if self.prefix is not None:
            return self.prefix.with_name(f"{self.prefix.name}.{port}")
        return self.directory / f"vchan.{server}.{client}.{port}.sock"


async def connect(place: Path) -> int:
    """Open a stream as soon as it is there; the caller bounds how long that may take.

    Returns:
        A non-blocking descriptor.

    Raises:
        DaemonError: what is there is no stream.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return _opened(place)
        except _NOT_YET:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        except OSError as e:
            raise DaemonError(
                f"the stream `{place}` cannot be opened: {(e.strerror or str(e)).lower()}",
                hint="it must be a socket or a character device; its path at most 107 bytes long",
            ) from None


def _opened(place: Path) -> int:
    if stat.S_ISCHR(place.stat().st_mode):
        return os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(address(place))
    except BaseException:
        sock.close()
        raise
    return sock.detach()


class Stream:
    """One end of a stream.

    Args:
        descriptor: non-blocking; it belongs to the stream from now on.
        on_bytes: called with what came.
        on_closed: called once when the other side is gone; not after `close`.
    """

    __slots__ = (
        "_descriptor",
        "_loop",
        "_on_bytes",
        "_on_closed",
        "_out",
        "_paused",
        "_rests",
        "unsent",
    )

    def __init__(
        self, descriptor: int, on_bytes: Callable[[bytes], None], on_closed: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._on_bytes = on_bytes
        self._on_closed = on_closed
        self._out: deque[memoryview] = deque()
        self._paused = self._rests = False
        self.unsent = 0
        """Bytes that wait until the other side reads."""
        self._loop.add_reader(descriptor, self._readable)

    @property
    def open(self) -> bool:
        """Whether it is open."""
        return self._descriptor >= 0

    def pause_until_sent(self) -> None:
        """Read nothing while something is unsent."""
        if self._out:
            self._pause()

    def rest(self, seconds: float) -> None:
        """Read nothing for a while."""
        if self.open and not self._rests:
            self._rests = True
            self._pause()
            self._loop.call_later(seconds, self._rested)

    def send(self, data: bytes) -> None:
        """Send, or keep what the other side does not take yet; the caller looks at `unsent`."""
        if not self.open or not data:
            return
        view = memoryview(data)
        if not self._out:
            view = view[self._written(view) :]
            if not view:
                return
            self._loop.add_writer(self._descriptor, self._writable)
        self._out.append(view)
        self.unsent += len(view)

    def close(self) -> None:
        """Close now; what was not sent is lost."""
        if not self.open:
            return
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        self._out.clear()
        self.unsent = 0

    def _readable(self) -> None:
        try:
            untrusted = os.read(self._descriptor, PIECE)
        except BlockingIOError:
            return
        except OSError:
            untrusted = b""
        if untrusted:
            self._on_bytes(untrusted)
        else:
            self._gone()

    def _written(self, view: memoryview) -> int:
        try:
            return os.write(self._descriptor, view)
        except BlockingIOError:
            return 0
        except OSError:
            # Reading tells of the end, after what the other side still said.
            return len(view)

    def _writable(self) -> None:
        while self._out:
            view = self._out[0]
            count = self._written(view)
            self.unsent -= count
            if count < len(view):
                self._out[0] = view[count:]
                return
            self._out.popleft()
        self._loop.remove_writer(self._descriptor)
        self._resume()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._descriptor)

    def _rested(self) -> None:
        self._rests = False
        if self.open and not self._out:
            self._resume()

    def _resume(self) -> None:
        if self._paused and not self._rests:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._readable)

    def _gone(self) -> None:
        self.close()
        self._on_closed()
