"""`qrexec-client-vm`, `qrexec-client` and `qubes-vmexec`: wire, streams, codes, texts."""

from __future__ import annotations

import hashlib
import os
import pty
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from agent_rig import (
    PATIENCE,
    Agent,
    Listener,
    Peer,
    Pipes,
    link_clients,
    read_all,
    running_agent,
    shut,
)

from caisson.qrexec.wire import AdminCall, ClientCall, parse_admin, parse_client

MEGABYTE = 1 << 20
BROKEN_OUTPUTS = {
    "full": (">/dev/full", "no space left on device"),
    "closed": (">&-", "it is closed, or not open for that"),
    "read-only": ("1</dev/null", "it is closed, or not open for that"),
}


class Desk:
    """A socket, and the clients that call at it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.listener = Listener(home / "qrexec")
        self.started: list[subprocess.Popen[bytes]] = []
        link_clients(home)

    def start(
        self, *arguments: str, name: str = "qrexec-client-vm", **popen: Any
    ) -> subprocess.Popen[bytes]:
        """Start a client; it speaks to this desk unless it is told otherwise."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        socket_option = "--agent-socket=" if name == "qrexec-client-vm" else "--socket="
        command = [self.home / name, f"{socket_option}{self.listener.path}", *arguments]
        process = subprocess.Popen(command, bufsize=0, **(options | popen))
        self.started.append(process)
        return process

    def start_by_shell(self, redirection: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a client with a redirection of a shell."""
        client = [self.home / "qrexec-client-vm", f"--agent-socket={self.listener.path}"]
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *client, *arguments],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

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
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A fake broker's desk."""
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def finish(
    process: subprocess.Popen[bytes], stdin: bytes | None = None
) -> tuple[int, bytes, bytes]:
    """Wait for a client; its code, stdout and stderr."""
    stdout, stderr = process.communicate(stdin, timeout=PATIENCE)
    return process.returncode, stdout, stderr


def end_input(process: subprocess.Popen[bytes]) -> None:
    """Close the client's stdin."""
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


def write_until_refused(descriptor: int) -> None:
    """Write until the reader is gone."""
    while True:
        os.write(descriptor, b"x" * 4096)


# What is asked.


def test_the_request_is_what_the_broker_reads(desk: Desk) -> None:
    """Target, service with argument, no flags."""
    process = desk.start("work", "a.B+c-d")
    peer, request, pipes = desk.answer(b"R")
    assert request == b"Cwork\0a.B+c-d\0"
    assert parse_client(request) == ClientCall("work", "a.B", "c-d", "")
    finish(process)
    shut(pipes.service)
    peer.close()


def test_a_relay_says_for_whom_it_calls(desk: Desk) -> None:
    """In a fourth field, which is there only then."""
    process = desk.start("--source-qube=far", "work", "a.B")
    peer, request, pipes = desk.answer(b"R")
    assert request == b"Cwork\0a.B\0\0far"
    assert parse_client(request) == ClientCall("work", "a.B", "", "", "far")
    finish(process)
    shut(pipes.service)
    peer.close()


@pytest.mark.parametrize(
    ("given", "sent"),
    [("", b""), ("@default", b"@default"), ("$dispvm:x", b"@dispvm:x"), ("@adminvm", b"@adminvm")],
)
def test_targets_are_sent_in_todays_spelling(desk: Desk, given: str, sent: bytes) -> None:
    """A dollar sign is the spelling of old scripts."""
    process = desk.start("--", given, "a.B")
    _, request, pipes = desk.answer(b"R")
    assert request == b"C" + sent + b"\0a.B\0"
    finish(process)
    shut(pipes.service)


def test_just_exec_is_a_flag(desk: Desk) -> None:
    """Nobody waits for the service then."""
    process = desk.start("-e", "work", "a.B")
    _, request, pipes = desk.answer(b"R")
    assert request == b"Cwork\0a.B\0e"
    finish(process)
    shut(pipes.service)


# How it ends.


def test_a_refusal_is_126_with_the_agreed_words(desk: Desk) -> None:
    """Scripts compare the line."""
    process = desk.start("work", "a.B")
    desk.listener.accept().send(b"R")
    assert finish(process) == (126, b"", b"Request refused\n")


def test_a_problem_is_told_without_control_characters(desk: Desk) -> None:
    """The broker's own code, and its words made harmless."""
    process = desk.start("work", "a.B")
    desk.listener.accept().send(b"E125\0no room\x1b[2J\nhint: wait")
    assert finish(process) == (125, b"", b"error: no room\\x1b[2J\nhint: wait\n")


def test_every_exit_code_is_passed_on(desk: Desk) -> None:
    """0 to 255, unchanged."""
    for code in range(0, 256, 5):
        process = desk.start("work", "a.B", stdin=subprocess.DEVNULL)
        peer, _, pipes = desk.answer()
        shut(pipes.service)
        peer.send(b"X%d" % code)
        assert finish(process) == (code, b"", b"")


@pytest.mark.parametrize("datagram", [b"", b"Z", b"X256", b"A", b"X1\0"])
def test_nonsense_from_the_broker_is_a_lost_connection(desk: Desk, datagram: bytes) -> None:
    """Never a success; `A` here comes without its pipes."""
    process = desk.start("work", "a.B")
    peer = desk.listener.accept()
    peer.receive()
    peer.send(datagram) if datagram else peer.close()
    assert finish(process)[0] == 255


def test_a_broker_that_vanishes_is_255(desk: Desk) -> None:
    """What was on the way still arrives."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], b"half")
    peer.close()
    code, stdout, stderr = finish(process)
    assert (code, stdout) == (255, b"half")
    assert stderr == b"error: the qrexec broker went away during the call\n"
    shut(pipes.service)


def test_a_lost_qube_is_told_and_a_services_own_255_is_not(desk: Desk) -> None:
    """Only the broker knows which of the two it was."""
    for datagram, code, told in (
        (b"E255\0the link was lost", 255, b"error: the link was lost\n"),
        (b"E125\0", 125, b"error: the call failed, and the broker gives no reason\n"),
        (b"X255", 255, b""),
    ):
        process = desk.start("work", "a.B")
        peer, _, pipes = desk.answer()
        shut(pipes.service)
        peer.send(datagram)
        assert finish(process) == (code, b"", told)


@pytest.mark.parametrize("large", [False, True], ids=["little", "much"])
@pytest.mark.parametrize("remote", [0, 7])
@pytest.mark.parametrize("broken", sorted(BROKEN_OUTPUTS))
def test_output_that_cannot_be_written_is_a_failure(
    desk: Desk, broken: str, remote: int, large: bool
) -> None:
    """A full disk or a closed stdout is told; 1 stands where the service had no code of its own."""
    redirection, reason = BROKEN_OUTPUTS[broken]
    process = desk.start_by_shell(redirection, "work", "a.B")
    peer, _, pipes = desk.answer()
    if large:
        with pytest.raises(BrokenPipeError):
            write_until_refused(pipes.service[1])
    else:
        os.write(pipes.service[1], b"lost\n")
    shut(pipes.service)
    peer.send(b"X%d" % remote)
    told = f"error: output cannot be written: {reason}\n"
    assert finish(process) == (remote or 1, b"", told.encode())


def test_a_closed_stdout_that_nothing_is_written_to_is_no_failure(desk: Desk) -> None:
    """Nothing was lost."""
    process = desk.start_by_shell(">&-", "work", "a.B")
    peer, _, pipes = desk.answer()
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process) == (0, b"", b"")


def test_a_reader_that_has_gone_is_a_quiet_end(desk: Desk) -> None:
    """As of any program before `head`."""
    reader, writer = os.pipe()
    os.close(reader)
    process = desk.start("work", "a.B", stdout=writer)
    os.close(writer)
    peer, _, pipes = desk.answer()
    with pytest.raises(BrokenPipeError):
        write_until_refused(pipes.service[1])
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process)[::2] == (0, b"")


def test_a_client_waits_for_a_broker_that_restarts(desk: Desk) -> None:
    """Up to five seconds."""
    desk.listener.remove()
    process = desk.start("work", "a.B")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    desk.listener = Listener(desk.home / "qrexec")
    desk.listener.accept().send(b"R")
    assert finish(process)[0] == 126


def test_no_broker_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    """After the patience has ended."""
    link_clients(tmp_path)
    started = time.monotonic()
    command = [tmp_path / "qrexec-client-vm", f"--agent-socket={tmp_path}/none", "work", "a.B"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert f"`{tmp_path}/none`: no such file or directory" in done.stderr.decode()
    assert time.monotonic() - started > 4.5


# Streams.


def test_our_end_of_input_is_the_services(desk: Desk) -> None:
    """Half-close: output still flows."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    assert process.stdin is not None
    process.stdin.write(b"question")
    end_input(process)
    assert read_all(pipes.service[0]) == b"question"
    os.write(pipes.service[1], b"answer")
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process) == (0, b"answer", b"")


