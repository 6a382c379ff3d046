"""Services behind TCP ports."""

from __future__ import annotations

import os
import socket

import pytest
from agent_rig import Agent, Outcome, Pipes, shut
from socket_rig import read_rest, read_until, tcp_service


@pytest.mark.parametrize(
    ("name", "link", "argument", "family"),
    [
        ("t.Fixed", "/dev/tcp/127.0.0.1/PORT", "", socket.AF_INET),
        ("t.Host", "/dev/tcp/127.0.0.1", "PORT", socket.AF_INET),
        ("t.Any", "/dev/tcp", "127.0.0.1+PORT", socket.AF_INET),
        ("t.Any6", "/dev/tcp", "++1+PORT", socket.AF_INET6),
        ("t.Fixed6", "/dev/tcp/::1/PORT", "", socket.AF_INET6),
        ("t.Zone", "/dev/tcp/::1%lo", "PORT", socket.AF_INET6),
    ],
)
def test_tcp_services(agent: Agent, name: str, link: str, argument: str, family: int) -> None:
    """The link's text and the argument make the address; the descriptor is sent here too."""
    with tcp_service(agent, name, link, family) as (server, port):
        descriptor = f"{name}+{argument.replace('PORT', str(port))}"
        pipes = Pipes.make()
        number = agent.service(descriptor, pipes)
        with server.accept() as connection:
            assert read_until(connection, b"\0") == f"{descriptor} work\0".encode()
            os.write(pipes.caller[0], b"ping")
            assert connection.recv(4) == b"ping"
            connection.sendall(b"pong")
            shut(pipes.caller, 0)
            assert read_rest(connection) == b""
        assert agent.outcome(number, pipes) == Outcome(0, b"pong", b"")


def test_a_port_that_nobody_serves_is_125(agent: Agent) -> None:
    """And the caller is told that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (agent.home / "services-2/t.Closed").symlink_to(f"/dev/tcp/127.0.0.1/{port}")
    outcome = agent.call("t.Closed+")
    assert outcome.code == 125
    assert b"connection refused" in outcome.stderr


@pytest.mark.parametrize(
    ("link", "argument"),
    [
        ("/dev/tcp/127.0.0.1/80", "80"),
        ("/dev/tcp/127.0.0.1", ""),
        ("/dev/tcp", "80"),
        ("/dev/tcp", "localhost+80"),
        ("/dev/tcp", "local_host+80"),
        ("/dev/tcp", "127.0.0.01+80"),
        ("/dev/tcp", "0x7f000001+80"),
        ("/dev/tcp", "127.0.0.1+080"),
        ("/dev/tcp", "127.0.0.1+" + "9" * 60_000),
        ("/dev/tcp/localhost/80", ""),
        ("/dev/tcp/../../etc/passwd", ""),
    ],
)
def test_a_host_is_a_number_and_nothing_else(agent: Agent, link: str, argument: str) -> None:
    """Names would let a caller use this qube's resolver; odd numbers mean two things (QSB-038)."""
    path = agent.home / "services-2/t.Wrong"
    path.unlink(missing_ok=True)
    path.symlink_to(link)
    outcome = agent.call(f"t.Wrong+{argument}")
    assert outcome.code == 125
    assert outcome.stdout == b""
    assert outcome.stderr.startswith(b"error: ")
    assert len(outcome.stderr) < 1025
