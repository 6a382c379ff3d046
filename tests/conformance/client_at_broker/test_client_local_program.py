"""`qrexec-client-vm`: a program in place of its streams, data before them, a socket for both."""

from __future__ import annotations

import os
import socket

import pytest
from agent_rig import read_all, shut
from broker_desk import Desk
from client_rig import end_input, finish


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
