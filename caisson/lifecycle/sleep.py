"""The machine goes to sleep and wakes up: running qubes are frozen and go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from caisson.errors import CaissonError, NotStartedError
from caisson.lifecycle.ledger import Ledger
from caisson.lifecycle.running import Running
from caisson.model import PowerState, Qube

_log = structlog.get_logger(__name__)


class Sleep:
    """Remembers which qubes it froze; after a restart of the daemon those stay frozen."""

    def __init__(self, ledger: Ledger, running: Running) -> None:
        self._ledger = ledger
        self._running = running
        self._frozen: set[Qube] = set()

    async def begin(self) -> None:
        """Freeze every running qube; one that cannot be frozen does not keep the others."""
        running = [
            qube for qube, power in self._ledger.powers.items() if power.state is PowerState.RUNNING
        ]
        self._frozen |= await _each(running, self._running.pause)

    async def end(self) -> None:
        """Let exactly those go on that are still frozen."""
        frozen, self._frozen = self._frozen, set()
        await _each(frozen, self._running.resume)


async def _each(qubes: Iterable[Qube], act: Callable[[Qube], Awaitable[None]]) -> set[Qube]:
    """Those of the qubes with which it went well, all at once."""
    done: set[Qube] = set()

    async def one(qube: Qube) -> None:
        try:
            await act(qube)
            done.add(qube)
        except NotStartedError:
            pass  # it ended meanwhile, or somebody else paused or unpaused it
        except CaissonError as error:
            _log.error("cannot follow the machine's sleep", qube=qube.name, error=str(error))

    async with asyncio.TaskGroup() as group:
        for qube in qubes:
            group.create_task(one(qube))
    return done
