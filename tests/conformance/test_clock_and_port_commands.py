"""`qvm-sync-clock`, `qubes.SetDateTime` and `qvm-connect-tcp` at a broker of a few lines.

No test sets the machine's clock: dates are either in step or no dates, and where one would be
taken, the program runs without the right to set clocks.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE, Listener, Pipes, eventually, shut

from caisson.qrexec.wire import ClientCall, parse_client

WITHOUT_CLOCK = (
    () if os.geteuid() else ("setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time", "--")
)
MOST = 64
LONG_AGO = b"2025-12-31T23:59:59+00:00\n"


class Desk:
    """A fake broker, and programs that call at it."""

    def __init__(self, home: Path) -> None:
        self.listener = Listener(home / "qrexec")
        self.started: list[subprocess.Popen[bytes]] = []
        self.names = home
        for name in ("qvm-sync-clock", "qvm-connect-tcp", "qubes-set-clock"):
            (home / name).symlink_to(BINARY)

    def start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program that calls here, without the right to set the clock."""
        child = subprocess.Popen(
            [*WITHOUT_CLOCK, self.names / name, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(child)
        return child

    def synchronise(self, answer: bytes, code: int = 0) -> tuple[int, str]:
        """Run `qvm-sync-clock` against a clock qube that answers so."""
        child = self.start("qvm-sync-clock", f"--agent-socket={self.listener.path}")
        peer = self.listener.accept()
        assert parse_client(peer.receive()) == ClientCall("@default", "qubes.GetDate", "", "")
        pipes = Pipes.make()
        peer.send(b"A", pipes.caller)
        shut(pipes.caller)
        # It does not wait for more than a line.
        with contextlib.suppress(BrokenPipeError):
            os.write(pipes.service[1], answer)
        shut(pipes.service)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.send(f"X{code}".encode())
        _, err = child.communicate(timeout=PATIENCE)
        peer.close()
        return child.returncode, err.decode()

    def close(self) -> None:
        """Leave nothing behind."""
        for child in self.started:
            child.terminate()
            try:
                child.communicate(timeout=PATIENCE)
            finally:
                child.kill()
        self.listener.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A fake broker's desk."""
    made = Desk(tmp_path)
    yield made
    made.close()


def now(timespec: str = "seconds") -> bytes:
    """The date as `qubes.GetDate` gives it."""
    text = dt.datetime.now(dt.UTC).isoformat(timespec=timespec)
    return (text.replace("+00:00", "000+00:00") if timespec == "microseconds" else text).encode()


def test_a_clock_in_step_is_left_alone(desk: Desk):
    """Both forms of the answer."""
    assert desk.synchronise(now() + b"\n") == (0, "")
    fine = now("microseconds").replace(b".", b",") + b"\n"
    assert len(fine) == 36
    assert desk.synchronise(fine) == (0, "")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"2026-01-01T00:00:00Z\n",
        b"2026-01-01T00:00:00+01:00\n",
        b"$(reboot)\n",
        b"\x1b]0;x\x07\n",
        b"2026-01-01T00:00:00+00:00\n" * 4000,
        LONG_AGO,
    ],
    ids=["none", "zulu", "offset", "shell", "escape", "flood", "before we were"],
)
def test_what_is_no_date_sets_no_clock(desk: Desk, answer: bytes):
    """The clock qube is another qube: its word is checked, bounded and not repeated (QSB-038)."""
    code, err = desk.synchronise(answer)
    assert code == 1
    assert err.startswith("error: the clock qube ")
    assert "\x1b" not in err
    assert "reboot" not in err
    assert "hint:" not in err
    if answer and answer != LONG_AGO:
        assert err == "error: the clock qube gave no valid date\n"


@pytest.mark.parametrize("ends_its_output", [True, False])
def test_a_clock_qube_that_never_ends_holds_nobody_up(desk: Desk, ends_its_output: bool):
    """The date is what was asked for; neither its end nor a code is waited for."""
    child = desk.start("qvm-sync-clock", f"--agent-socket={desk.listener.path}")
    peer = desk.listener.accept()
    peer.receive()
    pipes = Pipes.make()
    peer.send(b"A", pipes.caller)
    shut(pipes.caller)
    os.write(pipes.service[1], now() + b"\n")
    if ends_its_output:
        shut(pipes.service, 1)
    try:
        _, err = child.communicate(timeout=PATIENCE)
        assert (child.returncode, err) == (0, b"")
    finally:
        shut(pipes.service)
        peer.close()


