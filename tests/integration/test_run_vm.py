"""`qvm-run-vm` over pipes: any command arrives as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_rig import BINARY
from opener_rig import Desk

SHELL = Path(__file__).parents[2] / "qube/etc/qubes-rpc/qubes.VMShell"
HARD = [
    "a b",
    "'",
    "''\\''",
    '"$HOME" `id` $(id)',
    "a\nexit 3\n",
    "; exit 3 #",
    "\\",
    "\x1b[2J\u202e",
    "*",
    "-n",
    "' || exit 127\nid",
    "".join(map(chr, range(1, 128))),
]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk whose calls reach the real services."""
    desk = Desk(tmp_path)
    (tmp_path / "bin/qubes-vmexec").symlink_to(BINARY)
    desk.script("services/qubes.VMShell", f"exec {SHELL}")
    for name in ("qubes.VMExec", "qubes.VMExecGUI"):
        # The client of this desk does not hand over the argument: take it from its note.
        desk.service(
            name, 'tail -n 1 "$DESK/calls" | { read -r _ s; exec qubes-vmexec "${s#*+}"; }'
        )
    return desk


def test_a_command_has_the_input_and_the_code(desk: Desk) -> None:
    """The line that starts it is not part of its input."""
    outcome = desk.run(
        "qvm-run-vm", "--no-gui", "notes", "cat; echo e >&2; exit 7", stdin=b"in\nput"
    )
    assert (outcome.code, outcome.stdout, outcome.stderr) == (7, b"in\nput", b"e\n")
    assert desk.calls() == ["notes qubes.VMShell"]


def test_words_are_joined_for_the_shell_of_the_other_side(desk: Desk) -> None:
    """As with ssh: one line, which that shell reads."""
    outcome = desk.run("qvm-run-vm", "--no-gui", "notes", "echo", "a  b", "|", "tr", "a", "c")
    assert outcome.stdout == b"c b\n"


@pytest.mark.parametrize("text", HARD)
def test_any_bytes_arrive_as_they_are(desk: Desk, text: str) -> None:
    """Quotes, lines, escapes: nothing leaves the one word that the shell reads (QSB-038)."""
    quoted = "'" + text.replace("'", "'\\''") + "'"
    outcome = desk.run("qvm-run-vm", "--no-gui", "notes", f"printf %s {quoted}", stdin=b"id\n")
    assert (outcome.code, outcome.stdout) == (0, text.encode())


@pytest.mark.parametrize("text", HARD)
def test_exact_arguments_need_no_shell(desk: Desk, text: str) -> None:
    """With `--exec` each word is an argument."""
    outcome = desk.run("qvm-run-vm", "--no-gui", "--exec", "notes", "printf", "<%s>", text, "--x")
    assert (outcome.code, outcome.stdout) == (0, f"<{text}><--x>".encode())


def test_the_spellings_choose_the_target_and_the_service(desk: Desk) -> None:
    """Where it runs, and whether a session is waited for."""
    for arguments, call in (
        (["notes", "true"], "notes qubes.VMShell+WaitForSession"),
        (["--nogui", "notes", "true"], "notes qubes.VMShell"),
        (["--dispvm", "--no-gui", "true"], "@dispvm qubes.VMShell"),
        (["--no-gui", "--dispvm=offline", "true", "--no-gui"], "@dispvm:offline qubes.VMShell"),
        (["-x", "notes", "true"], "notes qubes.VMExecGUI+true"),
        (["--no-gui", "--", "--help", "true"], "--help qubes.VMShell"),
    ):
        desk.run("qvm-run-vm", *arguments)
        assert desk.calls()[-1] == call
    for wrong in ([], ["notes"], ["--dispvm"], ["--wrong", "notes", "true"]):
        assert desk.run("qvm-run-vm", *wrong).code == 2
    assert desk.run("qvm-run-vm", "--help").stdout.startswith(b"usage: qvm-run-vm")


def test_a_refusal_and_a_missing_client_have_their_codes(desk: Desk) -> None:
    """126 and 127."""
    (desk.home / "services/qubes.VMShell").unlink()
    assert desk.run("qvm-run-vm", "notes", "true").code == 126
    assert desk.run("qvm-run-vm", "notes", "true", PATH="/nonexistent").code == 127
