"""What a person does to volumes: revert, clear, clone (sheet `admin-api`, sections 2.5 and 7.3).

All of it changes which layers a volume consists of; no byte of content is copied.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from caisson.errors import NotHaltedError, StorageError
from caisson.lifecycle.ledger import Ledger
from caisson.lifecycle.volumes import Commit, Volumes
from caisson.model import Change, Event, PowerState, Qube, VolumeState
from caisson.model.events import event_of
from caisson.model.storage_plans import NO_SNAPSHOTS
from caisson.model.volumes import HOST, KERNEL, PRIVATE
from caisson.names import VolumeName
from caisson.storage import is_outdated, plan_clone, plan_replace, plan_revert, require_own


class VolumeActs:
    """Changes the content of volumes of halted qubes.

    `commit` enters the change that comes out, after the caller's own checks of it.
    `to_the_end` carries an act out although whoever asked for it may go away.
    """

    def __init__(
        self,
        ledger: Ledger,
        volumes: Volumes,
        to_the_end: Callable[[Coroutine[Any, Any, None]], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._to_the_end = to_the_end

    def is_outdated(self, qube: Qube, volume: VolumeState) -> bool:
        """Whether what a running qube borrowed has changed since its start."""
        chain = tuple(link.volumes for link in self._ledger.system.template_chain(qube))
        try:
            return is_outdated(volume, chain)
        except StorageError:
            return True  # its source has no content any more

    async def revert(self, qube: Qube, name: VolumeName, revision: str, commit: Commit) -> None:
        """Go back to a former state of a volume; the present one becomes a former one.

        Raises:
            StorageError: the volume is in use, or does not have that revision.
        """
        await self._to_the_end(self._revert(qube, name, revision, commit))

    async def _revert(self, qube: Qube, name: VolumeName, revision: str, commit: Commit) -> None:
        async with self._ledger.power(qube).turn:
            self._ledger.require(qube)
            if not self._ledger.power(qube).gone.is_set():
                raise StorageError(
                    f"volume `{name}` of qube `{qube.name}` is in use",
                    hint=f"shut the qube down first: `qvm-shutdown --wait {qube.name}`",
                )
            plan = plan_revert(qube.volumes[name], revision, now=_now())
            await self._volumes.change(qube, plan, commit)

    async def clear(self, qube: Qube, name: VolumeName, commit: Commit) -> None:
        """Empty a volume: a private one is as in a new qube, a root one waits for content.

        Raises:
            NotHaltedError: the qube is not halted.
            StorageError: the volume does not keep content of its own.
        """
        await self._to_the_end(self._clear(qube, name, commit))

    async def _clear(self, qube: Qube, name: VolumeName, commit: Commit) -> None:
        _require_clearable(qube.volumes[name])
        layer = await self._volumes.first_private() if name == PRIVATE else None
        try:
            async with self._halted(qube):
                _require_clearable(qube.volumes[name])
                layers = () if layer is None else (layer,)
                plan = plan_replace(qube.volumes[name], layers, now=_now())
                size = str(plan.state.size)
                begin = _event(qube, "domain-volume-import-begin", volume=name, size=size)
                end = _event(qube, "domain-volume-import-end", volume=name, success="True")
                told = Change(before=(begin,), events=(end,))
                await self._volumes.change(qube, plan, commit, told)
        finally:
            if layer is not None:
                self._volumes.drop_unless_used(layer)

    async def clone(
        self,
        source: tuple[Qube, VolumeName],
        target: tuple[Qube, VolumeName],
        commit: Commit,
    ) -> None:
        """Let a volume have the content and the size of another, by sharing its layers.

        Of a running qube it is what the last shutdown left.

        Raises:
            NotHaltedError: the target's qube is not halted, or the source's one is not and
                allows no snapshots.
            StorageError: the source has no content, or the target would not keep it.
        """
        if source[1] != KERNEL or target[1] != KERNEL:
            await self._to_the_end(self._clone(source, target, commit))

    async def _clone(
        self, source: tuple[Qube, VolumeName], target: tuple[Qube, VolumeName], commit: Commit
    ) -> None:
        (giver, given), (taker, taken) = source, target
        async with self._halted(taker):
            self._ledger.require(giver)
            system = self._ledger.system
            origin = system.source_of(giver, giver.volumes[given])
            if origin is None:
                raise StorageError(f"volume `{given}` of `{giver.name}` has no content to copy")
            owner, volume = origin
            if volume.revisions_to_keep == NO_SNAPSHOTS and self._runs(owner):
                raise NotHaltedError(
                    f"qube `{owner.name}` is running, and its volume `{given}` has no snapshots",
                    hint="shut it down first, or let it keep revisions",
                )
            plan = plan_clone(
                taker.volumes[taken],
                volume,
                revisions_to_keep=system.pools[volume.pool].revisions_to_keep,
                now=_now(),
            )
            name = system.volume_id(giver, giver.volumes[given])
            told = _event(taker, "domain-import-volume", name=taken, source=name)
            await self._volumes.change(taker, plan, commit, Change(events=(told,)))

    def _runs(self, qube: Qube) -> bool:
        return self._ledger.state(qube) is not PowerState.HALTED

    @asynccontextmanager
    async def _halted(self, qube: Qube) -> AsyncIterator[None]:
        """Keep a halted qube from starting."""
        power = self._ledger.power(qube)
        async with power.turn:
            self._ledger.require(qube)
            if not power.gone.is_set():
                raise NotHaltedError(
                    f"qube `{qube.name}` is not halted",
                    hint=f"shut it down first: `qvm-shutdown --wait {qube.name}`",
                )
            yield


def _require_clearable(volume: VolumeState) -> None:
    """Refuse what keeps no content of its own, and what only shows the machine's directories."""
    if volume.pool == HOST:
        raise StorageError(
            f"volume `{volume.name}` shows this machine's own directories, it cannot be emptied"
        )
    require_own(volume)


def _event(qube: Qube, event: str, /, **values: str) -> Event:
    return event_of(qube, event, {key: str(value) for key, value in values.items()})


def _now() -> int:
    return int(time.time())
