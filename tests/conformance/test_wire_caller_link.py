"""The caller's side of a data link: `qrexec-client-vm` at an agent of the wire protocol."""

from __future__ import annotations

import os
import pty
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_rig import BINARY, PATIENCE, link_clients, read_all
from wire_peer import (
    EXIT_CODE,
    OWN,
    PEER,
    RING,
    STDERR,
    STDIN,
    STDOUT,
    TRIGGER_SERVICE4,
    RingPeer,
    Streams,
    Wire,
    hello,
    joined,
    message,
    numbers,
    trigger,
)


class Desk:
    """An agent's trigger socket, and the clients that ask there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.streams = Streams(home / "v")
        self.streams.directory.mkdir()
        self.path = home / "agent.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(PATIENCE)
        self.listener.bind(str(self.path))
        self.listener.listen(16)
        self.started: list[subprocess.Popen[bytes]] = []
        self.wires: list[Wire] = []
        self.port = 513
        link_clients(home)

    def start(self, *arguments: str, by_shell: str = "", **popen: Any) -> subprocess.Popen[bytes]:
        """Start a client, by a shell where there is a redirection of its."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        variables = {"VCHAN_DOMAIN": str(OWN), "VCHAN_SOCKET_DIR": str(self.streams.directory)}
        command = [self.home / "qrexec-client-vm", f"--agent-socket={self.path}", *arguments]
        if by_shell:
            command = ["/bin/sh", "-c", f'exec "$@" {by_shell}', "sh", *command]
        variables |= popen.pop("variables", {})
        process = subprocess.Popen(command, bufsize=0, env=variables, **(options | popen))
        self.started.append(process)
        return process

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
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for wire in self.wires:
            wire.close()
        self.listener.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A fake agent's desk."""
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def code(number: int) -> bytes:
    """EXIT_CODE."""
    return message(EXIT_CODE, struct.pack("<i", number))


ENDS = message(STDOUT) + message(STDERR)


