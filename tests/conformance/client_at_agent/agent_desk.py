"""The trigger socket of an agent of the wire protocol, and `qrexec-client-vm` there."""

from __future__ import annotations

import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

from agent_rig import PATIENCE, link_clients
from client_rig import Clients
from wire_peer import (
    EXIT_CODE,
    OWN,
    PEER,
    STDERR,
    STDOUT,
    TRIGGER_SERVICE4,
    Streams,
    Wire,
    message,
    numbers,
)


class Desk(Clients):
    """An agent's trigger socket, and the clients that ask there."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.streams = Streams(home / "v")
        self.streams.directory.mkdir()
        self.path = home / "agent.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(PATIENCE)
        self.listener.bind(str(self.path))
        self.listener.listen(16)
        self.wires: list[Wire] = []
        self.port = 513
        link_clients(home)

    def start(self, *arguments: str, by_shell: str = "", **popen: Any) -> subprocess.Popen[bytes]:
        """Start a client, by a shell where there is a redirection of its."""
        variables = {"VCHAN_DOMAIN": str(OWN), "VCHAN_SOCKET_DIR": str(self.streams.directory)}
        command = [self.home / "qrexec-client-vm", f"--agent-socket={self.path}", *arguments]
        if by_shell:
            command = ["/bin/sh", "-c", f'exec "$@" {by_shell}', "sh", *command]
        variables |= popen.pop("variables", {})
        return self.launch(command, env=variables, **popen)

    def request(self) -> tuple[Wire, bytes]:
        """The next client, and the body of its request."""
        agent = Wire(self.listener.accept()[0])
        self.wires.append(agent)
        kind, body = agent.receive()
        assert kind == TRIGGER_SERVICE4
        return agent, body

    def allow(self) -> tuple[Wire, bytes]:
        """Allow the next request; the service's end of its link, before HELLO."""
        agent, body = self.request()
        self.port += 1
        agent.raw(numbers(PEER, self.port))
        link = self.streams.connect(OWN, PEER, self.port)
        self.wires.append(link)
        return link, body

    def serve(self, version: int = 4) -> Wire:
        """Allow the next request; the service's end of its link."""
        link, _ = self.allow()
        assert link.greet(version) == 4
        return link

    def close(self) -> None:
        """Leave nothing behind."""
        self.end()
        for wire in self.wires:
            wire.close()
        self.listener.close()


def code(number: int) -> bytes:
    """EXIT_CODE."""
    return message(EXIT_CODE, struct.pack("<i", number))


ENDS = message(STDOUT) + message(STDERR)
