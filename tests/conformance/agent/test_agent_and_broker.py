"""The agent and its broker: report, admission, messages, restarts, the end; and what it costs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from agent_rig import (
    BINARY,
    LONGEST,
    ME,
    PATIENCE,
    Agent,
    Listener,
    Pipes,
    environment,
    eventually,
    lay_out,
    links,
    read_all,
    running_agent,
    shut,
)
from grounds.processes import alive

from caisson.engines.barriers import BARRIERS
from caisson.qrexec.wire import Hello, parse_client


def test_hello_names_every_barrier_once(tmp_path: Path) -> None:
    """The report holds exactly the agreed barriers, and the broker's own parser takes it."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        datagram = listener.accept().receive()
    finally:
        process.kill()
        process.wait()
        listener.close()
    assert isinstance(parse_client(datagram), Hello)
    report = json.loads(datagram.split(b"\0", 1)[1])
    assert set(report["barriers"]) == BARRIERS
    assert report["version"]
    # Outside a qube there is no wall to be proud of.
    assert report["barriers"]["pid-namespace"]["up"] is False
    assert report["barriers"]["agent-read-only"]["up"] is False


@pytest.mark.parametrize(
    "datagram",
    [
        b"Z",
        b"S",
        b"S1",
        b"Sx\0u\0s\0q\0",
        b"S1\0u\0s\0q\0\0",
        b"S1\0u\0s\0q\0x",
        b"S99999999999999999999\0u\0s\0q\0",
        b"M1\0u",
        b"W\0",
        b"\0",
        b"S" + b"\xff" * (LONGEST - 1),
        b"S" * (LONGEST + 1),
        b"M1\0u\0" + b"x" * 100_000,
    ],
    ids=lambda datagram: repr(datagram[:12]),
)
def test_a_malformed_message_changes_nothing(agent: Agent, datagram: bytes) -> None:
    """It is ignored with a line on stderr, its descriptors are closed, and work goes on."""
    read, write = os.pipe()
    agent.peer.send(datagram, (write,))
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    assert agent.process.stderr is not None
    assert b"malformed message" in agent.process.stderr.readline()
    assert agent.shell("exit 9").code == 9


def test_too_many_descriptors_are_closed(agent: Agent) -> None:
    """Only the agreed three are taken, else none."""
    read, write = os.pipe()
    number = agent.next_id()
    agent.peer.send(f"M{number}\0{ME}\0exit 1".encode(), (write,) * 20)
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    assert agent.shell("exit 9").code == 9


def test_a_service_without_pipes_gets_the_null_device(agent: Agent) -> None:
    """Missing descriptors are no reason to hand out others."""
    where = agent.home / "where"
    number = agent.next_id()
    agent.peer.send(f"M{number}\0{ME}\0readlink /proc/self/fd/0 >{where}".encode())
    assert agent.code_of(number) == 0
    assert where.read_text() == "/dev/null\n"


def test_services_outlive_a_broker(agent: Agent) -> None:
    """After the restart the agent reports anew, and the ends that happened meanwhile are told."""
    pipes = Pipes.make()
    meanwhile, later = agent.command("read x; exit 21", pipes), None
    other = Pipes.make()
    later = agent.command("read x; exit 22", other)
    agent.listener.remove()
    os.write(pipes.caller[0], b"go\n")
    assert read_all(pipes.caller[1]) == b""
    agent.listener = Listener(agent.listener.path)
    agent.admit()
    assert set(agent.report["barriers"]) == BARRIERS
    # Its own descriptors are no leak.
    assert "socket" not in agent.report["barriers"]["descriptors"]["detail"]
    assert agent.code_of(meanwhile) == 21
    os.write(other.caller[0], b"go\n")
    assert agent.code_of(later) == 22
    assert agent.shell("exit 0").code == 0


def test_the_agent_finds_a_broker_behind_a_stale_socket(agent: Agent) -> None:
    """A broker that was killed leaves its socket file; the next one replaces it."""
    for _ in range(3):
        agent.listener.close()
        agent.listener.path.unlink()
        agent.listener = Listener(agent.listener.path)
        agent.admit()
        assert agent.shell("exit 4").code == 4


