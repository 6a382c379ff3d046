"""`qrexec-client-vm`: how a call ends, and what is told of it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from agent_rig import PATIENCE, Listener, link_clients, shut
from broker_desk import Desk, write_until_refused
from client_rig import finish

BROKEN_OUTPUTS = {
    "full": (">/dev/full", "no space left on device"),
    "closed": (">&-", "it is closed, or not open for that"),
    "read-only": ("1</dev/null", "it is closed, or not open for that"),
}


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
    """After the patience has ended, in which the caller is told once what is waited for."""
    link_clients(tmp_path)
    started = time.monotonic()
    command = [tmp_path / "qrexec-client-vm", f"--agent-socket={tmp_path}/none", "work", "a.B"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"waiting for the qrexec broker at `{tmp_path}/none`\n"
        f"error: cannot reach the qrexec broker at `{tmp_path}/none`: no such file or directory\n"
    )
    assert time.monotonic() - started > 4.5
