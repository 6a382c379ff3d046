"""Deciding without the broker: another policy, or another system, for those who try one."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.paths import Paths
from caisson.tools.command import UsageError
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.qrexec.advising import Adviser
    from caisson.qrexec.judging import View

_MOST_DIRECTORIES = 2
_NO_GRANTS = Path("/proc/0/grants.json")
"""There is no process of that number, so no such file either."""


@dataclass(frozen=True)
class _Elsewhere(Paths):
    """An instance, but for where its policy is."""

    directories: tuple[Path, Path] = field(kw_only=True)

    @property
    def policy_dirs(self) -> tuple[Path, Path]:
        """The directories that were named."""
        return self.directories

    @property
    def grants(self) -> Path:
        """What the instance grants for a while is no part of another policy."""
        return _NO_GRANTS


class Standalone:
    """What a stand-alone program decides on: files as they are now, and the system as it is now.

    Args:
        arguments: with `system_info`, as `inputs.add_system_option` declares it.
        client: the instance, asked where no file is named.
        directories: directories of policy, the one that wins first; none: the instance's.

    Raises:
        UsageError: there are too many directories.
        CaissonError: one of them is none.
    """

    def __init__(
        self, arguments: argparse.Namespace, client: Client, directories: Sequence[Path]
    ) -> None:
        from caisson.qrexec.known import Known
        from caisson.qrexec.rules import Rules

        if len(directories) > _MOST_DIRECTORIES:
            raise UsageError("a policy consists of at most two directories")
        if directories:
            inputs.check_directories(directories, quiet=arguments.quiet)
            self._paths: Paths = _Elsewhere(
                Path(client.root), directories=(directories[0], directories[-1])
            )
        else:
            self._paths = inputs.paths_of(client)
        self._arguments = arguments
        self._client = client
        self._rules = Rules(self._paths)
        self._known = Known()
        self._telling: set[asyncio.Task[None]] = set()

    def view(self) -> View:
        """What is decided on at this moment.

        Raises:
            CaissonError: the system is not known.
            OSError: its file cannot be read.
        """
        return self._view(inputs.domains_of(self._arguments, self._client))

    def adviser(self, write: Callable[[dict[str, Any]], None] = lambda _record: None) -> Adviser:
        """Decides by it; asks who answers for the instance.

        Args:
            write: gets the audit records, of which no log is kept.
        """
        from caisson.qrexec.advising import Adviser
        from caisson.qrexec.asking import Person

        return Adviser(self._situation, Person(self._paths, self._known, self._background), write)

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

        try:
            domains = await asyncio.to_thread(inputs.domains_of, self._arguments, self._client)
        except (CaissonError, OSError) as e:
            raise CallError(f"the system is not known: {e}") from None
        return self._view(domains)

    def _view(self, domains: dict[str, dict[str, Any]]) -> View:
        from caisson.qrexec.judging import View

        self._known.clear()
        self._known.take(domains)
        return View(self._rules.current(), self._known.system)
