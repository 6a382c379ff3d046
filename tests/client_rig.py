"""Clients of calls as tests start them: heard to their end, and gone with the test."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from agent_rig import PATIENCE


class Clients:
    """Programs that a test has started."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def launch(self, command: Sequence[Any], **popen: Any) -> subprocess.Popen[bytes]:
        """Start one, over pipes unless it is told otherwise."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(command, bufsize=0, **(pipes | popen))
        self.started.append(process)
        return process

    def end(self) -> None:
        """Leave none of them behind."""
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def finish(
    process: subprocess.Popen[bytes], stdin: bytes | None = None
) -> tuple[int, bytes, bytes]:
    """Wait for a client; its code, stdout and stderr."""
    stdout, stderr = process.communicate(stdin, timeout=PATIENCE)
    return process.returncode, stdout, stderr


def end_input(process: subprocess.Popen[bytes]) -> None:
    """Close the client's stdin."""
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