def test_without_a_clock_of_its_own_a_program_says_so(desk: Desk):
    """It names what is off, and does not claim to have set anything."""
    code, err = desk.synchronise(b"2026-02-28T12:00:00+00:00\n")
    assert code == 1
    assert "this qube has no clock of its own to set" in err
    child = desk.start("qubes-set-clock")
    _, told = child.communicate(b"2026-02-28T13:00:00+01:00\n", timeout=PATIENCE)
    assert child.returncode == 1
    assert told.decode().partition(" s,")[2] == err.partition(" s,")[2]


def test_a_refused_call_is_no_date(desk: Desk):
    """Policy may close the way to the clock qube."""
    child = desk.start("qvm-sync-clock", f"--agent-socket={desk.listener.path}")
    peer = desk.listener.accept()
    peer.receive()
    peer.send(b"R")
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert err == (
        b"Request refused\nerror: the clock qube gave no date\n"
        b"hint: see whether policy lets this qube call `qubes.GetDate`\n"
    )


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def connected(desk: Desk, target: str) -> tuple[subprocess.Popen[bytes], int]:
    """A `qvm-connect-tcp` that listens, and its port."""
    port = free_port()
    child = desk.start(
        "qvm-connect-tcp", f"--agent-socket={desk.listener.path}", f"{port}:{target}:22"
    )
    assert child.stderr is not None
    shown = f"`{target}`" if target else "the qube that policy chooses"
    assert child.stderr.readline().decode() == f"127.0.0.1:{port} leads to port 22 of {shown}\n"
    return child, port


@pytest.mark.parametrize("target", ["vault", "", "@dispvm:web"])
def test_a_connection_becomes_a_call_both_ways(desk: Desk, target: str):
    """With the port as the argument, and the qube as it was named."""
    child, port = connected(desk, target)
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        peer = desk.listener.accept()
        assert parse_client(peer.receive()) == ClientCall(
            target or "@default", "qubes.ConnectTCP", "22", ""
        )
        pipes = Pipes.make()
        peer.send(b"A", pipes.caller)
        shut(pipes.caller)
        connection.sendall(b"there")
        assert os.read(pipes.service[0], 5) == b"there"
        os.write(pipes.service[1], b"and back")
        assert connection.recv(8) == b"and back"
        shut(pipes.service)
        peer.send(b"X0")
        assert connection.recv(1) == b""
    child.terminate()
    assert child.wait(PATIENCE) == 0


def test_a_refusal_closes_the_connection_and_the_port_goes_on(desk: Desk):
    """Each connection is a call of its own."""
    _, port = connected(desk, "vault")
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            peer = desk.listener.accept()
            peer.receive()
            peer.send(b"R")
            assert connection.recv(1) == b""


def test_a_shortage_of_descriptors_ends_no_port(desk: Desk):
    """The connection waits until there is room: else a neighbour could cut off updates for good."""
    child, port = connected(desk, "vault")
    status, used = Path(f"/proc/{child.pid}/status"), Path(f"/proc/{child.pid}/fd")

    def waits() -> int:
        return int(re.findall(r"(?m)^voluntary_ctxt_switches:\s*(\d+)$", status.read_text())[0])

    usual = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in used.iterdir())
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (highest + 1, usual[1]))
    before = waits()
    with socket.create_connection(("127.0.0.1", port), PATIENCE):
        eventually(lambda: child.poll() is not None or waits() >= before + 3)
        assert child.poll() is None
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, usual)
        desk.listener.accept().receive()
    child.terminate()
    assert child.wait(PATIENCE) == 0


def test_connections_at_once_are_bounded(desk: Desk):
    """One more waits until one of them ends."""
    child, port = connected(desk, "vault")
    calls = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    with contextlib.ExitStack() as open_ones:
        peers = []
        for _ in range(MOST + 1):
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
            open_ones.enter_context(connection)
        for _ in range(MOST):
            peers.append(desk.listener.accept())
            peers[-1].receive()
        assert len(calls.read_text().split()) == MOST
        peers[0].send(b"R")
        desk.listener.accept().receive()
        eventually(lambda: len(calls.read_text().split()) == MOST)
    child.terminate()
    assert child.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    "argument",
    ["", "22", "vault:22", ":vault:0", ":vault:22+x", ":$(id):22", ":a\x1b[2J:22", "0:vault:22"],
)
def test_what_is_no_way_is_refused(desk: Desk, argument: str):
    """Before anything is listened at; escapes are not repeated (QSB-087)."""
    child = desk.start("qvm-connect-tcp", argument)
    out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (2, b"")
    assert err.startswith(b"error: `")
    assert b"\x1b" not in err


def test_a_port_in_use_is_named(desk: Desk):
    """And nothing is taken over."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child = desk.start("qvm-connect-tcp", f"{port}:vault:22")
        _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert err.startswith(f"error: cannot listen on 127.0.0.1:{port}: ".encode())
