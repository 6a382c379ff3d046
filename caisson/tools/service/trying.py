"""Calls of services in tests: run to their end, with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from caisson.errors import CaissonError
from caisson.tools.service import calling


def nearest(directory: Path, top: Path) -> Path:
    """The directory, or the nearest above it down from `top`, that has services.

    Raises:
        CaissonError: there is none.
    """
    for each in (directory, *directory.parents):
        if (each / calling.SERVICES).is_dir():
            return each
        if each == top:
            break
    raise CaissonError(
        f"there is no `{calling.SERVICES}` beside the test, nor above it",
        hint="say with `path=` where it is",
    )


def call(
    descriptor: str,
    place: Path,
    stdin: bytes,
    source: str,
    environment: Mapping[str, str],
    timeout: float,
) -> subprocess.CompletedProcess[bytes]:
    """Call a service below `place` (see `CallService` of the pytest plugin).

    Raises:
        CaissonError: a name is none, or the agent is not built.
        subprocess.TimeoutExpired: it took too long, and was ended.
    """
    made = calling.command(
        descriptor,
        services=place / calling.SERVICES,
        settings=place / calling.SETTINGS,
        source=source,
        environment=environment,
    )
    with subprocess.Popen(
        made.argv,
        executable=made.program,
        env=dict(made.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        finally:
            # The process is not reaped before: its number is still the group's.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    code = process.returncode
    return subprocess.CompletedProcess(made.argv, 128 - code if code < 0 else code, out, err)
