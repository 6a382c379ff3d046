"""The agent and its daemon: greetings, what breaks the protocol, and how either goes."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE, eventually
from wire_peer import (
    CONTROL_PORT,
    EXEC_CMDLINE,
    HELLO,
    OWN,
    PEER,
    SERVICE_CONNECT,
    SERVICE_REFUSED,
    STDIN,
    TERMINATED,
    TRIGGER_SERVICE4,
    code_of,
    descriptors_of,
    forwarded,
    hello,
    message,
    numbers,
    trigger,
    wire_agent,
)


def test_agent_speaks_first_and_takes_the_lower_version() -> None:
    """The bytes of the sheet, and a daemon that echoes a version from the future."""
    with wire_agent(connect=False) as agent:
        daemon = agent.streams.connect(OWN, 0, CONTROL_PORT)
        assert daemon.exactly(12) == bytes.fromhex("00030000 04000000 04000000")
        daemon.raw(hello(99))
        agent.daemon = daemon
        agent.closing.append(daemon)
        assert agent.outcome(agent.script("exit 4"))[0] == 4


@pytest.mark.parametrize(
    "wrong",
    [
        message(HELLO, b"\4\0\0"),
        message(HELLO, b"\4\0\0\0\0"),
        message(HELLO),
        message(EXEC_CMDLINE, b"\4\0\0\0"),
        hello(1),
        hello(0),
    ],
)
def test_a_wrong_hello_ends_the_agent(wrong: bytes) -> None:
    """With code 1, and without its socket left behind."""
    with wire_agent(connect=False) as agent:
        daemon = agent.streams.connect(OWN, 0, CONTROL_PORT)
        agent.closing.append(daemon)
        daemon.raw(wrong)
        assert agent.process.wait(PATIENCE) == 1
        assert not agent.trigger_socket.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        message(0x999),
        message(TRIGGER_SERVICE4, b"x" * 200),
        message(HELLO, b"\4\0\0\0"),
        message(STDIN, b"x"),
        message(EXEC_CMDLINE, b"x" * 7),
        message(EXEC_CMDLINE, b"x" * 8),
        struct.pack("<II", EXEC_CMDLINE, 65_536),
        struct.pack("<II", EXEC_CMDLINE, 0xFFFF_FFFF),
        message(SERVICE_CONNECT, b"x" * 8),
        message(SERVICE_REFUSED, b"x" * 31),
        message(SERVICE_REFUSED, b"x" * 33),
        message(SERVICE_REFUSED),
    ],
)
def test_a_daemon_that_breaks_the_protocol_ends_the_agent(wrong: bytes) -> None:
    """QSB-089: a length that no message has is refused before its body; the code is 1."""
    with wire_agent() as agent:
        agent.daemon.raw(wrong)
        assert agent.process.wait(PATIENCE) == 1


def test_ready_is_told_once_the_daemon_is_there(tmp_path: Path) -> None:
    """To the socket of the service manager, not earlier."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(str(tmp_path / "notify"))
        with wire_agent(connect=False, NOTIFY_SOCKET=str(tmp_path / "notify")) as agent:
            daemon = agent.streams.connect(OWN, 0, CONTROL_PORT)
            agent.closing.append(daemon)
            daemon.receive()
            assert select.select([manager], [], [], 0)[0] == []
            daemon.raw(hello())
            assert manager.recv(64) == b"READY=1"


def test_agent_waits_anew_when_the_daemon_is_gone() -> None:
    """Clients whose call nobody decides any more are refused; running calls go on."""
    with wire_agent() as agent:
        running = agent.call(agent.script("cat; exit 6"))
        asking = agent.ask(trigger(b"a.B"))
        forwarded(agent)
        agent.daemon.close()
        assert asking.is_gone()
        agent.connect_daemon()
        running.send(STDIN)
        assert code_of(running.rest()) == 6
        # The port is freed with the new connection.
        assert agent.daemon.receive() == (TERMINATED, numbers(PEER, agent.port))


def test_sigterm_ends_the_agent_in_order() -> None:
    """Code 0, no socket left, although the daemon takes nothing and clients keep asking."""
    with wire_agent() as agent:
        big = trigger(b"a.B+" + b"x" * 60_000)
        for _ in range(40):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect(str(agent.trigger_socket))
            with contextlib.suppress(BlockingIOError):
                client.send(big)
            agent.closing.append(client)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(PATIENCE) == 0
        assert not agent.trigger_socket.exists()


def test_clients_that_leave_while_the_daemon_is_stuck_are_let_go() -> None:
    """No descriptor stays behind, and what they had asked is not asked for them any more."""
    with wire_agent() as agent:
        before = descriptors_of(agent.process.pid)
        clients = []
        for _ in range(60):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect(str(agent.trigger_socket))
            with contextlib.suppress(BlockingIOError):
                client.send(trigger(b"a.B+" + b"x" * 60_000))
            clients.append(client)
        # The daemon is behind once the agent stops to take clients.
        eventually(lambda: descriptors_of(agent.process.pid) > before + 4)
        for client in clients:
            client.close()
        eventually(lambda: descriptors_of(agent.process.pid) <= before)
        assert agent.process.poll() is None


@pytest.mark.parametrize("option", ["-h", "--help", "--no-such", "operand"])
def test_usage_is_code_2(option: str) -> None:
    """As the sheet says, for help too."""
    done = subprocess.run([BINARY, option], check=False, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr


def test_a_missing_directory_of_streams_is_named(tmp_path: Path) -> None:
    """It may be a variable that was mistyped."""
    done = subprocess.run(
        [BINARY, f"--agent-socket={tmp_path}/agent.sock"],
        check=False,
        capture_output=True,
        timeout=PATIENCE,
        env={"VCHAN_DOMAIN": "7", "VCHAN_SOCKET_DIR": f"{tmp_path}/none"},
    )
    told = f"error: cannot wait for the daemon at `{tmp_path}/none`: no such file or directory\n"
    assert (done.returncode, done.stderr.decode()) == (1, told)
