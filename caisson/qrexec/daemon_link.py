"""The broker's half of the link to qubesd: the client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from caisson.errors import CaissonError, DaemonError
from caisson.names import shown
from caisson.qrexec.link import (
    LONGEST_LINE,
    Ack,
    Opened,
    OpenQube,
    Operation,
    Reply,
    Request,
    Snapshot,
    ToBroker,
    ToDaemon,
    address,
    encode,
    peer_of,
    read_to_broker,
)

_log = structlog.get_logger("link")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


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
        self._partial: Snapshot | None = None
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
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._connect()
            except (OSError, DaemonError) as e:
                if pause == _FIRST_PAUSE:
                    _log.info("waiting for qubesd", error=str(e))
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
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
                self._take(read_to_broker(line))
            except (msgspec.DecodeError, CaissonError) as e:
                self._lose(f"qubesd sent what is no message: {e}")
            if self._sock is None:
                return

    def _take(self, message: ToBroker) -> None:
        match message:
            case Reply(number, ok, value, error):
                self._settle(number, ok, value, error)
            case Snapshot():
                self._gather(message)
            case OpenQube(name):
                self._on_message(message)
                self.send(Opened(name))
            case _:
                self._on_message(message)

    def _gather(self, piece: Snapshot) -> None:
        """Decide by a snapshot once all its pieces are there, and not by some of them."""
        whole = self._partial
        if whole is None:
            whole = piece
        elif (whole.seq, whole.full) != (piece.seq, piece.full):
            raise DaemonError("the pieces of a snapshot do not belong together")
        else:
            whole.domains.update(piece.domains)
            whole.removed.extend(piece.removed)
            whole.open.extend(piece.open)
        self._partial = whole if piece.more else None
        if piece.more:
            return
        self._on_message(whole)
        if whole.full:
            self._synced.set()
        self.send(Ack(whole.seq))

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
            # It holds what it raises, whose traceback holds this frame: a cycle.
            del future

    def _lose(self, why: str) -> None:
        if self._sock is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        self._sock.close()
        self._sock = None
        self._in.clear()
        self._partial = None
        self._out.clear()
        self._synced.clear()
        _log.warning("the link to qubesd is lost", reason=shown(why))
        for future in self._requests.values():
            if not future.done():
                future.set_exception(DaemonError("qubesd went away"))
        self._lost.set()
