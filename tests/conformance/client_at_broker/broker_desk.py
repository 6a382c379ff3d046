"""A broker of a few lines, and the clients that call at its socket."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from agent_rig import Listener, Peer, Pipes, link_clients, shut
from client_rig import Clients


class Desk(Clients):
    """A socket, and the clients that call at it."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.listener = Listener(home / "qrexec")
        link_clients(home)

    def start(
        self, *arguments: str, name: str = "qrexec-client-vm", **popen: Any
    ) -> subprocess.Popen[bytes]:
        """Start a client; it speaks to this desk unless it is told otherwise."""
        socket_option = "--agent-socket=" if name == "qrexec-client-vm" else "--socket="
        command = [self.home / name, f"{socket_option}{self.listener.path}", *arguments]
        return self.launch(command, **popen)

    def start_by_shell(self, redirection: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a client with a redirection of a shell."""
        client = [self.home / "qrexec-client-vm", f"--agent-socket={self.listener.path}"]
        command = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *client, *arguments]
        return self.launch(command)

    def answer(self, datagram: bytes = b"A") -> tuple[Peer, bytes, Pipes]:
        """Take the next client, read its request, hand it pipes."""
        peer = self.listener.accept()
        request = peer.receive()
        pipes = Pipes.make()
        peer.send(datagram, pipes.caller)
        shut(pipes.caller)
        return peer, request, pipes

    def close(self) -> None:
        """Leave nothing behind."""
        self.listener.close()
        self.end()


def write_until_refused(descriptor: int) -> None:
    """Write until the reader is gone."""
    while True:
        os.write(descriptor, b"x" * 4096)
