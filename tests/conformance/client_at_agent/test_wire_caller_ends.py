"""The caller's side of a data link: how a call ends, well or not."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from agent_desk import ENDS, Desk, code
from agent_rig import PATIENCE
from client_rig import finish
from wire_peer import EXIT_CODE, STDERR, STDIN, STDOUT, hello, message


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
