"""One process that serves a call: started, watched, and ended with all that it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caisson.errors import CaissonError

PROBLEM = 125
_SIGNALLED = 128


@dataclass(frozen=True)
class Patience:
    """How long a process may go on when its caller is gone.

    Args:
        alone: seconds until it is asked to end; it sees the end of its input at once.
        just_started: the same where nobody waited for it from its start.
        grace: seconds from there until it is ended.
    """

    alone: float = 10.0
    just_started: float = 600.0
    grace: float = 5.0


@dataclass(frozen=True)
class Command:
    """What to start.

    Args:
        argv: program and arguments.
        environment: all of it.
        directory: where it starts.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: Path = Path("/")


class Process:
    """A process that leads a session of its own.

    It is not reaped before its group is ended, so that no other group can have its number.

    Args:
        command: what to start.
        stdio: the three descriptors that it gets, blocking; they stay the caller's to close.

    Raises:
        CaissonError: it cannot be started.
    """

    def __init__(self, command: Command, stdio: tuple[int, int, int]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self._process = subprocess.Popen(
                command.argv,
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[2],
                env=dict(command.environment),
                cwd=command.directory,
                start_new_session=True,
                close_fds=True,
            )
        except OSError as e:
            raise CaissonError(f"cannot start `{command.argv[0]}`: {e.strerror}") from None
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as e:
            self._end_group()
            self._process.wait()
            raise CaissonError(f"cannot watch `{command.argv[0]}`: {e.strerror}") from None
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._has_ended)

    async def finish(self, gone: asyncio.Event, patience: Patience) -> int:
        """Wait for its end; gives its exit code, 128 and the signal's number where one ended it.

        Whatever it started in its group ends with it, also when this is cancelled.

        Args:
            gone: set when nobody needs it any more.
            patience: how long it may go on then.
        """
        leaving = asyncio.ensure_future(gone.wait())
        try:
            either: set[asyncio.Future[Any]] = {self._ended, leaving}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._ended.done():
                await self._within(patience.alone)
        finally:
            leaving.cancel()
            await self._end(patience.grace)
        return self._ended.result()

    async def _within(self, seconds: float) -> None:
        await asyncio.wait({self._ended}, timeout=seconds)

    async def _end(self, grace: float) -> None:
        """End it, if it goes on, and its group."""
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if not self._ended.done():
                    self._signal(number)
                    await self._within(grace)
        finally:
            self._end_group()
            # Not even SIGKILL works at once.
            self._loop.add_reader(self._pidfd, self._reap)
            self._reap()
            if not self._ended.done():
                self._ended.set_result(_SIGNALLED + signal.SIGKILL)

    def _reap(self) -> None:
        """Give up its number, if it has ended."""
        if self._process.poll() is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)

    def _has_ended(self) -> None:
        found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is None:
            return
        self._loop.remove_reader(self._pidfd)
        killed = found.si_code != os.CLD_EXITED
        self._ended.set_result(_SIGNALLED + found.si_status if killed else found.si_status)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end_group(self) -> None:
        self._signal(signal.SIGKILL)


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
