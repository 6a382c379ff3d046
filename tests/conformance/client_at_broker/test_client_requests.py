"""`qrexec-client-vm`: what is asked of the broker, and command lines that ask for nothing."""

from __future__ import annotations

import os

import pytest
from agent_rig import shut
from broker_desk import Desk
from client_rig import finish

from caisson.qrexec.wire import ClientCall, parse_client

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


# A local program, and other options.


def test_names_of_options_may_be_cut_short(desk: Desk) -> None:
    """As `getopt_long` takes them: while only one begins so."""
    desk.start("--pre=first", "--source=far", "work", "a.B")
    _, request, pipes = desk.answer()
    assert b"\0far" in request
    assert os.read(pipes.service[0], 5) == b"first"
    shut(pipes.service)
    assert finish(desk.start("--filter", "work", "a.B"))[0] == 2


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
