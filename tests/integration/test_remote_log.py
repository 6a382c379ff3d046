"""Service `qubes.Log` and `qvm-log`, over pipes."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import subprocess
from pathlib import Path

import pytest
from agent_rig import PATIENCE, eventually
from opener_rig import Desk

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (\w+): (.*)")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk whose log is a directory of its own."""
    desk = Desk(tmp_path)
    desk.environment["QUBES_LOG_DIRECTORY"] = str(tmp_path / "var/remote")
    desk.service("qubes.Log", "exec qubes-log-sink")
    return desk


def kept(desk: Desk, source: str = "work") -> list[tuple[str, str]]:
    """Severities and texts of a source's log."""
    lines = (desk.home / f"var/remote/{source}.log").read_text().splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert None not in found, lines
    return [match.groups() for match in found if match]  # type: ignore[misc]


def test_each_line_is_kept_and_answered(desk: Desk) -> None:
    """`OK` at the start, and once a line; the last needs no end."""
    outcome = desk.run("qubes-log-sink", stdin=b"<11>bad\n\n<191>far\nend")
    assert (outcome.code, outcome.stdout) == (0, b"OK\n" * 5)
    assert kept(desk) == [("err", "bad"), ("notice", ""), ("debug", "far"), ("notice", "end")]
    assert desk.run("qubes-log-sink").stdout == b"OK\n"


def test_no_text_steers_a_terminal_or_forges_a_line(desk: Desk) -> None:
    """Escape sequences, other controls, wrong priorities (QSB-087)."""
    untrusted = b"<13>a\x1b[2J\r\x00\n<999>b\n" + "\u202e\\".encode() + b"\n"
    assert desk.run("qubes-log-sink", stdin=untrusted).code == 0
    assert [text for _, text in kept(desk)] == [
        "a\\x1b[2J\\x0d\\x00",
        "<999>b",
        "\\xe2\\x80\\xae\\\\",
    ]


def test_a_line_beyond_the_bound_is_cut_and_answered_once(desk: Desk) -> None:
    """4096 bytes are kept; what follows the long line is a line of its own."""
    untrusted = b"x" * 4096 + b"\n" + b"y" * 100_000 + b"\nz\n"
    assert desk.run("qubes-log-sink", stdin=untrusted).stdout == b"OK\n" * 4
    assert [text for _, text in kept(desk)] == ["x" * 4096, "y" * 4096 + " [cut]", "z"]


@pytest.mark.parametrize("source", ["", ".", "..", "../x", "a/b", "a b", "a\x1b[0m"])
def test_only_a_name_becomes_a_file(desk: Desk, source: str) -> None:
    """The broker gives no other; if it did, nothing would be written."""
    outcome = desk.run("qubes-log-sink", stdin=b"x\n", QREXEC_REMOTE_DOMAIN=source)
    assert (outcome.code, outcome.stdout) == (1, b"")
    assert not (desk.home / "var").exists()


def test_lines_of_several_calls_at_once_stay_whole(desk: Desk) -> None:
    """Four writers of one source lose and mix nothing."""
    writers = [desk.start("qubes-log-sink") for _ in range(4)]
    try:
        for number, writer in enumerate(writers):
            assert writer.stdin is not None
            writer.stdin.write(b"".join(b"%d.%d\n" % (number, at) for at in range(200)))
            writer.stdin.close()
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.read() == b"OK\n" * 201
        assert [writer.wait(PATIENCE) for writer in writers] == [0] * 4
    finally:
        for writer in writers:
            end(writer)
    texts = {text for _, text in kept(desk)}
    assert texts == {f"{number}.{at}" for number in range(4) for at in range(200)}