def test_a_service_that_reads_nothing_does_no_harm(desk: Desk) -> None:
    """Its closed stdin is no signal to the client, and whoever writes to us learns it."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    shut(pipes.service, 0)
    assert process.stdin is not None
    with pytest.raises(BrokenPipeError):
        write_until_refused(process.stdin.fileno())
    end_input(process)
    os.write(pipes.service[1], b"out")
    os.write(pipes.service[2], b"err")
    shut(pipes.service)
    peer.send(b"X7")
    assert finish(process) == (7, b"out", b"err")


def test_output_that_comes_after_the_end_is_waited_for(desk: Desk) -> None:
    """A grandchild may hold stdout; our own stdin is not waited for."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    peer.send(b"X3")
    assert read_all(pipes.service[0]) == b""
    os.write(pipes.service[1], b"late")
    shut(pipes.service, 1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    os.write(pipes.service[2], b"later")
    shut(pipes.service)
    assert process.wait(timeout=PATIENCE) == 3
    assert finish(process) == (3, b"late", b"later")


def test_a_reader_that_leaves_reaches_the_service(desk: Desk) -> None:
    """As in a pipeline that ends in `head`."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    assert process.stdout is not None
    process.stdout.close()
    with pytest.raises(BrokenPipeError):
        write_until_refused(pipes.service[1])
    shut(pipes.service)
    peer.send(b"X0")
    assert process.wait(timeout=PATIENCE) == 0


def test_stdin_may_be_closed_or_empty(desk: Desk) -> None:
    """Neither is an error."""
    shell = f"exec {desk.home}/qrexec-client-vm --agent-socket={desk.listener.path} work a.B"
    for redirection in ("<&-", "</dev/null"):
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"{shell} {redirection}"], stdout=subprocess.PIPE
        )
        peer, _, pipes = desk.answer()
        assert read_all(pipes.service[0]) == b""
        os.write(pipes.service[1], b"ok")
        shut(pipes.service)
        peer.send(b"X0")
        assert finish(process)[:2] == (0, b"ok")


@pytest.mark.parametrize("kind", ["pipe", "file", "append"])
@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
def test_large_streams_arrive_whole(desk: Desk, kind: str, filtered: bool) -> None:
    """Both ways at once, through pipes and files, spliced or copied."""
    data = os.urandom(MEGABYTE) * 24
    seen = bytes(b if 32 <= b < 127 or b in b"\7\b\t\n\r" else ord("_") for b in range(256))
    source, sink = desk.home / "in", desk.home / "out"
    source.write_bytes(data)
    options: dict[str, Any] = {}
    files: list[IO[bytes]] = []
    if kind != "pipe":
        files = [source.open("rb"), sink.open("wb" if kind == "file" else "ab")]
        options = {"stdin": files[0], "stdout": files[1]}
    process = desk.start(*(["-t"] if filtered else []), "work", "a.B", **options)
    for file in files:
        file.close()
    peer, _, pipes = desk.answer()
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read_all(pipes.service[0])))
    reader.start()

    def write() -> None:
        at = 0
        while at < len(data):
            at += os.write(pipes.service[1], data[at : at + 100_000])
        shut(pipes.service, 1, 2)
        reader.join()
        peer.send(b"X0")

    writer = threading.Thread(target=write)
    writer.start()
    code, stdout, _ = finish(process, data if kind == "pipe" else None)
    writer.join()
    shut(pipes.service, 0)
    output = stdout if kind == "pipe" else sink.read_bytes()
    expected = data.translate(seen) if filtered else data
    assert code == 0
    assert hashlib.sha256(received[0]).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(output).digest() == hashlib.sha256(expected).digest()


def test_the_flags_of_our_own_descriptors_stay(desk: Desk) -> None:
    """They are shared with the shell: non-blocking mode there would break it."""
    stdin, silent = os.pipe()
    read, stdout = os.pipe()
    process = desk.start("-t", "work", "a.B", stdin=stdin, stdout=stdout)
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], b"x")
    assert os.read(read, 1) == b"x"
    assert os.get_blocking(stdin)
    assert os.get_blocking(stdout)
    shut(pipes.service)
    shut([stdin, silent, read, stdout])
    peer.send(b"X0")
    assert process.wait(timeout=PATIENCE) == 0


# Terminals.


def through_terminal(desk: Desk, *arguments: str) -> bytes:
    """What a terminal shows of hostile output."""
    master, slave = pty.openpty()
    process = desk.start(*arguments, "work", "a.B", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], b"out\x1b[2J\x9b1m\xc3\xa9.")
    shut(pipes.service, 1)
    shown = b""
    while not shown.endswith(b"."):
        shown += os.read(master, 100)
    os.write(pipes.service[2], b"err\x1b]0;x\a.")
    shut(pipes.service)
    while shown.count(b".") < 2:
        shown += os.read(master, 100)
    peer.send(b"X0")
    assert process.wait(timeout=PATIENCE) == 0
    os.close(master)
    return shown


def test_a_terminal_is_protected_by_default(desk: Desk) -> None:
    """Escape sequences of another qube do not reach it."""
    assert through_terminal(desk) == b"out_[2J_1m__.err_]0;x\a."


def test_the_protection_can_be_switched_off(desk: Desk) -> None:
    """For those who know."""
    options = ("--no-filter-escape-chars-stdout", "--no-filter-escape-chars-stderr")
    assert through_terminal(desk, *options) == b"out\x1b[2J\x9b1m\xc3\xa9.err\x1b]0;x\a."


def test_no_filter_where_there_is_no_terminal(desk: Desk) -> None:
    """Data stay data."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], bytes(range(256)))
    os.write(pipes.service[2], bytes(range(256)))
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process) == (0, bytes(range(256)), bytes(range(256)))


