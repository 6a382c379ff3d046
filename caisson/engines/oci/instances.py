"""Run-time records: enough to find a running qube again after the daemon was killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from caisson.engines.interface import Instance
from caisson.engines.oci.idmap import base_of
from caisson.names import QubeName

_MESSAGES_MAX: Final = 65_536
_STATE, _START_TIME = 0, 19  # fields of /proc/PID/stat, counted after the name


class Record(msgspec.Struct, frozen=True):
    """One qube that was started.

    Args:
        id: the id of its `RunSpec`.
        name: the qube.
        group: name of its control group.
        slot: its range of ids.
        boot: the boot of the machine that it belongs to.
        pid: its first process; 0 while it is being started.
        pid_started: when that process began, in the kernel's ticks: a pid alone may be reused.
        started: seconds since the epoch.
    """

    id: str
    name: str
    group: str
    slot: int
    boot: str
    pid: int = 0
    pid_started: int = 0
    started: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether the first process still runs; a zombie does not."""
        if self.pid == 0 or self.boot != this_boot():
            return False
        fields = _status(self.pid)
        return (
            fields is not None
            and fields[_STATE] not in {"Z", "X", "x"}
            and int(fields[_START_TIME]) == self.pid_started
        )


def this_boot() -> str:
    """The machine's name for its current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """When a process began, in the kernel's ticks; 0 when there is no such process."""
    fields = _status(pid)
    return 0 if fields is None else int(fields[_START_TIME])


def _status(pid: int) -> list[str] | None:
    try:
        text = (Path("/proc") / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


class Records:
    """The records of one instance of Caisson: one small file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, id_: str) -> Path:
        """Where a record is."""
        return self._directory / f"{id_}.json"

    def write(self, record: Record) -> None:
        """Write a record; a reader sees the old one or the new one."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path(record.id)
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(record))
        new.rename(path)

    def read(self) -> list[Record]:
        """Every record; a damaged one is removed. Call it while no qube is being started."""
        for path in self._directory.glob("*.new"):
            path.unlink(missing_ok=True)
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except (OSError, msgspec.DecodeError):
                path.unlink(missing_ok=True)
        return found

    def forget(self, id_: str) -> None:
        """Remove a record."""
        self.path(id_).unlink(missing_ok=True)


class OciInstance(Instance):
    """A running qube, held by a descriptor of its first process.

    Args:
        record: its record.
        pidfd: the descriptor; owned by the instance.
        errors: the reading end of the error output, or None after an adoption.
        on_end: called once, when the qube has ended.
    """

    def __init__(
        self,
        record: Record,
        pidfd: int,
        errors: int | None,
        on_end: Callable[[OciInstance], None],
    ) -> None:
        super().__init__(
            record.id, QubeName(record.name), record.pid, base_of(record.slot), record.started
        )
        self.record = record
        self._pidfd: int | None = pidfd
        self._errors = errors
        self._untrusted_messages = b""
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._has_ended)
        if errors is not None:
            self._loop.add_reader(errors, self._read_errors)

    def messages(self) -> str:
        """What the first process wrote to its error output, one line, escaped."""
        text = self._untrusted_messages.decode(errors="replace").strip()
        return " | ".join(
            "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in line)
            for line in text.splitlines()
        )

    def let_go(self) -> None:
        """Stop watching; the qube runs on."""
        self._close_errors()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End the first process, and by that every process of the qube."""
        self._signal(signal.SIGKILL)

    def _has_ended(self) -> None:
        self._read_errors()
        self.let_go()
        self._ended.set()
        self._on_end(self)

    def _read_errors(self) -> None:
        if self._errors is None:
            return
        room = _MESSAGES_MAX - len(self._untrusted_messages)
        try:
            part = os.read(self._errors, room) if room else b""
        except BlockingIOError:
            return
        self._untrusted_messages += part
        if not part:  # all was said, or too much
            self._close_errors()

    def _close_errors(self) -> None:
        if self._errors is not None:
            self._loop.remove_reader(self._errors)
            os.close(self._errors)
            self._errors = None
