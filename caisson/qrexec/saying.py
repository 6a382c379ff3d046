"""What a program says on its standard error, as lines for a log that no qube can fill or forge."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Saying:
    """Standard error of a process, read to its end and told line by line: bounded, and escaped.

    Args:
        tell: takes a line.
        leave_out: is told how many lines there were no room for.
    """

    MOST_LINES = 100
    LONGEST_LINE = 1000

    def __init__(self, tell: Callable[[str], None], leave_out: Callable[[int], None]) -> None:
        self._tell = tell
        self._leave_out = leave_out
        self._loop = asyncio.get_running_loop()
        self._line = b""
        self._told = 0
        self._left_out = 0
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop.add_reader(self._reader, self._readable)

    def begun(self) -> None:
        """The process has its copy: ours goes."""
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        """Tell what is still there, and end."""
        if self.writer >= 0:
            self.begun()
        # A pipe holds a little: this ends even where somebody keeps writing.
        for _ in range(self.MOST_LINES):
            if not self._readable():
                break
        if self._reader >= 0:
            self._stop()
        if self._line:
            self._take(self._line)
        if self._left_out:
            self._leave_out(self._left_out)

    def _stop(self) -> None:
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        self._reader = -1

    def _readable(self) -> bool:
        """Take what is there; whether there may be more."""
        if self._reader < 0:
            return False
        try:
            untrusted = os.read(self._reader, 65_536)
        except BlockingIOError:
            return False
        if not untrusted:
            self._stop()
            return False
        *lines, rest = (self._line + untrusted).split(b"\n")
        for line in lines:
            self._take(line)
        # Of a line without an end, no more than is told of it.
        self._line = rest[: self.LONGEST_LINE + 1]
        return True

    def _take(self, untrusted: bytes) -> None:
        if self._told >= self.MOST_LINES:
            self._left_out += 1
            return
        self._told += 1
        self._tell(harmless(untrusted, self.LONGEST_LINE))


def harmless(untrusted: bytes, most: int) -> str:
    """A line that moves no cursor and begins no other line: printable ASCII, the rest escaped."""
    cut = untrusted[:most].decode("latin-1")
    text = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in cut)
    return f"{text}…" if len(untrusted) > most else text
