"""The caller's side of a data link: bytes both ways, through filters and local programs."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from agent_desk import ENDS, Desk, code
from agent_rig import PATIENCE, read_all
from client_rig import end_input, finish
from wire_peer import RING, STDERR, STDIN, STDOUT, RingPeer, hello, joined, message


def test_a_whole_call(desk: Desk) -> None:
    """The client greets without being greeted; its input, both outputs, the code."""
    process = desk.start("work", "a.B")
    link, _ = desk.allow()
    assert link.exactly(12) == hello()
    link.raw(hello())
    assert process.stdin is not None
    process.stdin.write(b"question")
    assert link.receive() == (STDIN, b"question")
    end_input(process)
    assert link.receive() == (STDIN, b"")
    link.raw(message(STDOUT, b"answer") + message(STDERR, b"oops") + ENDS + code(42))
    assert finish(process) == (42, b"answer", b"oops")


def test_swapped_types_are_output(desk: Desk) -> None:
    """STDIN to a caller counts as STDOUT."""
    process = desk.start("work", "a.B")
    desk.serve().raw(message(STDIN, b"out") + message(STDIN) + message(STDERR) + code(0))
    assert finish(process)[:2] == (0, b"out")


def test_messages_are_as_small_as_the_peer_needs(desk: Desk) -> None:
    """4096 bytes for protocol 2."""
    process = desk.start("work", "a.B")
    link = desk.serve(version=2)
    assert process.stdin is not None
    process.stdin.write(b"x" * 20_000)
    end_input(process)
    found = []
    while (one := link.receive()) != (STDIN, b""):
        found.append(one)
    assert joined(found, STDIN) == b"x" * 20_000
    assert max(len(body) for _, body in found) == 4096
    link.raw(ENDS + code(0))
    assert finish(process)[0] == 0


def test_prefix_comes_before_stdin(desk: Desk) -> None:
    """And after HELLO."""
    process = desk.start("-p", "first ", "work", "a.B")
    link = desk.serve()
    assert process.stdin is not None
    process.stdin.write(b"second")
    end_input(process)
    found = []
    while (one := link.receive()) != (STDIN, b""):
        found.append(one)
    assert joined(found, STDIN) == b"first second"
    link.raw(ENDS + code(0))
    assert finish(process)[0] == 0


def test_filters(desk: Desk) -> None:
    """QSB-087: on a terminal by default; where asked for; never otherwise."""
    nasty = b"a\x1b[2J\x9b\xc3\xa4\tb\n"
    clean = b"a_[2J___\tb\n"
    for options, out, err in (
        ((), nasty, nasty),
        (("-t",), clean, nasty),
        (("-T",), nasty, clean),
        (("-tT",), clean, clean),
    ):
        process = desk.start(*options, "work", "a.B")
        desk.serve().raw(message(STDOUT, nasty) + message(STDERR, nasty) + ENDS + code(0))
        assert finish(process) == (0, out, err)
    master, slave = pty.openpty()
    process = desk.start("work", "a.B", stdout=slave)
    desk.serve().raw(message(STDOUT, nasty) + ENDS + code(0))
    assert process.wait(PATIENCE) == 0
    assert os.read(master, 100).replace(b"\r", b"") == clean
    os.close(slave)
    os.close(master)


def test_a_local_program_starts_only_once_the_call_is_allowed(desk: Desk, tmp_path: Path) -> None:
    """It speaks with the service; the client's own stdin and stdout come along."""
    mark = tmp_path / "mark"
    script = (
        f"touch {mark}; read line; echo got $line >&$SAVED_FD_1; echo reply $QREXEC_AGENT_PID;"
        " cat >/dev/null; exit 9"
    )
    process = desk.start("work", "a.B", "/bin/bash", "-c", script)
    agent, _ = desk.request()
    assert not mark.exists()
    agent.close()
    assert finish(process)[0] == 126
    assert not mark.exists()
    process = desk.start("work", "a.B", "/bin/bash", "-c", script)
    link = desk.serve()
    link.send(STDOUT, b"question\n")
    assert link.receive() == (STDIN, b"reply %d\n" % process.pid)
    link.raw(ENDS)
    assert link.receive() == (STDIN, b"")
    link.raw(code(0))
    returncode, out, _ = finish(process)
    assert (returncode, out) == (9, b"got question\n")


