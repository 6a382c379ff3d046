"""Services behind sockets, as tests offer them, and what they read."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator

from agent_rig import PATIENCE, Agent


class Server:
    """A service behind a socket."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        listening.settimeout(PATIENCE)
        listening.listen(16)

    def accept(self) -> socket.socket:
        """The next call."""
        connection = self.listening.accept()[0]
        connection.settimeout(PATIENCE)
        return connection


@contextlib.contextmanager
def unix_service(agent: Agent, name: str, where: str = "services-2") -> Iterator[Server]:
    """A service behind a Unix socket, whatever the length of its path."""
    path = agent.home / where / name
    with (
        tempfile.TemporaryDirectory() as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening,
    ):
        listening.bind(f"{short}/s")
        shutil.move(f"{short}/s", path)
        try:
            yield Server(listening)
        finally:
            path.unlink()


@contextlib.contextmanager
def tcp_service(
    agent: Agent, name: str, link: str, family: int = socket.AF_INET
) -> Iterator[tuple[Server, int]]:
    """A service behind a TCP port; `PORT` in the link's text becomes its number."""
    path = agent.home / "services-2" / name
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        port = listening.getsockname()[1]
        path.symlink_to(link.replace("PORT", str(port)))
        try:
            yield Server(listening), port
        finally:
            path.unlink()


def settings(agent: Agent, name: str, *lines: str) -> None:
    """Write the settings of a service."""
    (agent.home / "settings" / name).write_text("".join(f"{line}\n" for line in lines))


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Read up to these bytes, or the end."""
    found = b""
    while not found.endswith(end) and (piece := connection.recv(1)):
        found += piece
    return found


def read_rest(connection: socket.socket) -> bytes:
    """Read to the end."""
    found = bytearray()
    while piece := connection.recv(1 << 16):
        found += piece
    return bytes(found)
