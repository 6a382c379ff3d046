"""Both ends of the qrexec wire protocol, written from its description alone.

A daemon and the peers of data links, to drive the real agent and the real clients over real unix
sockets. Nothing here is shared with what is tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from agent_rig import BINARY, PATIENCE, eventually

STDIN, STDOUT, STDERR, EXIT_CODE = 0x190, 0x191, 0x192, 0x193
EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT, SERVICE_REFUSED = 0x200, 0x201, 0x202, 0x203
TRIGGER_SERVICE, TERMINATED, TRIGGER_SERVICE3, TRIGGER_SERVICE4 = 0x210, 0x211, 0x212, 0x213
HELLO = 0x300
CONTROL_PORT = 512
OWN = 7  # the domain of the agent under test
PEER = 9  # the domain at the other end of its data links
RING = 4096  # what a client-side peer of upstream's library holds each way

Message = tuple[int, bytes]


def message(kind: int, body: bytes = b"") -> bytes:
    """A header and its body."""
    return struct.pack("<II", kind, len(body)) + body


def hello(version: int = 4) -> bytes:
    """The first message of either side."""
    return message(HELLO, struct.pack("<I", version))


def numbers(domain: int, port: int) -> bytes:
    """Where a data link is."""
    return struct.pack("<II", domain, port)


def trigger(
    service: bytes, target: bytes = b"work", source: bytes = b"", ident: bytes = b"SOCKET"
) -> bytes:
    """A request of protocol 4, every unused byte zero."""
    arrays = source.ljust(64, b"\0") + target.ljust(64, b"\0") + ident.ljust(32, b"\0")
    return message(TRIGGER_SERVICE4, arrays + service + b"\0")


class GoneError(Exception):
    """The other side closed."""


class Wire:
    """One end of a stream of messages."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)

    def send(self, kind: int, body: bytes = b"") -> None:
        """One message."""
        self.socket.sendall(message(kind, body))

    def raw(self, data: bytes) -> None:
        """Bytes that need not be a message."""
        self.socket.sendall(data)

    def exactly(self, count: int) -> bytes:
        """So many bytes; `GoneError` where they do not come."""
        found = bytearray()
        while len(found) < count:
            try:
                piece = self.socket.recv(count - len(found))
            except ConnectionResetError as error:
                raise GoneError from error
            if not piece:
                raise GoneError
            found += piece
        return bytes(found)

    def receive(self) -> Message:
        """One message."""
        kind, length = struct.unpack("<II", self.exactly(8))
        return kind, self.exactly(length)

    def rest(self) -> list[Message]:
        """All messages up to the end."""
        found = []
        with contextlib.suppress(GoneError):
            while True:
                found.append(self.receive())
        return found

    def is_gone(self) -> bool:
        """Wait for the end; false where a byte comes instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def greet(self, version: int = 4) -> int:
        """Exchange HELLOs; the version that the other side says."""
        self.raw(hello(version))
        kind, body = self.receive()
        assert (kind, len(body)) == (HELLO, 4)
        return int(struct.unpack("<I", body)[0])

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def joined(messages: Sequence[Message], kind: int) -> bytes:
    """The data of one stream."""
    return b"".join(body for found, body in messages if found == kind)


def code_of(messages: Sequence[Message]) -> int:
    """The exit code, which has to be the last message and the only one of its kind."""
    assert [kind for kind, _ in messages].count(EXIT_CODE) == 1
    kind, body = messages[-1]
    assert (kind, len(body)) == (EXIT_CODE, 4)
    return int(struct.unpack("<i", body)[0])


@dataclass
class Streams:
    """A directory of streams between domains, as upstream's library for tests lays it out."""

    directory: Path

    def path(self, server: int, client: int, port: int) -> Path:
        """Where a server waits."""
        return self.directory / f"vchan.{server}.{client}.{port}.sock"

    def listen(self, server: int, client: int, port: int) -> socket.socket:
        """Be a server."""
        path = self.path(server, client, port)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(PATIENCE)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(1)
        return listener

    def connect(self, server: int, client: int, port: int) -> Wire:
        """Be a client; the server may still be on its way."""
        sock = socket.socket(socket.AF_UNIX)

        def connected() -> bool:
            try:
                sock.connect(str(self.path(server, client, port)))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        eventually(connected)
        return Wire(sock)