@pytest.mark.parametrize(("remote", "local", "seen"), [(0, 5, 5), (3, 5, 3), (4, 0, 4)])
def test_codes_of_local_programs(desk: Desk, remote: int, local: int, seen: int) -> None:
    """Remote where it is not 0, else local; whoever ends first."""
    for wait in ("", "cat >/dev/null;"):
        process = desk.start("work", "a.B", "/bin/sh", "-c", f"{wait} exit {local}")
        desk.serve().raw(ENDS + code(remote))
        assert finish(process)[0] == seen


def test_socket_that_is_shared_stays_whole_for_the_next_writer(desk: Desk):
    """A script that is a service has a socket as its output, and may call others one by one."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        first = desk.start("vault", "my.Service", stdin=subprocess.DEVNULL, stdout=theirs)
        link = desk.serve()
        link.raw(message(STDOUT, b"one,") + ENDS + code(0))
        assert finish(first)[0] == 0
        theirs.sendall(b"two")
        theirs.close()
        assert ours.makefile("rb").read() == b"one,two"


def test_stdin_as_a_socket_takes_both(desk: Desk) -> None:
    """Input and output over descriptor 0; its reader sees the end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    process = desk.start("--use-stdin-socket", "work", "a.B", stdin=theirs)
    theirs.close()
    link = desk.serve()
    ours.sendall(b"ping")
    assert link.receive() == (STDIN, b"ping")
    link.raw(message(STDOUT, b"pong") + message(STDOUT))
    assert ours.recv(4, socket.MSG_WAITALL) == b"pong"
    assert ours.recv(1) == b""
    ours.shutdown(socket.SHUT_WR)
    assert link.receive() == (STDIN, b"")
    link.raw(message(STDERR) + code(2))
    assert process.wait(PATIENCE) == 2
    ours.close()


def test_a_reader_that_left_stops_nothing_else(desk: Desk) -> None:
    """The rest of the output is dropped; the code comes through."""
    process = desk.start("work", "a.B")
    link = desk.serve()
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    for _ in range(32):
        link.send(STDOUT, b"x" * 65_536)
    link.raw(ENDS + code(6))
    assert process.wait(PATIENCE) == 6


def test_output_that_nobody_reads_does_not_stop_the_input(desk: Desk) -> None:
    """The two directions never wait for one another, shared pipes and all."""
    process = desk.start("work", "a.B")
    link = desk.serve()
    flags = os.get_blocking(process.stdout.fileno()) if process.stdout else None
    stop = threading.Event()

    def flood() -> None:
        for _ in range(64):
            link.send(STDOUT, b"x" * 65_536)
        link.raw(ENDS)
        stop.set()

    flooder = threading.Thread(target=flood)
    flooder.start()
    assert process.stdin is not None
    assert process.stdout is not None
    total = 0
    for _ in range(20):
        process.stdin.write(b"y" * 100_000)
        while total < 100_000:
            kind, body = link.receive()
            assert kind == STDIN
            total += len(body)
        total -= 100_000
    assert not stop.is_set()
    assert len(read_all(process.stdout.fileno())) == 64 * 65_536
    flooder.join()
    link.raw(code(0))
    assert process.wait(PATIENCE) == 0
    assert os.get_blocking(process.stdout.fileno()) is flags


def test_both_directions_at_once_over_small_rings(desk: Desk) -> None:
    """An upstream peer is the client of our stream, and holds 4096 bytes each way."""
    process = desk.start("work", "a.B")
    link, _ = desk.allow()
    ring = RingPeer(link.socket)
    data = os.urandom(1_000_000)

    def echo() -> None:
        while (one := ring.wire.receive()) != (STDIN, b""):
            for at in range(0, len(one[1]), RING - 8):
                ring.wire.send(STDOUT, one[1][at : at + RING - 8])
        ring.wire.raw(ENDS + code(0))

    try:
        assert ring.wire.greet() == 4
        echoer = threading.Thread(target=echo)
        echoer.start()
        assert finish(process, data)[:2] == (0, data)
        echoer.join()
    finally:
        ring.close()
