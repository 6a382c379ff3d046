"""What an instance has on the machine, and what is left of it when all has ended."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from caisson.paths import Paths
from grounds.processes import finished, machine, until


class Traces:
    """Everything on the machine that belongs to one instance.

    Args:
        paths: the instance.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.outside = f"caisson-test-{secrets.token_hex(4)}"
        self._outside_made = False

    def groups(self) -> list[Path]:
        """The control groups of this instance, of every hierarchy, with those of spares."""
        base = f"qubes-{self.paths.instance}"
        roots = (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/"))
        return [
            group
            for root in roots
            if (root / base).is_dir()
            for group in (root / base, *(p for p in (root / base).rglob("*") if p.is_dir()))
        ]

    def processes(self) -> list[int]:
        """Every process of the instance: in its control groups, or with its root for environment.

        The prefork launchers of the engine and the children of the daemons are among them.
        """
        marks = f"/qubes-{self.paths.instance}", f"CAISSON_ROOT={self.paths.root}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            if int(process.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if (
                    marks[0] in (process / "cgroup").read_text()
                    or marks[1] in (process / "environ").read_bytes().split(b"\0")
                ) and "\nState:\tZ" not in (process / "status").read_text():
                    found.append(int(process.name))
        return found

    def mounts(self) -> list[str]:
        """Mounts of this instance, in the mount namespace of any process on the machine."""
        seen: set[str] = set()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                namespace = str((process / "ns/mnt").readlink())
                if namespace in seen:
                    continue
                seen.add(namespace)
                lines = (process / "mountinfo").read_text().splitlines()
                found += [
                    f"{process.name}: {line}"
                    for line in lines
                    if str(self.paths.root) in line or f"/{self.paths.instance}/" in line
                ]
        return found

    def interfaces(self) -> list[str]:
        """Interfaces of this instance outside of all qubes."""
        prefix = f"q{self.paths.instance}-"
        names = finished(machine("ip", "-brief", "link")).out
        if self._outside_made:
            names += finished(machine("ip", "-n", self.outside, "-brief", "link")).out
        return [line for line in names.splitlines() if line.startswith(prefix)]

    def ranges(self) -> list[str]:
        """Ranges of user ids that this instance holds."""
        links = Path("/run/caisson/ids").glob("*")
        root = str(self.paths.root)
        found = []
        for link in links:
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(root):
                    found.append(link.name)
        return found

    def left(self) -> list[str]:
        """What remains for good: what is just ending is waited for."""
        with contextlib.suppress(AssertionError):
            until(lambda: not self.remains())
        return self.remains()

    def remains(self) -> list[str]:
        """What is left of an instance whose qubes and daemons have ended."""
        sockets = self.paths.broker / "q"
        return [
            *(f"process {pid}" for pid in self.processes()),
            *(f"control group {path}" for path in self.groups()),
            *(f"mount {line}" for line in self.mounts()),
            *(f"interface {line}" for line in self.interfaces()),
            *(f"user ids {slot}" for slot in self.ranges()),
            *(f"record {path}" for path in self.paths.engine.glob("*")),
            *(f"socket directory {path}" for path in sockets.glob("*")),
        ]
