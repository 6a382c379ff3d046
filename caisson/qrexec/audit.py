"""The audit log: one line of JSON a call, append-only, rotated by size.

Calls are refused while the log cannot be written (full disk): a call that left no trace would be
worse than one that is made again. What ended meanwhile waits in memory; what does not fit there
is counted, and the count is written as soon as it can be.

A call is one line, written when it ends. Until then it stands in a journal beside the log, so
that a broker that is killed leaves no call unwritten: the next one finds it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog

from caisson.qrexec.link import plain_name

_log = structlog.get_logger("audit")
_journal = msgspec.json.Encoder(enc_hook=plain_name)

LARGEST = 64 * 1024 * 1024
KEPT = 8
LONGEST_TEXT = 2048
WAITING = 1024


class Journal:
    """The calls that are in flight, each in a slot of a file.

    Args:
        path: the file; its directory belongs to the broker.
    """

    SLOT = 1024

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._free: list[int] = []
        self._slots = 0

    def open(self) -> list[dict[str, Any]]:
        """Open the file; gives what an earlier broker left in it, which is then gone from it.

        Raises:
            OSError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o600)
        left = []
        size = os.fstat(self._file).st_size
        for offset in range(0, size, self.SLOT):
            line, ended, _ = os.pread(self._file, self.SLOT, offset).partition(b"\n")
            if ended and not line.startswith(b"\0"):
                with contextlib.suppress(ValueError):
                    left.append(json.loads(line))
        return left

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._file, 0)
        self._free.clear()
        self._slots = 0

    def begin(self, record: dict[str, Any]) -> int:
        """Write down a call that begins; gives its slot.

        Raises:
            OSError: the disk is full.
        """
        line = _journal.encode(record)
        if len(line) >= self.SLOT:
            line = _journal.encode({k: str(v)[:32] for k, v in record.items() if v})
        slot = self._free.pop() if self._free else self._slots
        os.pwrite(self._file, line + b"\n", slot * self.SLOT)
        self._slots = max(self._slots, slot + 1)
        return slot

    def end(self, slot: int) -> None:
        """The call stands in the log now."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, b"\0", slot * self.SLOT)
        self._free.append(slot)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Audit:
    """The log at `path`; rotated files are `path.1` (newest) and so on.

    Args:
        path: the file; its directory belongs to the broker.
        largest: bytes after which the file is rotated.
        kept: how many rotated files are kept.
    """

    def __init__(self, path: Path, largest: int = LARGEST, kept: int = KEPT) -> None:
        self._path = path
        self._largest = largest
        self._kept = kept
        self._file = -1
        self._size = 0
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._failing = False
        self._journal = Journal(path.with_name(f"{path.stem}.inflight"))

    def begin(self, record: dict[str, Any]) -> int | None:
        """Note a call that begins, as it will be told if nobody is left to tell how it ended.

        Returns:
            Its slot for `end`; None: it cannot be noted, so it must not begin.
        """
        try:
            return self._journal.begin(record)
        except OSError:
            return None

    def end(self, slot: int) -> None:
        """The call was written by `write`."""
        self._journal.end(slot)

    def write(self, record: dict[str, Any]) -> None:
        """Add one record; never fails: see `ready`."""
        if len(self._waiting) >= WAITING:
            self._lost += 1
            return
        self._waiting.append(encode(record))
        self._flush()

    def ready(self) -> bool:
        """Whether everything recorded so far is written, so that a new call may begin."""
        if self._file < 0 or self._waiting or self._lost:
            self._flush()
        return not self._failing

    def close(self) -> None:
        """Close the files."""
        self._close_file()
        self._journal.close()

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _flush(self) -> None:
        try:
            if self._file < 0:
                self._open()
                self._recover()
            while self._waiting:
                self._write_first()
            if self._lost:
                lost, self._lost = self._lost, 0
                self._waiting.append(encode({"time": now(), "lost_records": lost}))
                self._write_first()
        except OSError as e:
            if not self._failing:
                _log.error("cannot write the audit log: calls are refused", error=str(e))
            self._failing = True
        else:
            if self._failing:
                _log.warning("the audit log can be written again")
            self._failing = False

    def _write_first(self) -> None:
        line = self._waiting[0]
        count = os.write(self._file, line)
        self._size += count
        if count < len(line):
            # The rest of a line follows its beginning: nobody else writes here.
            self._waiting[0] = line[count:]
            return
        self._waiting.popleft()
        if self._size >= self._largest:
            self._rotate()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._file).st_size

    def _recover(self) -> None:
        """Write down the calls that a killed broker left in flight."""
        left = self._journal.open()
        for record in left:
            self._waiting.append(encode(record))
            self._write_first()
        self._journal.clear()

    def _rotate(self) -> None:
        for n in range(self._kept, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{n}")
            newer = self._path.with_name(f"{self._path.name}.{n - 1}") if n > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                newer.rename(older)
        self._close_file()
        self._open()


def now() -> str:
    """The time of a record: UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode(record: dict[str, Any]) -> bytes:
    """One record as its line: ASCII, no raw control character, overlong texts cut and hashed."""
    cut: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            cut[key] = value[:LONGEST_TEXT]
            cut[f"{key}_length"] = len(value)
            cut[f"{key}_sha256"] = hashlib.sha256(value.encode()).hexdigest()
        else:
            cut[key] = value
    line = json.dumps(cut, ensure_ascii=True, separators=(",", ":")).replace("\x7f", "\\u007f")
    return line.encode() + b"\n"
