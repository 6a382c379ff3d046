"""`qrexec-client` through a daemon: calls from the admin qube to a qube, and the end of one."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import subprocess

import pytest
from agent_rig import PATIENCE
from client_rig import end_input, finish
from daemon_desk import WORK, Desk, code, end
from daemon_peer import FakeDaemon, whole
from wire_peer import (
    EXEC_CMDLINE,
    EXIT_CODE,
    JUST_EXEC,
    STDERR,
    STDIN,
    STDOUT,
    Streams,
    hello,
    numbers,
    wire_agent,
)

# From the admin qube to a qube.


def test_a_call_is_what_daemons_and_agents_read(desk: Desk) -> None:
    """The command in whole with its NUL, as from domain 0; we wait at the port that we are told."""
    daemon = desk.daemon()
    process = desk.start("-d", "work", "user:QUBESRPC a.B+c dom0")
    wire = daemon.accept()
    asked = daemon.command(wire, 515)
    assert asked == (EXEC_CMDLINE, 0, 0, b"user:QUBESRPC a.B+c dom0\0")
    link = daemon.connect(515)
    assert process.stdin is not None
    process.stdin.write(b"question")
    end_input(process)
    assert whole(link, STDIN) == b"question"
    link.send(STDOUT, b"answer")
    link.send(STDERR, b"remark")
    end(link, 7)
    assert finish(process) == (7, b"answer", b"remark")
    # The daemon keeps the port until we are gone.
    assert wire.is_gone()


def test_codes_come_back_and_can_be_hidden(desk: Desk) -> None:
    """The low eight bits; `-E` makes all of them 0."""
    for given, options, expected in ((300, [], 44), (3, ["-E"], 0), (-1, [], 255)):
        process, link = desk.call(*options, "user:false", stdin=subprocess.DEVNULL)
        end(link, given)
        assert finish(process)[0] == expected
        desk.daemons.pop().close()


def test_a_qube_with_a_daemon_is_found_without_options(desk: Desk) -> None:
    """Below the root, where daemons have their sockets."""
    (desk.home / "run/qubes").mkdir()
    daemon = FakeDaemon(desk.home / "run/qubes", "work", WORK)
    desk.daemons.append(daemon)
    process = subprocess.Popen(
        [desk.home / "qrexec-client", "-d", "work", "user:true"],
        env={"CAISSON_ROOT": str(desk.home), "VCHAN_SOCKET_DIR": str(desk.home)},
        stdin=subprocess.DEVNULL,
    )
    desk.started.append(process)
    daemon.command(daemon.accept(), 513)
    daemon.streams = Streams(desk.home)
    end(daemon.connect(513), 4)
    assert process.wait(timeout=PATIENCE) == 4


def test_just_exec_waits_for_the_code_alone(desk: Desk) -> None:
    """JUST_EXEC on the wire; our input is not sent."""
    daemon = desk.daemon()
    process = desk.start("-e", "-d", "work", "user:QUBESRPC a.B dom0")
    assert daemon.command(daemon.accept(), 513)[0] == JUST_EXEC
    link = daemon.connect(513)
    assert whole(link, STDIN) == b""
    link.send(EXIT_CODE, code(127))
    assert process.wait(timeout=PATIENCE) == 127


def test_output_is_filtered_on_request(desk: Desk) -> None:
    """Off by default; `-t` for stdout, `-T` for stderr."""
    hostile, harmless = b"a\x1b[2J\xc3\n", b"a_[2J_\n"
    for options, stdout, stderr in (
        ([], hostile, hostile),
        (["-t"], harmless, hostile),
        (["-T"], hostile, harmless),
    ):
        process, link = desk.call(*options, "user:x", stdin=subprocess.DEVNULL)
        link.send(STDOUT, hostile)
        link.send(STDERR, hostile)
        end(link, 0)
        assert finish(process) == (0, stdout, stderr)
        desk.daemons.pop().close()


def test_data_before_stdin(desk: Desk) -> None:
    """`-p`, in messages of the size that was agreed on."""
    process, link = desk.call("-p", "first " * 20_000, "user:x")
    assert process.stdin is not None
    process.stdin.write(b"second")
    end_input(process)
    assert whole(link, STDIN) == b"first " * 20_000 + b"second"
    end(link, 0)
    assert process.wait(timeout=PATIENCE) == 0


def test_an_old_peer_gets_small_messages(desk: Desk) -> None:
    """Version 2 takes 4096 bytes at once."""
    daemon = desk.daemon()
    process = desk.start("-d", "work", "-p", "x" * 10_000, "user:x", stdin=subprocess.DEVNULL)
    daemon.command(daemon.accept(), 513)
    link = daemon.connect(513, version=2)
    sizes = []
    while body := link.receive()[1]:
        sizes.append(len(body))
    assert (sum(sizes), max(sizes)) == (10_000, 4096)
    end(link, 0)
    assert process.wait(timeout=PATIENCE) == 0


def test_a_local_command_speaks_with_the_remote_one(desk: Desk) -> None:
    """`-l`: a line for the shell; the remote code counts first, then the local one."""
    line = 'echo "to there"; read x; echo "got $x" >&2; exit 6'
    for remote, expected in ((0, 6), (5, 5)):
        process, link = desk.call("-l", line, "user:x", stdin=subprocess.DEVNULL)
        assert link.receive() == (STDIN, b"to there\n")
        link.send(STDOUT, b"answer\n")
        assert whole(link, STDIN) == b""
        end(link, remote)
        assert finish(process) == (expected, b"", b"got answer\n")
        desk.daemons.pop().close()


def test_a_local_service_speaks_with_the_remote_one(desk: Desk) -> None:
    """`-l QUBESRPC …` starts a service of the admin qube."""
    desk.service("a.Local", '#!/bin/sh\necho "$1 $QREXEC_REMOTE_DOMAIN"; exec cat >&2\n')
    process, link = desk.call("-l", "QUBESRPC a.Local+x work", "user:x", stdin=subprocess.DEVNULL)
    assert whole(link, STDIN) == b"x work\n"
    link.send(STDOUT, b"said")
    end(link, 0)
    assert finish(process) == (0, b"", b"said")


def test_stdin_may_be_a_socket_for_both_ways(desk: Desk) -> None:
    """As a service manager hands it over."""
    ours, theirs = socket.socketpair()
    process, link = desk.call("--use-stdin-socket", "user:x", stdin=theirs)
    theirs.close()
    ours.sendall(b"in")
    ours.shutdown(socket.SHUT_WR)
    assert whole(link, STDIN) == b"in"
    link.send(STDOUT, b"out")
    end(link, 0)
    assert ours.recv(10) == b"out"
    assert process.wait(timeout=PATIENCE) == 0
    ours.close()


def test_a_link_that_breaks_is_255(desk: Desk) -> None:
    """What came before is delivered."""
    process, link = desk.call("user:x", stdin=subprocess.DEVNULL)
    link.send(STDOUT, b"half")
    link.close()
    assert finish(process)[:2] == (255, b"half")


def test_a_qube_that_does_not_come_is_not_waited_for(desk: Desk) -> None:
    """`-w 1`: one second; nothing is left behind."""
    daemon = desk.daemon()
    process = desk.start("-w", "1", "-d", "work", "user:x")
    daemon.command(daemon.accept(), 513)
    result, _, stderr = finish(process)
    assert (result, stderr) == (1, b"error: the qube does not connect: timed out\n")
    assert not list(desk.home.glob("vchan.*"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"x",
        hello(2),
        hello(3) + b"\0" * 8,
        hello(3) + struct.pack("<IIII", EXEC_CMDLINE, 8, WORK, 512),
        hello(3) + struct.pack("<IIII", EXEC_CMDLINE, 8, WORK, 769),
        hello(3) + struct.pack("<IIII", JUST_EXEC, 8, WORK, 513),
        hello(3) + struct.pack("<IIIII", EXEC_CMDLINE, 12, WORK, 513, 0),
        hello(3) + struct.pack("<II", EXEC_CMDLINE, 0xFFFFFFFF),
    ],
    ids=lambda answer: answer.hex() or "nothing",
)
def test_a_daemon_that_makes_no_sense_is_a_failure(desk: Desk, answer: bytes) -> None:
    """Nothing is connected, and the reason is named."""
    daemon = desk.daemon()
    process = desk.start("-d", "work", "user:x")
    wire = daemon.accept_silently()
    wire.socket.sendall(answer)
    wire.socket.shutdown(socket.SHUT_WR)
    result, stdout, stderr = finish(process)
    assert (result, stdout) == (1, b"")
    assert stderr.startswith(b"error: the daemon")


def test_a_missing_daemon_is_a_failure(desk: Desk) -> None:
    """Where the directory was named, the broker is no substitute."""
    result, _, stderr = finish(desk.start("-d", "nosuch", "user:x"))
    assert result == 1
    assert f"`{desk.home}/qrexec.nosuch`: no such file".encode() in stderr


# The end of the qube.


def test_the_qube_is_killed_at_the_end(desk: Desk) -> None:
    """`-k`: after the call, by qubesd, and a qube that is gone already is no error."""
    answers = [b"0\0", b"2\0QubesVMNotStartedError\0\0not started\0", b"2\0QubesException\0\0no\0"]
    with socket.socket(socket.AF_UNIX) as qubesd:
        qubesd.bind(str(desk.home / "run/qubesd.sock"))
        qubesd.listen()
        qubesd.settimeout(PATIENCE)
        for answer in answers:
            process, link = desk.call("-k", "user:x", stdin=subprocess.DEVNULL)
            end(link, 5)
            with qubesd.accept()[0] as connection:
                assert connection.makefile("rb").read() == b"admin.vm.Kill dom0 name work\0"
                connection.sendall(answer)
            result, _, stderr = finish(process)
            assert result == 5
            assert (b"does not kill `work`: QubesException" in stderr) == (answer is answers[2])
            desk.daemons.pop().close()


def test_a_client_that_is_ended_lets_the_qube_know(desk: Desk) -> None:
    """SIGTERM closes the data link and the daemon's socket."""
    process, link = desk.call("-p", "x", "user:x")
    assert link.receive() == (STDIN, b"x")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) != 0
    assert link.is_gone()


# The real agent at the other end.


def test_the_real_agent_serves_what_the_client_asks(desk: Desk) -> None:
    """Client, a daemon's part, agent, service and back: bytes, errors and codes."""
    data = os.urandom(1 << 20) * 3
    with wire_agent(own=WORK, streams=Streams(desk.home)) as agent:
        agent.write_service("a.Sum", '#!/bin/sh\nsha256sum; echo "$1" >&2; exit 17\n')
        daemon = desk.daemon()
        outcomes = []
        for at, (options, service) in enumerate(
            [((), "a.Sum+arg"), ((), "a.Missing+"), (("-e",), "a.Sum+")]
        ):
            command = f"{agent.user}:QUBESRPC {service} dom0"
            process = desk.start(*options, "-d", "work", command)
            kind, _, _, line = daemon.command(daemon.accept(), 513 + at)
            agent.daemon.send(kind, numbers(0, 513 + at) + line)
            outcomes.append(finish(process, data))
        assert outcomes == [
            (17, f"{hashlib.sha256(data).hexdigest()}  -\n".encode(), b"arg\n"),
            (127, b"", b"error: the called qube has no service `a.Missing+`\n"),
            (0, b"", b""),
        ]
