"""`qubes-vmexec`: the program that its argument spells."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from agent_rig import PATIENCE, link_clients


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
