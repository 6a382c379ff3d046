"""A broker of a few lines, to drive the real agent and the real clients over real sockets."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patience import PATIENCE

BINARY = Path(__file__).parents[1] / "agent/target/release/qrexec-agent"
ME = getpass.getuser()
LONGEST = 66_000


def eventually(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class Listener:
    """A broker's socket; each connection is one agent or one client."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        # A path below /proc is short, whatever the test's directory is called.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self._socket.listen(1024)
        self._peers: list[Peer] = []

    def accept(self) -> Peer:
        """The next connection."""
        peer = Peer(self._socket.accept()[0])
        self._peers.append(peer)
        return peer

    def is_called(self) -> bool:
        """Whether a connection waits."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """As if the broker had been killed: the socket's file stays."""
        self._socket.close()
        for peer in self._peers:
            peer.close()

    def remove(self) -> None:
        """As a broker that ends in order: its socket's file goes too."""
        self.close()
        self.path.unlink()


class Peer:
    """The broker's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)

    def receive(self) -> bytes:
        """One datagram; empty when the other side is gone."""
        return self.socket.recv(LONGEST)

    def send(self, datagram: bytes, descriptors: Sequence[int] = ()) -> None:
        """One datagram, with descriptors."""
        socket.send_fds(self.socket, [datagram], list(descriptors))

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


@dataclass
class Pipes:
    """The three pipes of a call: the service's ends, and the caller's."""

    service: list[int]
    caller: list[int]

    @classmethod
    def make(cls) -> Pipes:
        """Three fresh pipes."""
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        return cls([stdin[0], stdout[1], stderr[1]], [stdin[1], stdout[0], stderr[0]])


def shut(ends: list[int], *which: int) -> None:
    """Close these ends, or all; one that is closed already stays so."""
    for at in which or range(len(ends)):
        if ends[at] >= 0:
            os.close(ends[at])
            ends[at] = -1


def read_all(descriptor: int) -> bytes:
    """Read to the end."""
    found = bytearray()
    while piece := os.read(descriptor, 1 << 16):
        found += piece
    return bytes(found)


def links(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return found


@dataclass
class Outcome:
    """How a service ended."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass
class Agent:
    """A real agent that was admitted, and what the tests ask of it."""

    home: Path
    process: subprocess.Popen[bytes]
    listener: Listener
    peer: Peer = field(init=False)
    report: dict[str, Any] = field(init=False)
    last: int = 0
    ended: dict[int, int] = field(default_factory=dict)

    def write_service(
        self, name: str, text: str, mode: int = 0o755, where: str = "services-2"
    ) -> Path:
        """Put a service where the agent looks for it."""
        path = self.home / where / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def next_id(self) -> int:
        """An id that no call had yet."""
        self.last += 1
        return self.last

    def service(
        self,
        descriptor: str,
        pipes: Pipes,
        *,
        source: str = "work",
        user: str = ME,
        flags: str = "",
    ) -> int:
        """Start a service; the id of the call."""
        number = self.next_id()
        message = f"S{number}\0{user}\0{descriptor}\0{source}\0{flags}".encode()
        self.peer.send(message, pipes.service)
        shut(pipes.service)
        return number

    def command(self, line: str, pipes: Pipes, *, user: str = ME) -> int:
        """Run a shell command; the call's id."""
        number = self.next_id()
        self.peer.send(f"M{number}\0{user}\0{line}".encode(), pipes.service)
        shut(pipes.service)
        return number

    def code_of(self, number: int) -> int:
        """Wait for the end of a call; its exit code."""
        while number not in self.ended:
            datagram = self.peer.receive()
            assert datagram[:1] == b"X", datagram
            key, code = datagram[1:].split(b"\0")
            self.ended[int(key)] = int(code)
        return self.ended.pop(number)

    def outcome(self, number: int, pipes: Pipes) -> Outcome:
        """Read a call's output to the end and wait for it."""
        stdout, stderr = read_all(pipes.caller[1]), read_all(pipes.caller[2])
        outcome = Outcome(self.code_of(number), stdout, stderr)
        shut(pipes.caller)
        return outcome

    def _answer(self, number: int, pipes: Pipes, stdin: bytes) -> Outcome:
        with contextlib.suppress(BrokenPipeError):
            os.write(pipes.caller[0], stdin)
        shut(pipes.caller, 0)
        return self.outcome(number, pipes)

    def call(self, descriptor: str, stdin: bytes = b"", **more: str) -> Outcome:
        """Call a service and wait for its end."""
        pipes = Pipes.make()
        return self._answer(self.service(descriptor, pipes, **more), pipes, stdin)

    def shell(self, line: str, stdin: bytes = b"", **more: str) -> Outcome:
        """Run a shell command and wait for its end."""
        pipes = Pipes.make()
        return self._answer(self.command(line, pipes, **more), pipes, stdin)

    def admit(self) -> None:
        """Take the next connection as the agent's, and admit it."""
        self.peer = self.listener.accept()
        version, _, report = self.peer.receive()[1:].partition(b"\0")
        assert version == b"1"
        self.report = json.loads(report)
        self.peer.send(b"W")


def environment(home: Path) -> dict[str, str]:
    """What an agent of these tests is started with."""
    return {
        "CAISSON_SOCKET": str(home / "broker/qrexec"),
        "QREXEC_SERVICE_PATH": f"{home}/services-1:{home}/services-2",
        "QUBES_RPC_CONFIG_PATH": f"{home}/settings",
        "CAISSON_SESSION_LOCKS": f"{home}/locks",
    }


def lay_out(home: Path) -> None:
    """The directories that an agent of these tests works with."""
    for name in ("broker", "services-1", "services-2", "settings", "locks"):
        (home / name).mkdir()
    home.chmod(0o755)


@contextlib.contextmanager
def running_agent(home: Path, wrapper: Sequence[str] = (), **popen: Any) -> Iterator[Agent]:
    """An admitted agent that ends with the block, and its services with it.

    Args:
        home: an empty directory for its sockets and services.
        wrapper: a command that runs the agent.
        popen: further options of `subprocess.Popen`.
    """
    lay_out(home)
    listener = Listener(home / "broker/qrexec")
    process = subprocess.Popen(
        [*wrapper, BINARY], env=environment(home), stderr=subprocess.PIPE, **popen
    )
    agent = Agent(home, process, listener)
    try:
        agent.admit()
        yield agent
    finally:
        agent.listener.close()
        process.terminate()
        process.wait(timeout=PATIENCE)
        if process.stderr is not None:
            process.stderr.close()


def link_clients(directory: Path) -> None:
    """The binary under its other names."""
    for name in ("qrexec-client-vm", "qrexec-client", "qubes-vmexec"):
        (directory / name).symlink_to(BINARY)
