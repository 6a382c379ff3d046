"""One of the daemons as a process, with the environment of everything that works on an instance."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from caisson.paths import Paths
from grounds.processes import PATIENCE, machine

BIN = Path(sys.executable).parent
HIDE = (
    "for program in {}; do for folder in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin"
    ' /bin; do [ ! -e "$folder/$program" ] || mount --bind /dev/null "$folder/$program"; done; done'
)
"""Shell that hides programs from the daemon that is started after it."""


def environment(paths: Paths) -> dict[str, str]:
    """The environment of everything that works on an instance."""
    kept = {k: v for k, v in os.environ.items() if k not in {"NOTIFY_SOCKET", "COLUMNS"}}
    return kept | {
        "CAISSON_ROOT": str(paths.root),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }


class Daemon:
    """One of the two daemons, as a process.

    Args:
        name: its module.
        paths: the instance.
        prepared: a line of shell that runs before it, in a mount namespace of its own.
    """

    def __init__(self, name: str, paths: Paths, prepared: str = "") -> None:
        self.name = name
        self.log = paths.root / f"{name}.log"
        self._paths = paths
        self._prepared = prepared
        self._notify = paths.root / f"{name}.notify"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """The command that starts it."""
        command = [sys.executable, "-m", f"caisson.daemons.{self.name}", "--until-eof"]
        if self._prepared:
            inside = ["sh", "-ec", f'{self._prepared}; exec "$@"', "sh", *command]
            command = ["unshare", "--mount", *inside]
        return machine(*command)

    def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it."""
        self._notify.unlink(missing_ok=True)
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(self._notify))
        self._notify.chmod(0o666)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environment(self._paths) | {"NOTIFY_SOCKET": str(self._notify)},
                stdin=subprocess.PIPE,  # so that it ends with us, even if we are killed
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it says that it is ready."""
        assert self.process is not None
        with self._told, contextlib.closing(_Pidfd(self.process.pid)) as pid:
            ready = select.select([self._told, pid], [], [], PATIENCE)[0]
        assert self._told_ready(ready), f"{self.name} is not ready:\n{self.last_words()}"

    def crash(self) -> None:
        """End it as a crash would."""
        self._end("kill")

    def stop(self) -> None:
        """Ask it to end."""
        self._end("terminate")

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def _told_ready(self, ready: list[Any]) -> bool:
        return bool(ready) and isinstance(ready[0], socket.socket)

    def _end(self, how: str) -> None:
        if self.process is None:
            return
        getattr(self.process, how)()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end:\n{self.last_words()}") from None
        finally:
            self._told.close()
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process = None


class _Pidfd:
    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)