def test_the_agent_waits_for_the_first_broker(tmp_path: Path) -> None:
    """Also when it is started before the socket exists."""
    lay_out(tmp_path)
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: "inotify" in " ".join(links(process.pid)))
        listener = Listener(tmp_path / "broker/qrexec")
        assert listener.accept().receive().startswith(b"H1\0")
        listener.close()
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0


def test_no_service_starts_before_the_admission(tmp_path: Path) -> None:
    """A qube whose barriers nobody judged runs nothing."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        peer = listener.accept()
        peer.receive()
        pipes = Pipes.make()
        peer.send(f"M1\0{ME}\0touch {tmp_path}/ran".encode(), pipes.service)
        shut(pipes.service)
        assert b"not been admitted" in read_all(pipes.caller[2])
        peer.send(b"W")
        assert peer.receive() == b"X1\x00125"
        assert not (tmp_path / "ran").exists()
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0
        listener.close()


def test_a_rejected_agent_ends(tmp_path: Path) -> None:
    """With the reason on stderr, where the engine reads it."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.PIPE)
    peer = listener.accept()
    peer.receive()
    peer.send(b"Nbarrier `seccomp` is down\x1b[2J")
    _, stderr = process.communicate(timeout=PATIENCE)
    listener.close()
    assert process.returncode == 1
    assert b"barrier `seccomp` is down\\x1b[2J" in stderr


@pytest.mark.parametrize("how", ["message", "signal"])
def test_a_shutdown_is_graceful(agent: Agent, how: str) -> None:
    """Services are asked to end, their codes are told, and the agent leaves with 0."""
    pipes = Pipes.make()
    number = agent.command("trap 'exit 33' TERM; echo up; while :; do sleep 0.01; done", pipes)
    assert os.read(pipes.caller[1], 3) == b"up\n"
    if how == "message":
        agent.peer.send(b"Q")
    else:
        agent.process.terminate()
    assert agent.code_of(number) == 33
    assert agent.process.wait(timeout=PATIENCE) == 0
    shut(pipes.caller)


def test_nothing_new_starts_during_a_shutdown(agent: Agent) -> None:
    """And what does not want to end is killed after a while."""
    pipes = Pipes.make()
    agent.command("trap '' TERM; echo $$; while :; do sleep 0.1; done", pipes)
    pid = int(os.read(pipes.caller[1], 20))
    started = time.monotonic()
    agent.peer.send(b"Q")
    outcome = agent.shell("true")
    assert (outcome.code, outcome.stderr) == (125, b"error: this qube is shutting down\n")
    assert agent.process.wait(timeout=PATIENCE) == 0
    assert time.monotonic() - started > 4  # the grace that it was given
    eventually(lambda: not alive(pid))
    shut(pipes.caller)


def test_an_idle_agent_is_small(agent: Agent) -> None:
    """At most 1 MiB of its own, all its life."""
    agent.write_service("a.True", "#!/bin/sh\n")
    for _ in range(50):
        agent.call("a.True")
    rollup = Path(f"/proc/{agent.process.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss <= 1024  # KiB


def test_an_agent_leaks_no_descriptor(agent: Agent) -> None:
    """What calls leave behind would end the qube after some thousand of them."""
    agent.write_service("a.True", "#!/bin/sh\n")
    agent.call("a.True")
    before = len(links(agent.process.pid))
    agent.write_service("a.True", "#!/bin/sh\n")
    for _ in range(50):
        agent.call("a.True")
        agent.call("a.Missing")
    agent.listener.remove()
    agent.listener = Listener(agent.listener.path)
    agent.admit()
    agent.call("a.True")
    assert len(links(agent.process.pid)) <= before


def test_a_broker_that_hangs_up_at_once_is_not_hammered(tmp_path: Path) -> None:
    """Reports cost time: between two there is a pause until one was admitted."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        started = time.monotonic()
        for _ in range(4):
            listener.accept().close()
        assert time.monotonic() - started > 0.3  # three pauses of 0.2 s, less jitter
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0
        listener.close()


def test_a_long_socket_path_is_no_obstacle(tmp_path: Path) -> None:
    """Longer than a socket's address can hold."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with running_agent(deep) as agent:
        assert len(os.fsencode(agent.listener.path)) > socket.CMSG_SPACE(1)
        assert agent.shell("exit 6").code == 6
