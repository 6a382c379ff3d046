"""Whether files are still as they were when they were read: one `stat` a file."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Two changes within one tick of the file system's clock look like one: read again after it.
TICK_NS = 50_000_000

Mark = tuple[int, ...] | None


class Watch:
    """The files that something was read from.

    Looking is cheap enough for every decision: whoever has changed a file can rely on the very
    next call being judged by it.
    """

    def __init__(self) -> None:
        self._paths: tuple[str, ...] = ()
        self._seen: tuple[Mark, ...] = ()
        self._young = True

    def changed(self) -> bool:
        """Whether to read again; also before the first time."""
        return self._young or _marks(self._paths) != self._seen

    def note(self, paths: Mapping[str, bool], started: int) -> None:
        """Remember how files look; one that does not exist is a change when it does.

        Args:
            paths: the files, and the directories in which others may appear; and whether
                something was there when they were read.
            started: when reading began, in nanoseconds since 1970.
        """
        self._paths = tuple(paths)
        self._seen = _marks(self._paths)
        newest = max((mark[0] for mark in self._seen if mark is not None), default=0)
        # A change while the files are read is younger than `started`, and so read next time;
        # so is what went away meanwhile.
        self._young = newest + TICK_NS > started or any(
            found and mark is None for found, mark in zip(paths.values(), self._seen, strict=True)
        )


def _marks(paths: tuple[str, ...]) -> tuple[Mark, ...]:
    return tuple(_mark(path) for path in paths)


def _mark(path: str) -> Mark:
    try:
        s = os.stat(path)  # noqa: PTH116 - in every decision's way
    except OSError:
        return None
    return (s.st_ctime_ns, s.st_mtime_ns, s.st_size, s.st_ino, s.st_dev)
