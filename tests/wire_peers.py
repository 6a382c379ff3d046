"""A qrexec-daemon and the far end of its data links in a few lines, over real sockets.

Frames and handshakes as in the description of the wire protocol: a header of type and length,
both 32 bits, little-endian; HELLO first on every link.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from agent_rig import PATIENCE, eventually

STDIN, STDOUT, STDERR, EXIT = 0x190, 0x191, 0x192, 0x193
EXEC, JUST_EXEC, CONNECT, HELLO = 0x200, 0x201, 0x202, 0x300


def frame(kind: int, body: bytes = b"") -> bytes:
    """One message."""
    return struct.pack("<II", kind, len(body)) + body


def hello(version: int) -> bytes:
    """The first message of a link."""
    return frame(HELLO, struct.pack("<I", version))


class Wire:
    """One end of a connection that speaks in frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)

    def exactly(self, count: int) -> bytes:
        """So many bytes, fewer only at the end."""
        found = b""
        while len(found) < count and (piece := self.socket.recv(count - len(found))):
            found += piece
        return found

    def receive(self) -> tuple[int, bytes] | None:
        """The next message; `None` at the end."""
        header = self.exactly(8)
        if not header:
            return None
        kind, length = struct.unpack("<II", header)
        return kind, self.exactly(length)

    def send(self, kind: int, body: bytes = b"") -> None:
        """Send one message."""
        self.socket.sendall(frame(kind, body))

    def greet(self, version: int) -> int:
        """Exchange HELLOs; the version of the other side."""
        self.socket.sendall(hello(version))
        message = self.receive()
        assert message is not None
        kind, body = message
        assert kind == HELLO
        return int(struct.unpack("<I", body)[0])

    def stream(self, kind: int) -> bytes:
        """All data of one stream up to its end; nothing else may come."""
        found = b""
        while True:
            message = self.receive()
            assert message is not None
            assert message[0] == kind, message
            if not message[1]:
                return found
            found += message[1]

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class FakeDaemon:
    """The local socket of a daemon, and a machine of a number behind it."""

    def __init__(self, directory: Path, name: str, domain: int) -> None:
        self.directory = directory
        self.domain = domain
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.settimeout(PATIENCE)
        self.listening.bind(str(directory / f"qrexec.{name}"))
        self.listening.listen(8)
        self._open: list[socket.socket] = [self.listening]

    def accept(self, version: int = 3) -> Wire:
        """The next client, greeted."""
        wire = self.accept_silently()
        assert wire.greet(version) == 3
        return wire

    def accept_silently(self) -> Wire:
        """The next client."""
        connection = self.listening.accept()[0]
        self._open.append(connection)
        return Wire(connection)

    def command(self, wire: Wire, port: int) -> tuple[int, int, int, bytes]:
        """Take a client's command and allot a port; its type, domain and port, and what follows."""
        message = wire.receive()
        assert message is not None
        kind, body = message
        domain, asked = struct.unpack("<II", body[:8])
        wire.send(kind, struct.pack("<II", self.domain, port))
        return kind, domain, asked, body[8:]

    def connect(self, server: int, port: int, version: int = 4) -> Wire:
        """The machine connects to a data link that `server` waits at."""
        path = self.directory / f"vchan.{server}.{self.domain}.{port}.sock"
        connection = socket.socket(socket.AF_UNIX)
        self._open.append(connection)

        def connected() -> bool:
            try:
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        eventually(connected)
        wire = Wire(connection)
        assert wire.greet(version) == 4
        return wire

    def listen(self, client: int, port: int) -> socket.socket:
        """The machine waits at a data link for `client`."""
        listening = socket.socket(socket.AF_UNIX)
        listening.settimeout(PATIENCE)
        listening.bind(str(self.directory / f"vchan.{self.domain}.{client}.{port}.sock"))
        listening.listen(1)
        self._open.append(listening)
        return listening

    def close(self) -> None:
        """Leave nothing open."""
        for sock in self._open:
            sock.close()