def test_a_writer_waits_for_its_turn(desk: Desk) -> None:
    """While another writes, no line is kept: a file is never put aside twice."""
    desk.run("qubes-log-sink", stdin=b"first\n")
    lock = os.open(desk.home / "var/remote/.lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    writer = desk.start("qubes-log-sink")
    try:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"OK\n"
        writer.stdin.write(b"second\n")
        writer.stdin.close()
        answered = select.poll()
        answered.register(writer.stdout, select.POLLIN)
        eventually(lambda: waits_for_a_lock(writer.pid) or bool(answered.poll(0)))
        assert [text for _, text in kept(desk)] == ["first"]
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert writer.stdout.read() == b"OK\n"
        assert writer.wait(PATIENCE) == 0
        assert [text for _, text in kept(desk)] == ["first", "second"]
    finally:
        os.close(lock)
        end(writer)


def test_who_may_only_read_makes_no_writer_wait(desk: Desk) -> None:
    """Neither the directory nor a log is what writers lock; theirs is not for others to open."""
    desk.run("qubes-log-sink", stdin=b"first\n")
    places = [desk.home / "var/remote", desk.home / "var/remote/work.log"]
    held = [os.open(place, os.O_RDONLY) for place in places]
    try:
        for descriptor in held:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert desk.run("qubes-log-sink", stdin=b"second\n").stdout == b"OK\nOK\n"
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert [text for _, text in kept(desk)] == ["first", "second"]
    assert (desk.home / "var/remote/.lock").stat().st_mode & 0o777 == 0o600


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whatever it does, and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def waits_for_a_lock(pid: int) -> bool:
    """Whether the kernel lists a process among those that wait for a lock."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any(f" {pid} " in line for line in lines if "->" in line)


def test_a_line_that_cannot_be_kept_is_not_answered(desk: Desk) -> None:
    """A link in the place of the log, and a directory that is none."""
    place = desk.home / "var/remote"
    place.mkdir(parents=True)
    (place / "work.log").symlink_to(desk.home / "other")
    outcome = desk.run("qubes-log-sink", stdin=b"x\n")
    assert (outcome.code, outcome.stdout) == (1, b"OK\n")
    assert not (desk.home / "other").exists()
    outcome = desk.run("qvm-log", "notes", stdin=b"x\n")
    assert outcome.code == 1
    outcome = desk.run("qubes-log-sink", QUBES_LOG_DIRECTORY="/dev/null/x")
    assert (outcome.code, outcome.stdout) == (1, b"")


def test_dom0_chooses_the_backend(desk: Desk) -> None:
    """By `/vm-config/log-backend`; a word that we do not know is an error, not a guess."""
    desk.script("bin/qubesdb-read", '[ "$1" = /vm-config/log-backend ] && echo "$BACKEND"')
    path = desk.home / "syslog"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(path))
        syslog.settimeout(PATIENCE)
        chosen = {"BACKEND": "syslog", "QUBES_LOG_SOCKET": str(path)}
        assert desk.run("qubes-log-sink", stdin=b"<3>a\x1bb\n", **chosen).code == 0
        # Facility 0 is the kernel's own: it becomes the user's.
        assert syslog.recv(9999) == b"<11>qubes-work: a\\x1bb"
    assert desk.run("qubes-log-sink", stdin=b"x\n", **chosen).code == 1
    assert desk.run("qubes-log-sink", stdin=b"x\n", BACKEND="cloud").code == 1
    assert not (desk.home / "var").exists()
    assert desk.run("qubes-log-sink", stdin=b"x\n", BACKEND="file").code == 0
    desk.script("bin/qubesdb-read", "echo syslog; exit 1")
    assert desk.run("qubes-log-sink", stdin=b"y\n").code == 0
    assert [text for _, text in kept(desk)] == ["x", "y"]


def test_the_client_sends_all_lines_and_says_which_was_not_kept(desk: Desk) -> None:
    """Long ones in pieces; a service that stops answering is an error."""
    long = "z" * 5000
    outcome = desk.run("qvm-log", "-p", "4", "notes", stdin=f"a\n{long}\n<1>b".encode())
    assert (outcome.code, outcome.stderr) == (0, b"")
    assert [severity for severity, _ in kept(desk)] == ["warning"] * 4
    assert [text for _, text in kept(desk)] == ["a", "z" * 4093, "z" * 907, "<1>b"]
    assert desk.calls() == ["notes qubes.Log"]
    desk.service("qubes.Log", "echo OK; read -r l; echo OK; read -r l; echo NO; cat >/dev/null")
    outcome = desk.run("qvm-log", stdin=b"a\nb\nc\n")
    assert (outcome.code, outcome.stderr) == (1, b"error: line 2 was not kept\n")
    assert desk.calls()[-1] == "@default qubes.Log"
    desk.service("qubes.Log", "exec cat /dev/zero")
    assert desk.run("qvm-log", stdin=b"a\n").code != 0
    (desk.home / "services/qubes.Log").unlink()
    assert desk.run("qvm-log", stdin=b"a\n").code == 126
    for wrong in (["-p", "192"], ["-p", "x"], ["a", "b"]):
        assert desk.run("qvm-log", *wrong).code == 2
