"""Daemons of the wire protocol, services of the admin qube, and `qrexec-client` there."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import Any

from agent_rig import BINARY
from client_rig import Clients
from daemon_peer import FakeDaemon
from wire_peer import EXIT_CODE, STDERR, STDOUT, Wire

WORK, VAULT = 42, 17


class Desk(Clients):
    """A directory of sockets, services of the admin qube, and the client."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        (home / "services").mkdir()
        (home / "run").mkdir()
        (home / "qrexec-client").symlink_to(BINARY)
        self.daemons: list[FakeDaemon] = []

    def daemon(self, name: str = "work", domain: int = WORK) -> FakeDaemon:
        """A daemon of a qube."""
        daemon = FakeDaemon(self.home, name, domain)
        self.daemons.append(daemon)
        return daemon

    def service(self, name: str, text: str) -> None:
        """A service of the admin qube."""
        path = self.home / "services" / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, **popen: Any) -> subprocess.Popen[bytes]:
        """Start the client."""
        environment = {
            "PATH": os.environ["PATH"],
            "VCHAN_SOCKET_DIR": str(self.home),
            "CAISSON_ROOT": str(self.home),
            "QREXEC_SERVICE_PATH": str(self.home / "services"),
            "QUBES_RPC_CONFIG_PATH": str(self.home / "settings"),
            "CAISSON_SESSION_LOCKS": str(self.home),
        }
        command = [self.home / "qrexec-client", f"--socket-dir={self.home}", *arguments]
        return self.launch(command, **({"env": environment} | popen))

    def call(
        self, *arguments: str, port: int = 513, **popen: Any
    ) -> tuple[subprocess.Popen[bytes], Wire]:
        """Start a call of `work`, and come to its data link."""
        daemon = self.daemon()
        process = self.start("-d", "work", *arguments, **popen)
        daemon.command(daemon.accept(), port)
        return process, daemon.connect(port)

    def close(self) -> None:
        """Leave nothing behind."""
        for daemon in self.daemons:
            daemon.close()
        self.end()


def code(number: int) -> bytes:
    """The body of an exit code."""
    return struct.pack("<i", number)


def end(link: Wire, number: int) -> None:
    """The service ends as a process does."""
    for stream in (STDOUT, STDERR):
        link.send(stream)
    link.send(EXIT_CODE, code(number))
