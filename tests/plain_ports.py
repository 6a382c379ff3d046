"""Ports of a virtual machine, as two sets of sockets: those of the host, and those inside.

As with a virtio port of QEMU: one process at a time has each side, the host's side is never told
that the one inside has gone, what nobody has read yet is for whoever comes next, and what was not
taken from a process of the host's when it leaves is lost.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PIECE = 65_536


class _Side:
    """One side of a port: who may connect, who is connected, and what waits for them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self.connection: socket.socket | None = None
        self.waiting = bytearray()
        self.other: _Side
        self.is_host = False

    def ready(self) -> bool:
        """Do what can be done now without blocking; whether that was anything."""
        if self.connection is None:
            self.listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.connection, _ = self.listener.accept()
                self.connection.setblocking(False)
                return True
            return False
        return self._receive() or self._send()

    def _receive(self) -> bool:
        assert self.connection is not None
        if len(self.other.waiting) >= _PIECE:
            if not self.is_host or not _hung_up(self.connection):
                return False
            self.hang_up()
            self.other.hang_up()
            return True
        try:
            data = self.connection.recv(_PIECE)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self.hang_up()
            if self.is_host:
                self.other.hang_up()
        self.other.waiting += data
        return True

    def _send(self) -> bool:
        assert self.connection is not None
        if not self.waiting:
            return False
        try:
            count = self.connection.send(self.waiting, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except ConnectionError:
            return False
        del self.waiting[:count]
        return True

    def hang_up(self) -> None:
        """Whoever is connected is not any more."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def register(self, epoll: select.epoll) -> None:
        """What to wait for; a hang-up always counts."""
        if self.connection is None:
            epoll.register(self.listener, select.EPOLLIN)
            return
        events = select.EPOLLOUT if self.waiting else 0
        if len(self.other.waiting) < _PIECE:
            events |= select.EPOLLIN
        epoll.register(self.connection, events)


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


class Ports:
    """The ports, carried by a thread.

    Args:
        directory: the sockets are made in it: `host.N` and `inside.N`.
        numbers: the ports.
    """

    def __init__(self, directory: Path, numbers: Iterable[int]) -> None:
        self.host = directory / "host"
        self.inside = directory / "inside"
        self._sides: list[_Side] = []
        self._by_port: dict[int, tuple[_Side, _Side]] = {}
        for number in numbers:
            host, inside = _Side(f"{self.host}.{number}"), _Side(f"{self.inside}.{number}")
            host.other, inside.other, host.is_host = inside, host, True
            self._by_port[number] = host, inside
            self._sides += host, inside
        self._stopped, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._carry)

    def leave(self, number: int, for_host: bytes, for_inside: bytes) -> None:
        """Have bytes of a former connection lie in a port that nobody uses; before `start`."""
        host, inside = self._by_port[number]
        host.waiting += for_host
        inside.waiting += for_inside

    def start(self) -> None:
        """Begin to carry."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and leave no socket open."""
        self._stop.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._stopped.close()
        for side in self._sides:
            side.hang_up()
            side.listener.close()

    def _carry(self) -> None:
        while True:
            moved = True
            while moved:
                moved = False
                for side in self._sides:
                    moved |= side.ready()
            with select.epoll() as epoll:
                epoll.register(self._stopped, select.EPOLLIN)
                for side in self._sides:
                    side.register(epoll)
                if any(number == self._stopped.fileno() for number, _ in epoll.poll()):
                    return


@contextmanager
def plain_ports(directory: Path, numbers: Iterable[int]) -> Iterator[Ports]:
    """Ports that are not carried yet; everything is gone afterwards."""
    ports = Ports(directory, numbers)
    try:
        yield ports
    finally:
        ports.close()