# A local program, and other options.


def write_program(desk: Desk, text: str) -> str:
    """A local program."""
    path = desk.home / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_local_program_speaks_with_the_service(desk: Desk) -> None:
    """It has the pipes themselves, and our own descriptors as saved ones."""
    program = write_program(
        desk, 'echo "$#:$1"; read line; eval "echo got $line >&$SAVED_FD_1"; echo local >&2'
    )
    process = desk.start("work", "a.B", program, "one two")
    peer, _, pipes = desk.answer()
    assert os.read(pipes.service[0], 100) == b"1:one two\n"
    os.write(pipes.service[1], b"answer\n")
    os.write(pipes.service[2], b"remote\n")
    assert read_all(pipes.service[0]) == b""
    shut(pipes.service)
    peer.send(b"X0")
    code, stdout, stderr = finish(process)
    assert (code, stdout) == (0, b"got answer\n")
    assert sorted(stderr.splitlines()) == [b"local", b"remote"]


@pytest.mark.parametrize(("remote", "local", "code"), [(0, 4, 4), (5, 4, 5), (0, 0, 0), (6, 0, 6)])
def test_the_remote_code_counts_before_the_local_one(
    desk: Desk, remote: int, local: int, code: int
) -> None:
    """The local program's code is the result only where the remote one is 0."""
    process = desk.start("work", "a.B", write_program(desk, f"cat >/dev/null; exit {local}"))
    peer, _, pipes = desk.answer()
    peer.send(b"X%d" % remote)
    shut(pipes.service)
    assert finish(process)[0] == code


