"""Ranges of ids: which are free on this machine, and user namespaces that map them.

Files on disk belong to ids 0 to 65,535; each running qube sees them through a range of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from caisson.engines.interface import ID_RANGE
from caisson.errors import EngineError

BASE = 0x7000_0000
SLOTS = 4_096
REGISTER = Path("/run/caisson/ids")
# The one capability is for machines that let nobody else make user namespaces.
_AS_NOBODY = ("setpriv", "--clear-groups", "--inh-caps=+sys_admin", "--ambient-caps=+sys_admin")


def base_of(slot: int) -> int:
    """The host's id of the root of the qube in a slot."""
    return BASE + slot * ID_RANGE


def slot_of(base: int) -> int:
    """The slot of a range."""
    return (base - BASE) // ID_RANGE


class Ranges:
    """The ranges in use, shared by every instance of Caisson on the machine.

    One link a slot, naming the run-time record of the qube that holds it;
    a link whose record is gone is free again.
    """

    def __init__(self, register: Path = REGISTER) -> None:
        self._register = register
        self._lock = threading.Lock()

    def take(self, record: Path) -> int:
        """Take the lowest free slot for the qube whose record exists at `record`."""
        with self._alone():
            for slot in range(SLOTS):
                link = self._register / str(slot)
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(record)
                    return slot
                if not link.exists():
                    link.unlink(missing_ok=True)
                    link.symlink_to(record)
                    return slot
        raise EngineError(
            f"all {SLOTS} ranges of user ids are in use", hint="shut down a qube and try again"
        )

    def hold(self, slot: int, record: Path) -> None:
        """Make sure that an adopted qube's slot is taken."""
        link = self._register / str(slot)
        with self._alone(), contextlib.suppress(FileExistsError):
            link.symlink_to(record)

    def sweep(self, records: Path) -> None:
        """Give back what is held for records of that directory that are gone."""
        with self._alone():
            for link in self._register.iterdir():
                record = link.readlink()
                if record.parent == records and not record.exists():
                    link.unlink()

    def release(self, slot: int, record: Path) -> None:
        """Give a slot back, if it is still held for that record."""
        link = self._register / str(slot)
        with self._alone(), contextlib.suppress(FileNotFoundError):
            if link.readlink() == record:
                link.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads, and other instances' daemons, out of the register."""
        self._register.mkdir(mode=0o711, parents=True, exist_ok=True)
        with self._lock:
            directory = os.open(self._register, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(directory, fcntl.LOCK_EX)
                yield
            finally:
                os.close(directory)


def make_user_namespace(base: int) -> int:
    """Return a descriptor of a user namespace that maps 0 to 65,535 to `base` and above.

    It belongs to the id `base`, nobody's on the machine: the kernel also charges what is counted
    by user (inotify instances, timers, message queues) to a namespace's owner. With root as the
    owner of all, one qube could use up what root's programs and the other qubes need.

    Raises:
        EngineError: user namespaces cannot be made.
    """
    command = [*_AS_NOBODY, f"--reuid={base}", f"--regid={base}", "--"]
    command += ["unshare", "--user", "--", "cat"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None  # noqa: S101 - for the type checker
        assert child.stdout is not None  # noqa: S101
        assert child.stderr is not None  # noqa: S101
        child.stdin.write(b"\n")
        with contextlib.suppress(BrokenPipeError):
            child.stdin.flush()
        if child.stdout.read(1) != b"\n":  # its echo proves that it is in its namespace
            reason = child.stderr.read(200).decode(errors="replace").strip()
            raise EngineError(
                f"a user namespace cannot be made: {reason}",
                hint="see `caisson doctor`; check `user.max_user_namespaces`",
            )
        process = Path("/proc") / str(child.pid)
        (process / "gid_map").write_text(f"0 {base} {ID_RANGE}\n")
        (process / "uid_map").write_text(f"0 {base} {ID_RANGE}\n")
        return os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)


class Maps:
    """User namespaces for id-mapped mounts, made once a slot; the lowest slots are kept."""

    kept = 64

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}

    @contextlib.contextmanager
    def lend(self, slot: int) -> Iterator[int]:
        """Lend the descriptor of the slot's user namespace."""
        with self._lock:
            held = self._descriptors.get(slot)
        if held is not None:
            yield held
            return
        made = make_user_namespace(base_of(slot))
        if slot < self.kept:
            with self._lock:
                kept = self._descriptors.setdefault(slot, made)
            if kept != made:
                os.close(made)
            yield kept
            return
        try:
            yield made
        finally:
            os.close(made)

    def prepare(self, slots: int) -> None:
        """Make the namespaces of the first slots, ahead of need."""
        for slot in itertools.islice(range(self.kept), slots):
            with self.lend(slot):
                pass

    def close(self) -> None:
        """Close every descriptor."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
