"""`qvm-copy` and its sisters, up to the call that they make."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE
from qfile_peer import program

COMMANDS = ("qvm-copy", "qvm-move", "qvm-copy-to-vm", "qvm-move-to-vm")
CLIENT = """\
#!/bin/sh
printf '%s\\n' "$PROGRESS_TYPE" "$FILECOPY_TOTAL_BYTES" "$@"
exit 126
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory to work in; the client on PATH says how it was called."""
    client = tmp_path / "bin/qrexec-client-vm"
    client.parent.mkdir()
    client.write_text(CLIENT)
    client.chmod(0o755)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/file").write_text("12345")
    return tmp_path / "home"


def run(
    home: Path, name: str, *arguments: str | bytes, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command, with more variables."""
    return subprocess.run(
        program(name, *arguments),
        executable=BINARY,
        cwd=home,
        env={"PATH": f"{home.parent}/bin:{os.environ['PATH']}"} | more,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=PATIENCE,
    )


def called(home: Path, name: str, *arguments: str | bytes, **more: str) -> list[bytes]:
    """How the client was called, after what it knows of the progress."""
    done = run(home, name, *arguments, **more)
    assert (done.returncode, done.stderr) == (126, b"")
    return done.stdout.splitlines()


AGENT = b"/usr/lib/qubes/qfile-agent"


def test_each_command_calls_the_service_with_the_sender(home: Path) -> None:
    """Whom it goes to is the policy's to ask where no qube is named."""
    copy = [b"none", b"0", b"--", b"@default", b"qubes.Filecopy", AGENT]
    assert called(home, "qvm-copy", "file") == [*copy, b"--", b"file"]
    assert called(home, "qvm-move", "file") == [*copy, b"--move", b"--", b"file"]
    copy[3] = b"work"
    assert called(home, "qvm-copy-to-vm", "work", "file", "./file") == [
        *copy,
        b"--",
        b"file",
        b"./file",
    ]
    assert called(home, "qvm-move-to-vm", "work", "file") == [*copy, b"--move", b"--", b"file"]


def test_a_target_or_file_that_looks_like_an_option_is_none(home: Path) -> None:
    """After `--` nothing is an option, for none of the three programs."""
    (home / "--move").touch()
    for given in (("work", "--", "--move"), ("--", "work", "--", "--move")):
        words = called(home, "qvm-copy-to-vm", *given)
        assert words[2:] == [b"--", b"work", b"qubes.Filecopy", AGENT, b"--", b"--move"]
    words = called(home, "qvm-copy-to-vm", "--", "--help", "--move")
    assert words[2:] == [b"--", b"--help", b"qubes.Filecopy", AGENT, b"--", b"--move"]


def test_progress_counts_what_is_to_be_sent(home: Path) -> None:
    """Where it is wanted: the sum is not free."""
    (home / "d").mkdir()
    (home / "d/more").write_text("123")
    assert called(home, "qvm-copy", "--with-progress", "file", "d")[:2] == [b"console", b"8"]
    by_program = {"PROGRESS_TYPE": "gui", "FILECOPY_TOTAL_BYTES": "99"}
    assert called(home, "qvm-copy", "d", **by_program)[:2] == [b"gui", b"3"]
    quiet = called(home, "qvm-copy", "--without-progress", "d", **by_program)
    assert quiet[:2] == [b"none", b"0"]


@pytest.mark.parametrize("odd", ["a\nb", "\u202e", "b\x1b[2J"])
def test_names_that_are_not_safe_to_show_call_another_service(home: Path, odd: str) -> None:
    """Deep in a tree, or the target of a link; policy may judge it on its own."""
    (home / "d/e").mkdir(parents=True)
    assert called(home, "qvm-copy", "d")[4] == b"qubes.Filecopy"
    (home / "d/link").symlink_to(odd)
    assert called(home, "qvm-copy", "d")[4] == b"qubes.Filecopy+allow-all-names"
    (home / "d/link").unlink()
    (home / "d/e" / odd).touch()
    assert called(home, "qvm-copy", "d")[4] == b"qubes.Filecopy+allow-all-names"


def test_what_cannot_be_copied_is_told_before_anybody_is_asked(home: Path) -> None:
    """Pipes, devices, links named themselves, what is missing or has no name of its own."""
    (home / "d").mkdir()
    os.mkfifo(home / "d/pipe")
    (home / "link").symlink_to("file")
    for wrong, words in (
        ("d", "`d/pipe` is no file, directory or symbolic link"),
        ("/dev/null", "`null` is no file, directory or symbolic link"),
        ("link", "`link` is a symbolic link: name what it leads to"),
        ("missing", "cannot read `missing`: no such file"),
        (".", "`.` has no name of its own"),
        ("", "`` has no name of its own"),
        ("\x1b[2J", "cannot read `\\x1b[2J`"),
    ):
        done = run(home, "qvm-move", "file", wrong)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode().startswith(f"error: {words}")
        assert done.stderr.endswith(b"hint: nothing was copied\n")
    assert (home / "file").exists()


@pytest.mark.parametrize(("count", "length"), [(257, 1), (66, 250)])
def test_a_tree_too_deep_to_send_is_told_before_anybody_is_asked(
    home: Path, count: int, length: int
) -> None:
    """More than 256 levels, or more than 16382 bytes of a name."""
    descriptor = os.open(home, os.O_PATH)
    for _ in range(count):
        os.mkdir("d" * length, dir_fd=descriptor)
        below = os.open("d" * length, os.O_PATH, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    done = run(home, "qvm-copy", "d" * length)
    shutil.rmtree(home / ("d" * length))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b": file name too long\nhint: nothing was copied\n" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_usage(home: Path, name: str) -> None:
    """Help on stdout with 0, mistakes with 2."""
    done = run(home, name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {name} [OPTIONS] ".encode())
    for wrong in ([], ["--unknown", "x"], ["work"] if name.endswith("to-vm") else ["--"]):
        assert run(home, name, *wrong).returncode == 2
    if name.endswith("to-vm"):
        done = run(home, name, "work", "--")
        assert (done.returncode, done.stdout) == (2, b"")
