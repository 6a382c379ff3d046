"""A qrexec-daemon at its local socket, with a machine of a number behind it."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from agent_rig import PATIENCE
from wire_peer import Streams, Wire, numbers


def whole(wire: Wire, kind: int) -> bytes:
    """All data of one stream up to its end; nothing else may come."""
    found = b""
    while True:
        told, body = wire.receive()
        assert told == kind
        if not body:
            return found
        found += body


class FakeDaemon:
    """Where local clients come; `streams` are the data links of its machine."""

    def __init__(self, directory: Path, name: str, domain: int) -> None:
        self.domain = domain
        self.streams = Streams(directory)
        self.socket = directory / f"qrexec.{name}"
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.settimeout(PATIENCE)
        self.listening.bind(str(self.socket))
        self.listening.listen(8)
        self._open: list[socket.socket] = [self.listening]

    def accept_silently(self) -> Wire:
        """The next client."""
        connection = self.listening.accept()[0]
        self._open.append(connection)
        return Wire(connection)

    def accept(self) -> Wire:
        """The next client, greeted."""
        wire = self.accept_silently()
        assert wire.greet(3) == 3
        return wire

    def command(self, wire: Wire, port: int) -> tuple[int, int, int, bytes]:
        """Take a client's command and allot a port; its type, domain and port, and what follows."""
        kind, body = wire.receive()
        domain, asked = struct.unpack("<II", body[:8])
        wire.send(kind, numbers(self.domain, port))
        return kind, domain, asked, body[8:]

    def connect(self, port: int, version: int = 4) -> Wire:
        """The machine comes to a data link that domain 0 waits at."""
        wire = self.streams.connect(0, self.domain, port)
        self._open.append(wire.socket)
        assert wire.greet(version) == 4
        return wire

    def listen(self, port: int) -> socket.socket:
        """The machine waits at a data link for domain 0."""
        listening = self.streams.listen(self.domain, 0, port)
        self._open.append(listening)
        return listening

    def close(self) -> None:
        """Leave nothing open."""
        for sock in self._open:
            sock.close()
        self.socket.unlink(missing_ok=True)
