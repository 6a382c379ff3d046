"""One process that serves a call: started, watched, and ended with all that it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
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