def test_a_local_program_that_is_missing_is_127(desk: Desk) -> None:
    """And no call is made for it; a name alone gets a hint, for PATH does not count."""
    for program, hint in (("/nonexistent", b""), ("cat", b"hint: give its full path, as in")):
        code, _, stderr = finish(desk.start("work", "a.B", program))
        assert code == 127
        first, _, rest = stderr.partition(b"\n")
        told = f"error: cannot start `{program}`: no such file or directory"
        assert first == told.encode()
        assert rest.startswith(hint)
        assert bool(rest) == bool(hint)
    assert not desk.listener.is_called()


def test_no_local_program_starts_before_the_call_is_allowed(desk: Desk) -> None:
    """A refused call has no effect here either."""
    process = desk.start("work", "a.B", write_program(desk, f"touch {desk.home}/ran"))
    desk.listener.accept().send(b"R")
    assert finish(process)[0] == 126
    assert not (desk.home / "ran").exists()


def test_prefix_data_comes_first(desk: Desk) -> None:
    """However long it is."""
    prefix = "p" * 100_000
    process = desk.start(f"--prefix-data={prefix}", "work", "a.B")
    peer, _, pipes = desk.answer()
    assert process.stdin is not None
    process.stdin.write(b"rest")
    end_input(process)
    assert read_all(pipes.service[0]) == prefix.encode() + b"rest"
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process)[0] == 0


