"""Commands and their standard streams: terminals, full disks, streams that are closed."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from fake_daemon import BIN, LIST, PROPERTIES, Start, start

__all__ = ["start"]


@pytest.mark.parametrize(
    "words",
    [
        ("qvm-prefs", "src", "b"),
        ("qvm-features", "src", "f"),
        ("qvm-notes", "-p", "src"),
        ("qvm-prefs", "src"),
        ("qvm-features", "src"),
        ("qvm-ls", "-O", "name,b"),
    ],
)
def test_text_of_a_qube_cannot_drive_the_terminal(start: Start, words: tuple[str, ...]) -> None:
    """A value is shown with its control characters made visible, though a pipe gets it exactly."""
    evil = "\x1b]0;owned\x07\x9b1m"
    daemon = start(
        {
            "admin.vm.List@dom0": LIST.splitlines()[1] + "\n",
            "admin.vm.property.Get+b@src": f"default=False type=str {evil}",
            "admin.vm.property.GetAll@src": f"b default=False type=str {evil}\n",
            "admin.vm.feature.List@src": "f\n",
            "admin.vm.feature.Get+f@src": evil,
            "admin.vm.notes.Get@src": evil,
        }
    )
    ours, theirs = pty.openpty()
    subprocess.run(
        [BIN / words[0], *words[1:]], stdout=theirs, env=daemon.environment(), check=True
    )
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert "\x1b" not in shown
    assert "\\x1b]0;owned\\x07\\x9b1m" in shown
    if words[-1] in {"b", "f"} or "-p" in words:
        assert daemon.run(*words)[1].decode().rstrip("\n") == evil


@pytest.mark.parametrize(
    "words", [("qvm-ls",), ("qvm-prefs", "src", "label"), ("qvm-ls", "--raw-list")]
)
def test_output_that_cannot_be_written_is_an_error_of_one_line(
    start: Start, words: tuple[str, ...]
) -> None:
    """A script must not take a full disk for an empty list."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES,
            "admin.vm.property.Get+label@src": "default=False type=label red",
        }
    )
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [BIN / words[0], *words[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            env=daemon.environment(),
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        b"error: output cannot be written: no space left on device\n",
    )


def without(streams: str, *argv: str, env: dict[str, str]) -> tuple[int, bytes]:
    """Run a command some of whose standard streams are closed; its exit code, its errors."""
    shell = ["sh", "-c", f'exec "$@" {streams}', "sh", BIN / argv[0], *argv[1:]]
    done = subprocess.run(shell, capture_output=True, env=env, check=False)
    return done.returncode, done.stderr


def test_closed_output_is_an_error_of_a_command_that_has_some(start: Start) -> None:
    """As with a full disk; and a connection must not get the number of the output."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES,
            "admin.vm.property.Set+label@src": "",
        }
    )
    env = daemon.environment()
    refused = (1, b"error: output cannot be written: bad file descriptor\n")
    for words in (["qvm-ls"], ["qvm-ls", "--raw-list"], ["qvm-ls", "--help"]):
        assert without(">&-", *words, env=env) == refused, words
    assert without("<&- >&-", "qvm-ls", env=env) == refused
    assert without("<&- >&- 2>&-", "qvm-ls", env=env) == (1, b"")
    unread = (1, b"error: input cannot be read: bad file descriptor\n")
    for words in (["qubes-policy", "--replace", "x"], ["qvm-notes", "src", "--import", "-"]):
        assert without("<&-", *words, env=env) == unread, words
    for streams in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        assert without(streams, "qvm-prefs", "src", "label", "red", env=env) == (0, b""), streams


def on_a_terminal(*argv: str, env: dict[str, str]) -> str:
    """What a command prints where a person looks."""
    ours, theirs = pty.openpty()
    subprocess.run([BIN / argv[0], *argv[1:]], stdout=theirs, env=env, check=True)
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    return shown.replace("\r\n", "\n")


def test_terminal_gets_more_to_see_only_where_a_person_reads(start: Start) -> None:
    """A further column in a table, an end of the last line; JSON is the same everywhere."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES + "virt_mode default=True type=str pvh\n",
            "admin.vm.notes.Get@src": "no end",
        }
    )
    env = daemon.environment()
    assert "VIRT-MODE" in on_a_terminal("qvm-ls", env=env)
    for words in (["--json"], ["--raw-data"], ["--raw-list"]):
        assert on_a_terminal("qvm-ls", *words, env=env) == daemon.run("qvm-ls", *words)[1].decode()
    assert on_a_terminal("qvm-notes", "-p", "src", env=env) == "no end\n"
    assert daemon.run("qvm-notes", "-p", "src")[1] == b"no end"