def finish(process: subprocess.Popen[bytes], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Wait for a client; its code, stdout and stderr."""
    out, err = process.communicate(stdin, timeout=PATIENCE)
    return process.returncode, out, err


def test_the_request_is_that_of_the_sheet(desk: Desk) -> None:
    """Ident `SOCKET`, every unused byte zero (QSB-009, QSB-106)."""
    process = desk.start("--source-qube=far", "$dispvm:x", "a.B+c")
    agent, body = desk.request()
    assert message(TRIGGER_SERVICE4, body) == trigger(b"a.B+c", b"@dispvm:x", b"far")
    agent.close()
    assert finish(process) == (126, b"", b"Request refused\n")


@pytest.mark.parametrize("length", [1, 3935, 3936, 64_999])
def test_services_of_any_length_can_be_asked_for(desk: Desk, length: int) -> None:
    """QSB-089: up to the most that fits; one more is not sent."""
    process = desk.start("work", "x" * length)
    agent, body = desk.request()
    assert body[160:] == b"x" * length + b"\0"
    agent.close()
    assert finish(process)[0] == 126


def test_too_long_a_service_is_not_asked_for(desk: Desk) -> None:
    """One byte more than fits."""
    assert finish(desk.start("work", "x" * 65_000))[0] == 1


def test_an_agent_that_dies_within_its_answer_is_no_refusal(desk: Desk) -> None:
    """Half of two numbers."""
    process = desk.start("work", "a.B")
    agent, _ = desk.request()
    agent.raw(numbers(PEER, 600)[:5])
    agent.close()
    assert finish(process)[0] == 255


def test_just_exec_has_no_form_on_the_wire(desk: Desk) -> None:
    """Rather than a call that waits."""
    returncode, _, err = finish(desk.start("-e", "work", "a.B"))
    assert returncode == 1
    assert err.startswith(b"error: ")


def test_a_whole_call(desk: Desk) -> None:
    """The client greets without being greeted; its input, both outputs, the code."""
    process = desk.start("work", "a.B")
    link, _ = desk.allow()
    assert link.exactly(12) == hello()
    link.raw(hello())
    assert process.stdin is not None
    process.stdin.write(b"question")
    assert link.receive() == (STDIN, b"question")
    process.stdin.close()
    process.stdin = None
    assert link.receive() == (STDIN, b"")
    link.raw(message(STDOUT, b"answer") + message(STDERR, b"oops") + ENDS + code(42))
    assert finish(process) == (42, b"answer", b"oops")


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (code(256), 0),
        (code(-1), 255),
        (code(300), 44),
        (message(EXIT_CODE), 255),
        (message(EXIT_CODE, b"\1\0\0"), 255),
        (message(EXIT_CODE, b"\7\0\0\0\1\2"), 7),
        (code(0) + code(7), 0),
        (code(7) + code(0), 7),
    ],
)
def test_codes_of_any_form(desk: Desk, sent: bytes, seen: int) -> None:
    """Too short is 255; of a long one the first four bytes count, of several the first."""
    process = desk.start("work", "a.B")
    desk.serve().raw(ENDS + sent)
    assert finish(process)[0] == seen


def test_the_code_ends_the_input(desk: Desk) -> None:
    """One STDIN end is sent, no more; the client does not wait for its own input."""
    process = desk.start("work", "a.B")
    link = desk.serve()
    link.raw(message(STDOUT, b"all") + ENDS + code(0))
    assert process.wait(PATIENCE) == 0
    assert link.rest() == [(STDIN, b"")]


def test_the_code_may_come_without_ends(desk: Desk) -> None:
    """What was said before it is still written."""
    process = desk.start("work", "a.B")
    desk.serve().raw(message(STDOUT, b"out") + message(STDERR, b"err") + code(3))
    assert finish(process) == (3, b"out", b"err")


def test_ends_of_streams_pass_before_the_code(desk: Desk) -> None:
    """The reader of our stdout sees its end while the call goes on; input still flows."""
    process = desk.start("work", "a.B")
    link = desk.serve()
    link.raw(message(STDOUT, b"out") + message(STDOUT))
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.read() == b"out"
    process.stdin.write(b"more")
    assert link.receive() == (STDIN, b"more")
    link.raw(message(STDERR) + code(0))
    assert process.wait(PATIENCE) == 0


def test_a_lost_link_is_255(desk: Desk) -> None:
    """With everything written that came before."""
    process = desk.start("work", "a.B")
    link = desk.serve()
    link.raw(message(STDOUT, b"half"))
    link.close()
    told = b"error: the connection to the other qube was lost\n"
    assert finish(process) == (255, b"half", told)


@pytest.mark.parametrize("remote", [0, 7])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">/dev/full", "no space left on device"),
        (">&-", "it is closed, or not open for that"),
        ("1</dev/null", "it is closed, or not open for that"),
    ],
)
def test_output_that_cannot_be_written_is_a_failure(
    desk: Desk, redirection: str, reason: str, remote: int
) -> None:
    """It is told once, the rest is taken all the same, and 1 stands where the service says 0."""
    process = desk.start("work", "a.B", by_shell=redirection)
    link = desk.serve()
    link.raw(message(STDOUT, b"x" * 60_000) * 40 + ENDS + code(remote))
    told = f"error: output cannot be written: {reason}\n"
    assert finish(process) == (remote or 1, b"", told.encode())


def test_a_reader_that_has_gone_is_a_quiet_end(desk: Desk) -> None:
    """As of any program before `head`."""
    reader, writer = os.pipe()
    os.close(reader)
    process = desk.start("work", "a.B", stdout=writer)
    os.close(writer)
    desk.serve().raw(message(STDOUT, b"x" * 60_000) + ENDS + code(0))
    assert finish(process)[::2] == (0, b"")


@pytest.mark.parametrize(
    "wrong", [struct.pack("<II", STDOUT, 65_537), message(0x200), message(0x999), hello()]
)
def test_a_peer_that_breaks_the_protocol(desk: Desk, wrong: bytes) -> None:
    """QSB-089: code 1, and a line that says so."""
    process = desk.start("work", "a.B")
    desk.serve().raw(wrong)
    returncode, out, err = finish(process)
    assert (returncode, out) == (1, b"")
    assert b"breaks the protocol" in err


@pytest.mark.parametrize(("wrong", "seen"), [(hello(1), 1), (message(STDIN, b"x"), 1), (b"", 255)])
def test_a_wrong_hello(desk: Desk, wrong: bytes, seen: int) -> None:
    """Nothing of our input is sent."""
    process = desk.start("work", "a.B")
    link, _ = desk.allow()
    link.raw(wrong)
    link.socket.shutdown(socket.SHUT_WR)
    assert finish(process, b"secret")[0] == seen
    assert link.exactly(12) == hello()
    assert link.is_gone()


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
    process.stdin.close()
    process.stdin = None
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
    process.stdin.close()
    process.stdin = None
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


# `qrexec-link`: the service's side, for a service that runs elsewhere.


class Bridge:
    """A `qrexec-link`, its four descriptors, and the caller's end of its link."""

    def __init__(self, desk: Desk) -> None:
        (desk.home / "qrexec-link").symlink_to(BINARY)
        desk.port += 1
        self.exit, theirs = os.pipe(), os.pipe()
        self.errors = theirs
        variables = {"VCHAN_DOMAIN": str(OWN), "VCHAN_SOCKET_DIR": str(desk.streams.directory)}
        script = f"exec {desk.home}/qrexec-link {PEER} {desk.port} 3<&{self.exit[0]} 4<&{theirs[0]}"
        with desk.streams.listen(PEER, OWN, desk.port) as listener:
            self.process = subprocess.Popen(
                ["/bin/bash", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=variables,
                pass_fds=(self.exit[0], theirs[0]),
                bufsize=0,
            )
            desk.started.append(self.process)
            self.link = Wire(listener.accept()[0])
        desk.wires.append(self.link)
        os.close(self.exit[0])
        os.close(theirs[0])
        assert self.link.greet() == 4


def test_a_service_elsewhere_is_joined_to_a_link(desk: Desk) -> None:
    """Its streams and its code; 0 once the caller was told everything."""
    bridge = Bridge(desk)
    link, process = bridge.link, bridge.process
    assert process.stdin is not None
    assert process.stdout is not None
    link.send(STDIN, b"in")
    assert process.stdout.read(2) == b"in"
    link.send(STDIN)
    assert process.stdout.read() == b""
    process.stdin.write(b"out")
    assert link.receive() == (STDOUT, b"out")
    os.write(bridge.errors[1], b"err")
    assert link.receive() == (STDERR, b"err")
    os.write(bridge.exit[1], b"4")
    os.write(bridge.exit[1], b"2\n")
    os.close(bridge.exit[1])
    process.stdin.close()
    assert link.receive() == (STDOUT, b"")
    os.close(bridge.errors[1])
    assert link.rest() == [(STDERR, b""), (EXIT_CODE, struct.pack("<i", 42))]
    assert process.wait(PATIENCE) == 0


def test_a_caller_that_vanishes_from_a_bridge(desk: Desk) -> None:
    """255, and the service elsewhere sees its input end."""
    bridge = Bridge(desk)
    bridge.link.close()
    assert bridge.process.stdout is not None
    assert bridge.process.stdout.read() == b""
    assert bridge.process.wait(PATIENCE) == 255
    os.close(bridge.exit[1])
    os.close(bridge.errors[1])


def test_a_code_that_is_none_is_told_as_255(desk: Desk) -> None:
    """Whoever runs the service failed to say how it ended."""
    bridge = Bridge(desk)
    assert bridge.process.stdin is not None
    bridge.process.stdin.close()
    os.close(bridge.errors[1])
    os.close(bridge.exit[1])
    found = bridge.link.rest()
    assert found[-1] == (EXIT_CODE, struct.pack("<i", 255))
    assert bridge.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("arguments", [[], ["1"], ["x", "513"], ["1", "-1"], ["1", "2", "3"]])
def test_usage_of_the_bridge(desk: Desk, arguments: list[str]) -> None:
    """Two numbers."""
    (desk.home / "qrexec-link").symlink_to(BINARY)
    command = [desk.home / "qrexec-link", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