def test_prefix_data_of_a_local_program_is_whole(desk: Desk) -> None:
    """The longest that an argument can be, before a byte of the program's."""
    prefix = "p" * 131_000
    process = desk.start(f"-p{prefix}", "work", "a.B", write_program(desk, "printf rest"))
    peer, _, pipes = desk.answer()
    assert read_all(pipes.service[0]) == prefix.encode() + b"rest"
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process)[0] == 0


def test_names_of_options_may_be_cut_short(desk: Desk) -> None:
    """As `getopt_long` takes them: while only one begins so."""
    desk.start("--pre=first", "--source=far", "work", "a.B")
    _, request, pipes = desk.answer()
    assert b"\0far" in request
    assert os.read(pipes.service[0], 5) == b"first"
    shut(pipes.service)
    assert finish(desk.start("--filter", "work", "a.B"))[0] == 2


def test_stdin_may_be_a_socket_for_both_ways(desk: Desk) -> None:
    """Output comes back on it, and its end as a shutdown."""
    ours, theirs = socket.socketpair()
    process = desk.start("--use-stdin-socket", "work", "a.B", stdin=theirs)
    theirs.close()
    peer, _, pipes = desk.answer()
    ours.sendall(b"question")
    ours.shutdown(socket.SHUT_WR)
    assert read_all(pipes.service[0]) == b"question"
    os.write(pipes.service[1], b"answer")
    shut(pipes.service)
    assert ours.makefile("rb").read() == b"answer"
    peer.send(b"X0")
    assert finish(process) == (0, b"", b"")
    ours.close()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["work"], 2),
        (["work", ""], 2),
        (["--nonsense", "work", "a.B"], 2),
        (["x" * 64, "a.B"], 2),
        (["-p", "a", "-p", "b", "work", "a.B"], 2),
        (["--use-stdin-socket", "work", "a.B", "/bin/true"], 2),
        (["--use-stdin-socket", "work", "a.B"], 1),
        (["--buffer-size=x", "work", "a.B"], 1),
        (["--source-qube=", "work", "a.B"], 2),
        (["--source-qube=" + "x" * 64, "work", "a.B"], 2),
        (["-s", "far", "--source-qube=far", "work", "a.B"], 2),
        (["work", "a" * 70_000], 1),
    ],
)
def test_wrong_command_lines_are_named(desk: Desk, arguments: list[str], code: int) -> None:
    """Before anything is sent."""
    result, stdout, stderr = finish(desk.start(*arguments))
    assert (result, stdout) == (code, b"")
    assert stderr.startswith(b"error: ")


