"""Programs of the machine: run to their end, and waited for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patience import PATIENCE

from caisson.paths import SHIPPED

_OWN_MOUNTS = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
"""The mount namespace that the tests were started in: the machine's, as a user has it."""


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str
    raw: bytes = b""


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait for a condition that nothing announces; return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"this did not come true: {what or condition}")
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def machine(*argv: str) -> list[str]:
    """A command that runs with the machine's mounts, which the test runner has left."""
    return ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{_OWN_MOUNTS}", f"--wd={SHIPPED}", *argv]


def finished(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    executable: str | None = None,
    patience: float = PATIENCE,
    cwd: Path | None = None,
) -> Done:
    """Run a program to its end."""
    done = subprocess.run(
        argv,
        input=stdin,
        executable=executable,
        env=None if env is None else dict(env),
        capture_output=True,
        check=False,
        timeout=patience,
        cwd=cwd,
    )
    return Done(
        done.returncode,
        done.stdout.decode(errors="surrogateescape"),
        done.stderr.decode(errors="surrogateescape"),
        done.stdout,
    )
