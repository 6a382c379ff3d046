"""Deciding without the broker: another policy, or another system, for those who try one."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.paths import Paths
from caisson.tools.command import UsageError

if TYPE_CHECKING:
    from caisson.qrexec.advising import Adviser
    from caisson.qrexec.judging import View

_MOST_DIRECTORIES = 2
_NO_GRANTS = Path("/proc/0/grants.json")
"""There is no process of that number, so no such file either."""


def add_system_info(made: argparse.ArgumentParser) -> None:
    """Declare `--system-info`."""
    made.add_argument(
        "--system-info",
        metavar="FILE",
        type=Path,
        help="the JSON of `internal.GetSystemInfo` (default: the running system)",
    )


@dataclass(frozen=True)
class _Elsewhere(Paths):
    """An instance, but for where its policy is."""

    directories: tuple[Path, Path] | None = None

    @property
    def policy_dirs(self) -> tuple[Path, Path]:
        """The directories that were named, or the instance's."""
        return self.directories or super().policy_dirs

    @property
    def grants(self) -> Path:
        """What the instance grants for a while is no part of another policy."""
        return super().grants if self.directories is None else _NO_GRANTS


class Standalone:
    """What a stand-alone program decides on: files as they are now, and the system as it is now.

    Args:
        arguments: with `system_info`, as `add_system_info` declares it.
        client: the instance, asked where no file is named.
        directories: directories of policy, the one that wins first; none: the instance's.
    """

    def __init__(
        self, arguments: argparse.Namespace, client: Client, directories: Sequence[Path]
    ) -> None:
        from caisson.qrexec.known import Known
        from caisson.qrexec.rules import Rules

        if len(directories) > _MOST_DIRECTORIES:
            raise UsageError("a policy consists of at most two directories")
        named = (directories[0], directories[-1]) if directories else None
        self._paths = _Elsewhere(Path(client.root), named)
        self._arguments = arguments
        self._client = client
        self._rules = Rules(self._paths)
        self._known = Known()
        self._telling: set[asyncio.Task[None]] = set()

    def adviser(self) -> Adviser:
        """Decides by it; asks who answers for the instance, and writes no audit log."""
        from caisson.qrexec.advising import Adviser
        from caisson.qrexec.asking import Person

        person = Person(self._paths, self._known, self._background)
        return Adviser(self._situation, person, lambda _record: None)

    async def told(self) -> None:
        """Return when the person was told of everything."""
        while self._telling:
            await asyncio.wait(self._telling)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _situation(self) -> View:
        from caisson.qrexec.calls import CallError
        from caisson.qrexec.judging import View
        from caisson.tools.policy.inputs import domains_of

        try:
            domains = await asyncio.to_thread(domains_of, self._arguments, self._client)
        except (CaissonError, OSError) as e:
            raise CallError(f"the system is not known: {e}") from None
        self._known.clear()
        self._known.take(domains)
        return View(self._rules.current(), self._known.system)
