"""`qubesd-query`, byte by byte (sheet `admin-api`, section 1.6)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fake_daemon import BIN, NOTHING, Refusal, Start, start

__all__ = ["start"]


def test_query_gives_the_reply_as_it_is(start: Start, tmp_path: Path) -> None:
    """The raw frame; `--fail` tells its kind; a payload ends where it is told to (section 1.6)."""
    daemon = start(
        {
            "admin.vm.List@dom0": "a\n",
            "x+arg@work": lambda payload: payload,
            "silent@dom0": NOTHING,
            "refused@dom0": Refusal("QubesException", "50%%"),
        }
    )
    query = "qubesd-query"
    assert daemon.run(query, "-e", "dom0", "admin.vm.List", "dom0")[:2] == (0, b"0\0a\n")
    refused = b"2\0QubesException\0\x0050%%\0"
    assert daemon.run(query, "-e", "dom0", "refused", "dom0")[:2] == (0, refused)
    assert daemon.run(query, "-e", "--fail", "dom0", "refused", "dom0")[:2] == (2, refused)
    assert daemon.run(query, "-e", "dom0", "silent", "dom0")[:2] == (1, b"")
    words = (query, "dom0", "x", "work", "arg")
    assert daemon.run(*words, stdin=b"p\0q")[1] == b"0\0p\0q"
    assert daemon.run(*words, "--single-line", stdin=b"one line\n")[1] == b"0\0one line"
    assert daemon.run(*words, "--null", stdin=b"a\nb\0")[1] == b"0\0a\nb"
    assert daemon.run(*words, "--max-bytes", "4", stdin=b"1234")[1] == b"0\x001234"
    elsewhere = str(tmp_path / "run/qubesd.sock")
    env = {"CAISSON_ROOT": "/nonexistent"}
    assert (
        daemon.run(query, "-e", "-c", elsewhere, "dom0", "admin.vm.List", "dom0", env=env)[0] == 0
    )


def test_query_leaves_the_rest_of_its_input_to_the_next(start: Start) -> None:
    """The size comes first, then the data that somebody else copies."""
    daemon = start({"x@dom0": lambda payload: payload})
    line = f"{BIN}/qubesd-query --single-line --max-bytes 20 dom0 x dom0; cat"
    done = subprocess.run(
        ["sh", "-c", line],
        input=b"12\ndata",
        capture_output=True,
        check=True,
        env=daemon.environment(),
    )
    assert done.stdout == b"0\x0012data"