@dataclass
class WireAgent:
    """A real agent with a daemon at its control stream."""

    home: Path
    streams: Streams
    process: subprocess.Popen[bytes]
    daemon: Wire = field(init=False)
    own: int = OWN
    port: int = 513
    user: str = field(default_factory=lambda: own_name(os.geteuid()))
    closing: list[Any] = field(default_factory=list)

    @property
    def trigger_socket(self) -> Path:
        """Where clients ask."""
        return self.home / "agent.sock"

    def connect_daemon(self, version: int = 4) -> int:
        """Come as the daemon; the version that the agent says. It is echoed."""
        self.daemon = self.streams.connect(self.own, 0, CONTROL_PORT)
        self.closing.append(self.daemon)
        kind, body = self.daemon.receive()
        assert (kind, len(body)) == (HELLO, 4)
        self.daemon.raw(hello(version))
        return int(struct.unpack("<I", body)[0])

    def next_port(self) -> int:
        """A port that no link had yet."""
        self.port += 1
        return self.port

    def write_service(self, name: str, text: str, mode: int = 0o755) -> Path:
        """Put a service where the agent looks for it."""
        path = self.home / "services" / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def script(self, text: str) -> str:
        """The line that has a service of this text run; no shell of a user reads its profile."""
        name = f"t.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if not (self.home / "services" / name).exists():
            self.write_service(name, f"#!/bin/sh\n{text}\n")
        return f"{self.user}:QUBESRPC {name} work"

    def execute(self, line: str | bytes, kind: int = EXEC_CMDLINE) -> Wire:
        """Have a command run; the caller's end of its data link, before HELLO."""
        port = self.next_port()
        data = line if isinstance(line, bytes) else line.encode()
        with self.streams.listen(PEER, self.own, port) as listener:
            self.daemon.send(kind, numbers(PEER, port) + data + b"\0")
            link = Wire(listener.accept()[0])
        self.closing.append(link)
        return link

    def call(self, line: str | bytes, version: int = 4, kind: int = EXEC_CMDLINE) -> Wire:
        """Have a command run; the caller's end of its data link, after HELLO."""
        link = self.execute(line, kind)
        assert link.greet(version) == 4
        return link

    def outcome(self, line: str | bytes, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a command to its end: code, stdout, stderr."""
        link = self.call(line)
        link.send(STDIN, stdin) if stdin else None
        with contextlib.suppress(BrokenPipeError):
            link.send(STDIN)
        found = link.rest()
        return code_of(found), joined(found, STDOUT), joined(found, STDERR)

    def ask(self, data: bytes) -> Wire:
        """Come as a client, and say this."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.trigger_socket))
        client = Wire(sock)
        self.closing.append(client)
        client.raw(data)
        return client

    def close(self) -> None:
        """End everything."""
        for wire in self.closing:
            wire.close()
        self.process.terminate()
        self.process.wait(timeout=PATIENCE)
        if self.process.stderr is not None:
            self.process.stderr.close()


def own_name(user: int) -> str:
    """The name of a user id."""
    return pwd.getpwuid(user).pw_name


ME = own_name(os.geteuid())


def ident_of(body: bytes) -> bytes:
    """What the agent calls a client, by its trigger of protocol 4."""
    return body[128:160]


def forwarded(agent: WireAgent) -> bytes:
    """The body of the trigger that comes next."""
    kind, body = agent.daemon.receive()
    assert kind == TRIGGER_SERVICE4
    return body


@contextlib.contextmanager
def wire_agent(
    *options: str,
    wrapper: Sequence[str] = (),
    connect: bool = True,
    own: int = OWN,
    streams: Streams | None = None,
    **variables: str,
) -> Iterator[WireAgent]:
    """A real agent in a directory that every user may enter, with a daemon.

    Args:
        options: more of the agent's command line.
        wrapper: a command that runs the agent.
        connect: whether the daemon comes.
        own: the agent's domain.
        streams: those of another agent, for calls between the two.
        variables: more of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="wire-") as directory:
        home = Path(directory)
        home.chmod(0o777)
        for name in ("v", "services", "settings"):
            (home / name).mkdir()
            (home / name).chmod(0o777)
        # The checkout may be closed to the user that the agent runs as.
        binary = home / "qrexec-agent"
        binary.write_bytes(BINARY.read_bytes())
        binary.chmod(0o755)
        environment = {
            "VCHAN_DOMAIN": str(own),
            "VCHAN_SOCKET_DIR": str(streams.directory if streams else home / "v"),
            "QREXEC_SERVICE_PATH": str(home / "services"),
            "QUBES_RPC_CONFIG_PATH": str(home / "settings"),
        }
        command = [*wrapper, str(binary), f"--agent-socket={home}/agent.sock", "-S", *options]
        if "--with-fork-server" in command:
            command = [part for part in command if part not in ("-S", "--with-fork-server")]
        process = subprocess.Popen(command, env=environment | variables)
        agent = WireAgent(home, streams or Streams(home / "v"), process, own)
        try:
            if connect:
                agent.connect_daemon()
            yield agent
        finally:
            agent.close()


class RingPeer:
    """A link whose peer holds at most a ring's bytes each way, as upstream's client side does.

    Two threads move bytes between the real socket and pipes of one page, so that whoever writes a
    whole message before it reads is stuck for ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RING)
        sock.settimeout(None)
        self._socket = sock
        self.near, self._far = socket.socketpair()
        for end in (self.near, self._far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RING)
        self.wire = Wire(self.near)
        self._threads = [
            threading.Thread(target=self._move, args=pair, daemon=True)
            for pair in ((self._socket, self._far), (self._far, self._socket))
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _move(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(RING):
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End both threads and their sockets."""
        self.near.close()
        for sock in (self._socket, self._far):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for sock in (self._socket, self._far):
            sock.close()


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
