"""The daemon's socket for programs of the admin qube (sheet `qrexec`, sections 1.2, 1.5 and 2.6).

One command a connection. Whoever breaks the protocol is dropped, and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from caisson.errors import CaissonError, DaemonError
from caisson.names import DOM0
from caisson.qrexec import sparing
from caisson.qrexec.directories import lay_link, qubes_group
from caisson.qrexec.link import address
from caisson.qrexec.vchan import frames, ports
from caisson.qrexec.vchan.frames import Kind, MalformedError, Splitter
from caisson.qrexec.vchan.streams import Stream
from caisson.qrexec.vchan.untrusted import parse_ident

BACKLOG = 1024
MOST_CLIENTS = 1024
PATIENCE = 10.0
"""Seconds in which a client must have said what it wants."""

_ACCEPTS_A_TURN = 8
_PAUSE = 0.2
_COMMANDS = frozenset({Kind.EXEC_CMDLINE, Kind.JUST_EXEC, Kind.SERVICE_CONNECT})


class Command(NamedTuple):
    """What a client wants.

    Args:
        kind: to run a command, with or without its data; or to connect a request.
        domain: the qube on the other side of the connection.
        port: where it is, if the other side's daemon gave it already; else 0.
        text: the command, or the ident of the request, without NULs.
    """

    kind: Kind
    domain: int
    port: int
    text: bytes


def parse_command(kind: Kind, body: bytes) -> Command:
    """The command in a body whose length was checked.

    Raises:
        MalformedError: it is none.
    """
    domain, port = frames.parse_params(body)
    if port and not ports.valid(port):
        raise MalformedError(f"port {port} is none for data")
    text = body[frames.PARAMS_SIZE :]
    if not text.endswith(b"\0"):
        raise MalformedError("no NUL ends the command")
    if kind is Kind.SERVICE_CONNECT:
        ident = parse_ident(text.ljust(frames.IDENT_SIZE, b"\0"))
        if ident is None:
            raise MalformedError("the ident of the request is not valid")
        return Command(kind, domain, port, ident)
    if text.index(b"\0") != len(text) - 1:
        raise MalformedError("a NUL inside the command")
    return Command(kind, domain, port, text[:-1])


class Client:
    """One connection.

    Args:
        descriptor: of the connected socket.
        on_command: called with what it wants; a `CaissonError` drops it.
        on_end: called once at its end.
    """

    def __init__(
        self,
        descriptor: int,
        on_command: Callable[[Client, Command], None],
        on_end: Callable[[Client], None],
    ) -> None:
        self._splitter = Splitter()
        self._on_command = on_command
        self._on_end = on_end
        self._greeted = self._commanded = False
        self._stream = Stream(descriptor, self._said, self.close)
        self._deadline = asyncio.get_running_loop().call_later(PATIENCE, self._too_slow)
        self.port: int | None = None
        """The port of the connection that it waits for the end of."""
        self._stream.send(frames.hello(frames.LOCAL_VERSION))

    def reply(self, kind: Kind, domain: int, port: int) -> None:
        """Tell it where its connection is."""
        self._stream.send(frames.params(kind, domain, port))

    def close(self) -> None:
        """Hang up."""
        self._deadline.cancel()
        self._stream.close()
        on_end, self._on_end = self._on_end, _nothing
        on_end(self)

    def _too_slow(self) -> None:
        self._drop("it did not say what it wants in time")

    def _drop(self, reason: str) -> None:
        sparing.warning("a client is dropped", qube=DOM0, reason=reason)
        self.close()

    def _said(self, untrusted: bytes) -> None:
        try:
            self._splitter.feed(untrusted)
            while self._stream.open and (found := self._splitter.next(self._admit)):
                self._take(*found)
        except CaissonError as e:
            self._drop(e.message)

    def _admit(self, kind: Kind, length: int) -> None:
        if self._commanded:
            raise MalformedError("more than one command on a connection")
        if not self._greeted:
            if kind is not Kind.HELLO or length != frames.HELLO_SIZE:
                raise MalformedError("no hello to begin with")
        elif kind not in _COMMANDS:
            raise MalformedError(f"{kind.name} is no command")
        elif not frames.PARAMS_SIZE < length <= frames.LONGEST_COMMAND_BODY:
            raise MalformedError(f"a command of {length} bytes")

    def _take(self, kind: Kind, body: bytes) -> None:
        if not self._greeted:
            if frames.parse_hello(body) < frames.LOCAL_VERSION:
                raise MalformedError("it speaks a version that is too old")
            self._greeted = True
            return
        self._commanded = True
        self._deadline.cancel()
        if self._splitter.held:
            raise MalformedError("more than one command on a connection")
        self._on_command(self, parse_command(kind, body))


class Clients:
    """The socket, the links to it, and who is connected.

    Args:
        directory: where they are.
        domain: the qube's id, which names the socket.
        names: of the qube, which name the links.
        on_command: called with what a client wants.
        on_end: called when a client is gone.
    """

    def __init__(
        self,
        directory: Path,
        domain: int,
        names: Iterable[str],
        on_command: Callable[[Client, Command], None],
        on_end: Callable[[Client], None],
    ) -> None:
        self._path = directory / f"qrexec.{domain}"
        self._links = [directory / f"qrexec.{name}" for name in names]
        self._on_command = on_command
        self._on_end = on_end
        self._listener: socket.socket | None = None
        self._accepting = False
        self._clients: set[Client] = set()
        self._ours = (0, 0)

    def open(self) -> None:
        """Listen, and lay the links; in place of what an earlier daemon left.

        Raises:
            DaemonError: that cannot be done.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            # Nobody gets in before the group and the mode are right.
            umask = os.umask(0o177)
            try:
                sock.bind(address(self._path))
            finally:
                os.umask(umask)
            if os.geteuid() == 0:
                os.chown(self._path, -1, qubes_group())
            self._path.chmod(0o660)
            sock.listen(BACKLOG)
            self._ours = _identity(self._path)
            for link in self._links:
                lay_link(link, self._path)
        except OSError as e:
            sock.close()
            raise DaemonError(
                f"cannot listen at `{self._path}`: {(e.strerror or str(e)).lower()}",
                hint="socket paths have at most 107 bytes; name another place with --socket-dir",
            ) from None
        self._listener = sock
        self._resume()

    def close(self) -> None:
        """Take the socket and the links away, and drop everybody."""
        if self._listener is None:
            return
        self._pause()
        self._listener.close()
        self._listener = None
        self._take_away()
        for client in tuple(self._clients):
            client.close()

    def _take_away(self) -> None:
        """Remove what is ours; a qube that was started anew may have another daemon by now."""
        with contextlib.suppress(OSError):
            if _identity(self._path) != self._ours:
                return
            self._path.unlink()
        for link in self._links:
            with contextlib.suppress(OSError):
                if link.readlink() == Path(self._path.name):
                    link.unlink()

    def _pause(self) -> None:
        if self._accepting and self._listener is not None:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener)

    def _resume(self) -> None:
        if self._listener is None or self._accepting or len(self._clients) >= MOST_CLIENTS:
            return
        self._accepting = True
        asyncio.get_running_loop().add_reader(self._listener, self._acceptable, self._listener)

    def _acceptable(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            if len(self._clients) >= MOST_CLIENTS:
                self._pause()
                return
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as e:
                # Out of descriptors: wait until some are free.
                sparing.warning("cannot accept", qube=DOM0, reason=e.strerror or str(e))
                self._pause()
                asyncio.get_running_loop().call_later(_PAUSE, self._resume)
                return
            sock.setblocking(False)
            self._clients.add(Client(sock.detach(), self._on_command, self._ended))

    def _ended(self, client: Client) -> None:
        self._clients.discard(client)
        self._on_end(client)
        self._resume()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _nothing(_: object) -> None:
    return