@pytest.mark.parametrize("name", ["qrexec-client-vm", "qrexec-client"])
def test_help_is_data(desk: Desk, name: str) -> None:
    """On stdout, with 0."""
    code, stdout, stderr = finish(desk.start("--help", name=name))
    assert (code, stderr) == (0, b"")
    assert stdout.startswith(b"usage: " + name.encode())


# The admin qube's client.


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["-d", "work", "DEFAULT:ls -l"], b"Dwork\0\0ls -l"),
        (["-d", "work", "root:nogui:a:b"], b"Dwork\0root\0a:b"),
        (["-d", "work", "user:QUBESRPC a.B+c dom0"], b"Dwork\0user\0QUBESRPC a.B+c dom0"),
        (["-e", "-d", "work", "u:QUBESRPC a.B dom0"], b"Jwork\0u\0QUBESRPC a.B dom0"),
        (["-edwork", "u:ls"], b"Jwork\0u\0(ls\n) </dev/null >/dev/null 2>&1 &"),
    ],
)
def test_requests_of_the_admin_qube(desk: Desk, arguments: list[str], request_: bytes) -> None:
    """As the broker reads them."""
    process = desk.start(*arguments, name="qrexec-client")
    _, request, pipes = desk.answer(b"R")
    assert request == request_
    assert isinstance(parse_admin(request), AdminCall)
    assert finish(process)[0] == 126
    shut(pipes.service)


def test_the_admin_client_finds_its_socket_below_the_root(tmp_path: Path) -> None:
    """`CAISSON_ROOT` moves everything."""
    directory = tmp_path / "run/qubes/broker/dom0"
    directory.mkdir(parents=True)
    listener = Listener(directory / "qrexec")
    link_clients(tmp_path)
    command = [tmp_path / "qrexec-client", "-d", "work", "root:true"]
    process = subprocess.Popen(command, env={"CAISSON_ROOT": str(tmp_path)})
    peer = listener.accept()
    assert peer.receive() == b"Dwork\0root\0true"
    peer.send(b"X9")
    assert process.wait(timeout=PATIENCE) == 9
    listener.close()


def test_the_admin_client_can_hide_the_code(desk: Desk) -> None:
    """`-E`, for callers that only want to know that it ran."""
    process = desk.start("-E", "-d", "work", "root:false", name="qrexec-client")
    desk.listener.accept().send(b"X1")
    assert finish(process)[0] == 0


def test_a_command_of_the_admin_qube_speaks_with_the_remote_one(desk: Desk) -> None:
    """`-l`, through the broker too; a service in its place is refused, not dropped."""
    process = desk.start("-d", "work", "-l", "read x; echo $x; exit 4", "u:x", name="qrexec-client")
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], b"line\n")
    assert read_all(pipes.service[0]) == b"line\n"
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process)[0] == 4
    process = desk.start("-d", "work", "-l", "QUBESRPC a.B dom0", "u:x", name="qrexec-client")
    assert finish(process)[0] == 125


