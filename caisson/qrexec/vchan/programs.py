"""Starting the programs that carry a call's data: they are given their descriptors, no others."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Mapping, Sequence

from caisson.errors import DaemonError
from caisson.paths import AGENT_BINARY

_HIGH = 16
"""Where descriptors are put before they get their numbers, none of which is that high."""


class Program:
    """A running program.

    Args:
        arguments: its name and arguments; the name is looked for on `PATH`, and the agent's
            binary, which is all of them, is taken where it is not there.
        environment: the whole of it.
        descriptors: ours by the number that the program has them under; stdin, stdout and stderr
            that are not given are `/dev/null`, `/dev/null` and ours. They stay open here.
        quiet: whether what it says of itself is dropped: a qube could make it say a lot.

    Raises:
        DaemonError: it cannot be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Mapping[int, int],
        *,
        quiet: bool = False,
    ) -> None:
        self._pid = _spawn(arguments, environment, descriptors, quiet)
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as e:
            # Out of descriptors. Nobody could see its end, nor stop it.
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise DaemonError(f"`{arguments[0]}` cannot be watched: {e.strerror}") from None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    async def wait(self) -> int:
        """Its exit code; 128 and the signal that killed it."""
        return await asyncio.shield(self._ended)

    def stop(self) -> None:
        """Ask it to end."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def _reap(self) -> None:
        _, status = os.waitpid(self._pid, 0)
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        code = os.waitstatus_to_exitcode(status)
        if not self._ended.done():
            self._ended.set_result(code if code >= 0 else 128 - code)


def _spawn(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    descriptors: Mapping[int, int],
    quiet: bool,
) -> int:
    path = shutil.which(arguments[0]) or str(AGENT_BINARY)
    with contextlib.ExitStack() as stack:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        actions = []
        silent = {0: null, 1: null} | ({2: null} if quiet else {})
        for number, ours in (silent | dict(descriptors)).items():
            # Out of the way of the numbers that are given; close-on-exec goes with the original.
            high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _HIGH)
            stack.callback(os.close, high)
            actions.append((os.POSIX_SPAWN_DUP2, high, number))
        try:
            return os.posix_spawn(
                path,
                list(arguments),
                dict(environment),
                file_actions=actions,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as e:
            raise DaemonError(
                f"`{arguments[0]}` cannot be started: {(e.strerror or str(e)).lower()}",
                hint="put it on PATH, or build the agent: script/setup",
            ) from None
