"""The audit log: one line of JSON a call, append-only, rotated by size.

Calls are refused while the log cannot be written (full disk): a call that left no trace would be
worse than one that is made again. What ended meanwhile waits in memory; what does not fit there
is counted, and the count is written as soon as it can be.
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

import structlog

_log = structlog.get_logger("audit")

LARGEST = 64 * 1024 * 1024
KEPT = 8
LONGEST_TEXT = 2048
WAITING = 1024


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
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _flush(self) -> None:
        try:
            if self._file < 0:
                self._open()
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

    def _rotate(self) -> None:
        for n in range(self._kept, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{n}")
            newer = self._path.with_name(f"{self._path.name}.{n - 1}") if n > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                newer.rename(older)
        self.close()
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