def test_the_admin_client_kills_the_qube_at_the_end(desk: Desk) -> None:
    """`-k`, through the broker too: qubesd is asked once the call has ended."""
    (desk.home / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as qubesd:
        qubesd.bind(str(desk.home / "run/qubesd.sock"))
        qubesd.listen()
        qubesd.settimeout(PATIENCE)
        environment = {"CAISSON_ROOT": str(desk.home)}
        process = desk.start("-k", "-d", "work", "u:x", name="qrexec-client", env=environment)
        desk.listener.accept().send(b"X5")
        with qubesd.accept()[0] as connection:
            assert connection.makefile("rb").read() == b"admin.vm.Kill dom0 name work\0"
            connection.sendall(b"0\0")
        assert finish(process)[0] == 5


@pytest.mark.parametrize("arguments", [["root:true"], ["-d", "work"], ["-d", "work", "true"]])
def test_wrong_command_lines_of_the_admin_client(desk: Desk, arguments: list[str]) -> None:
    """Usage errors are 2."""
    assert finish(desk.start(*arguments, name="qrexec-client"))[0] == 2


# VMExec.


def vmexec(home: Path, *arguments: str, **run: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the decoder."""
    command = [home / "qubes-vmexec", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE, **run)


def test_vmexec_runs_what_its_argument_spells(tmp_path: Path) -> None:
    """Along PATH, with its own stdio."""
    link_clients(tmp_path)
    done = vmexec(tmp_path, "printf+-5B-25s-5D+a--b++-C3-A9")
    assert (done.returncode, done.stdout) == (0, "[a-b][][é]".encode())
    assert vmexec(tmp_path, "cat", input=b"through").stdout == b"through"
    assert vmexec(tmp_path, "sh+--c+exit-207").returncode == 7
    assert vmexec(tmp_path, "/etc/qubes-rpc/qubes.VMExec", "echo+x").stdout == b"x\n"


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        ("-", 1),
        ("a-2f", 1),
        ("a b", 1),
        ("ls+-00", 1),
        ("nonexistent.program", 127),
        ("", 127),
        ("-2Fetc", 126),
    ],
)
def test_vmexec_refuses_other_spellings(tmp_path: Path, encoded: str, code: int) -> None:
    """And says what it could not run."""
    link_clients(tmp_path)
    done = vmexec(tmp_path, encoded)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"error: ")


# Both ends together.


def relay(desk: Desk, agent: Agent) -> None:
    """One call from a client to the agent, as the broker makes it."""
    peer = desk.listener.accept()
    call = parse_client(peer.receive())
    assert isinstance(call, ClientCall)
    pipes = Pipes.make()
    descriptor = f"{call.service}+{call.argument}"
    peer.send(b"A", pipes.caller)
    shut(pipes.caller)
    code = agent.code_of(agent.service(descriptor, pipes, flags=call.flags))
    peer.send(b"X%d" % code)


def test_a_whole_call(desk: Desk) -> None:
    """Client, broker's part, agent, service and back."""
    (desk.home / "agent").mkdir()
    with running_agent(desk.home / "agent") as agent:
        agent.write_service("a.Hash", "#!/bin/sh\nsha256sum; echo $1 >&2; exit 17\n")
        process = desk.start("work", "a.Hash+arg", stdin=subprocess.PIPE)
        thread = threading.Thread(target=relay, args=(desk, agent))
        thread.start()
        data = os.urandom(MEGABYTE) * 32
        code, stdout, stderr = finish(process, data)
        thread.join()
        assert (code, stderr) == (17, b"arg\n")
        assert stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()

        process = desk.start("work", "a.Missing")
        relay(desk, agent)
        code, _, stderr = finish(process)
        assert code == 127
        assert stderr == b"error: there is no service `a.Missing+` in this qube\n"

        process = desk.start("-e", "work", "a.Hash")
        relay(desk, agent)
        assert finish(process) == (0, b"", b"")
