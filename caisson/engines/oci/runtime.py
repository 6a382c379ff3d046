"""OCI runtimes: how each is called, and launchers that wait ready inside a control group."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from caisson.engines.oci.cgroups import Group
from caisson.engines.oci.mounts import Workspace
from caisson.errors import EngineError

KNOWN = ("crun", "runc")
_DEADLINE = 30.0
_COMPLAINT_MAX = 240
_RUNC_READS_MAPPINGS = (1, 1, 11)
"""From here on `runc` refuses to be told what a user namespace maps; before, it had to be."""
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# The shell waits for the word to go, inside the control group, and becomes the runtime.
# All qubes together may use more memory than there is: then they die, not the machine's programs.
# Written by the machine's root, it is the least that the qube can go back to.
_WAIT = 'echo 500 >/proc/self/oom_score_adj; read -r go && [ "$go" = go ] && exec "$@" </dev/null'


@dataclass(frozen=True)
class Runtime:
    """An OCI runtime that this machine has.

    Args:
        name: which one.
        path: its program.
    """

    name: str
    path: Path

    @property
    def places_processes(self) -> bool:
        """Whether it insists on moving the qube into its control group itself."""
        return self.name != "crun"

    def cgroup(self, group: str) -> str:
        """The path of the group that the runtime's configuration names."""
        return f"{group}/qube" if self.places_processes else group

    @property
    def takes_machine_code(self) -> bool:
        """Whether it may be given the system call filter ready-made; if not, it ignores that."""
        return self.name == "crun"

    @functools.cached_property
    def reads_mappings(self) -> bool:
        """Whether it finds out itself what a user namespace maps, and must not be told."""
        return self.name == "runc" and _version(self.path) >= _RUNC_READS_MAPPINGS

    def command(self, workspace: Workspace, name: str) -> list[str]:
        """The command that starts the qube and returns."""
        own = ["--cgroup-manager=disabled"] if self.name == "crun" else []
        return [
            str(self.path),
            f"--root={workspace.path}/state",
            *own,
            "run",
            "--detach",
            f"--pid-file={workspace.path}/pid",
            f"--bundle={workspace.path}",
            name,
        ]


def _version(program: Path) -> tuple[int, ...]:
    """The version that a program tells; nothing where it tells none."""
    told = subprocess.run(
        [program, "--version"], capture_output=True, text=True, env=_ENVIRONMENT, check=False
    ).stdout
    found = re.search(r"\bversion (\d+)\.(\d+)\.(\d+)", told)
    return tuple(int(part) for part in found.groups()) if found else ()


def installed() -> list[Runtime]:
    """The runtimes on this machine, the preferred one first."""
    found = ((name, shutil.which(name, path=_ENVIRONMENT["PATH"])) for name in KNOWN)
    return [Runtime(name, Path(path)) for name, path in found if path is not None]


class Launcher:
    """A process that waits to become the runtime of one qube.

    Attributes:
        name: what the run is called: workspace, control group and container.
        errors: descriptor with what the runtime, and then the qube's first process, complain of.
    """

    def __init__(self, name: str, runtime: Runtime, workspace: Workspace, group: Group) -> None:
        self.name = name
        self.runtime = runtime
        self.workspace = workspace
        self.group = group
        self.errors, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT, "sh", *runtime.command(workspace, name)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=writing,
                cwd=workspace.path,
                env=_ENVIRONMENT,
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(self.errors)
            raise
        finally:
            os.close(writing)

    @property
    def alive(self) -> bool:
        """Whether it still waits."""
        return self._process.poll() is None

    def enter_group(self) -> None:
        """Move the launcher into its control group, where everything that it starts is born.

        A runtime that wants an empty group for the qube gets one below, and waits beside it, so
        that it, too, is found and ended when the daemon dies in the middle of a start.
        """
        group = self.group.below("launcher") if self.runtime.places_processes else self.group
        group.enter(self._process.pid)

    def go(self) -> int:
        """Start the qube; return its first process.

        Raises:
            EngineError: what the runtime said.
        """
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"go\n")
        self._process.stdin.close()
        self._wait()
        if self._process.returncode != 0:
            raise EngineError(
                f"`{self.runtime.name}` cannot start the qube: {self.complaint()}",
                hint="`caisson doctor` shows what the machine lacks",
            )
        try:
            return int((self.workspace.path / "pid").read_text())
        except (OSError, ValueError) as error:
            raise EngineError(f"`{self.runtime.name}` did not say which process it made") from error

    def complaint(self) -> str:
        """The last line of the error output so far."""
        text = b""
        with contextlib.suppress(OSError):
            while len(text) < 1 << 16 and (part := os.read(self.errors, 4096)):
                text += part
        lines = text.decode(errors="replace").strip().splitlines() or ["no reason given"]
        return "".join(
            c if " " <= c <= "~" else c.encode("unicode_escape").decode()
            for c in lines[-1][-_COMPLAINT_MAX:]
        )

    def end(self) -> None:
        """End the process, if it still waits or runs."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        """Wait for the runtime; `Popen.wait` with a time limit would poll."""
        descriptor = os.pidfd_open(self._process.pid)
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            if not poller.poll(_DEADLINE * 1000):
                raise EngineError(
                    f"`{self.runtime.name}` did not start the qube within {_DEADLINE:.0f} seconds",
                    hint="the machine may be overloaded; try again",
                )
        finally:
            os.close(descriptor)
        self._process.wait()


def finish(group: Group) -> None:
    """End whatever runs in a control group, and remove the group."""
    group.thaw()
    deadline = time.monotonic() + 5
    while (pids := group.processes()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        time.sleep(0.002)
    group.remove()
