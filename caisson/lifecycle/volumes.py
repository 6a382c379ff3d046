"""The volumes of qubes from creation to removal: layers on disk kept in step with the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import TypeGuard

import structlog

from caisson.errors import CaissonError, StorageError
from caisson.lifecycle.ledger import Ledger
from caisson.model import Change, Qube
from caisson.model.changes import Op, SetVolume
from caisson.model.volumes import HOST, PRIVATE, ROOT, VolumeState
from caisson.names import VolumeName
from caisson.storage import (
    Pool,
    StartPlan,
    StopPlan,
    begun,
    flattened,
    garbage,
    host_template,
    is_begun,
    lay_out,
    layers_of,
    new_private,
    plan_flatten,
    plan_replace,
    plan_start,
    plan_stop,
)

_log = structlog.get_logger(__name__)
Commit = Callable[[Change], Awaitable[None]]
"""Enters a planned change, after what else its caller has to check."""


class Volumes:
    """Lays layers out and puts them away, in the order that survives a kill at any moment."""

    def __init__(self, ledger: Ledger, pool: Pool, tasks: asyncio.TaskGroup) -> None:
        self._ledger = ledger
        self._pool = pool
        self._tasks = tasks
        self._refreshing = asyncio.Lock()

    async def first_private(self) -> str:
        """Make the layer that a new private volume starts with."""
        return await asyncio.to_thread(new_private, self._pool)

    async def create(self, qube: Qube) -> None:
        """Fill what a new qube has of this machine."""
        if ROOT in qube.volumes and qube.volumes[ROOT].pool == HOST:
            await self._refresh(qube)

    async def fill(self, qube: Qube, name: VolumeName, layer: str) -> None:
        """Give a volume that is not in use new content; the old becomes a revision."""
        await self._settle(qube, plan_replace(qube.volumes[name], [layer], now=_now()))

    async def change(self, qube: Qube, plan: StopPlan, commit: Commit, *told: Change) -> None:
        """Give a volume of a halted qube the content that was planned for it.

        Plan and call belong together: nothing may be awaited in between.

        Args:
            qube: the qube, whose turn the caller holds.
            plan: the volume from now on.
            commit: enters the change.
            told: further changes that are entered with it.
        """
        change = self._ledger.system.plan_volume(qube, plan.state)
        for each in told:
            change += each
        await commit(change)
        self._collect(plan.dropped)
        if plan.flatten:
            self._tasks.create_task(self._flatten(qube, plan.state))

    async def begin(self, qube: Qube) -> StartPlan:
        """Make the writable layers of a start, and note them."""
        chain = tuple(self._ledger.system.template_chain(qube))
        for template in chain:
            if ROOT in template.volumes and template.volumes[ROOT].pool == HOST:
                await self._refresh(template)
        await self.end(qube)  # what could not be put away after the last run
        while True:
            wanted = plan_start(*(template.volumes for template in chain))
            try:
                plan = await asyncio.to_thread(lay_out, self._pool, wanted)
            except StorageError:
                if wanted == plan_start(*(template.volumes for template in chain)):
                    raise
                continue  # a template has moved on, and dropped what was wanted
            uppers = [part.upper for part in (plan.root, plan.private) if part and part.upper]
            try:
                if wanted == plan_start(*(template.volumes for template in chain)):
                    await self._note(qube, begun(qube.volumes, plan))
                    return plan
            except BaseException:
                self._pool.remove(uppers)
                raise
            self._pool.remove(uppers)  # a template has moved on meanwhile

    async def end(self, qube: Qube) -> None:
        """Commit what a stopped qube keeps, drop what it does not."""
        for state in tuple(qube.volumes.values()):
            if not is_begun(state):
                continue
            empty = True
            if state.dirty is not None:
                newest = state.layers[0] if state.layers else None
                empty = await asyncio.to_thread(self._pool.is_empty, state.dirty, like=newest)
            # Its settings may be changed while a thread works.
            plan = plan_stop(qube.volumes[state.name], empty=empty, now=_now())
            if plan.seal is not None:
                await asyncio.to_thread(self._pool.seal, plan.seal)
                plan = plan_stop(qube.volumes[state.name], empty=empty, now=_now())
            await self._settle(qube, plan)
            # What it borrowed, too: its template may have moved on while it ran.
            self._collect(layers_of([state]) - layers_of([plan.state]))
            if plan.flatten:
                self._tasks.create_task(self._flatten(qube, plan.state))

    def drop(self, states: Iterable[VolumeState]) -> None:
        """Erase the layers of volumes that are gone, as far as nobody else needs them."""
        self._collect(layers_of(states))

    def drop_unless_used(self, layer: str) -> None:
        """Erase a layer that came to nothing."""
        self._collect([layer])

    def recover(self) -> None:
        """At the start of the daemon: erase what no volume knows."""
        self._pool.recover()
        self._pool.remove(self._pool.orphans(layers_of(self._states())))

    async def _refresh(self, template: Qube) -> None:
        """Bring the `host` template up to date with the machine."""
        async with self._refreshing:
            state = template.volumes[ROOT]
            if state.dirty is not None:
                return
            newest = state.layers[0] if state.layers else None
            layer = await asyncio.to_thread(host_template.current, self._pool, newest)
            if layer != newest:
                state = template.volumes[ROOT]
                await self._settle(template, plan_replace(state, [layer], now=_now()))

    async def _settle(self, qube: Qube, plan: StopPlan) -> None:
        await self._note(qube, [plan.state])
        self._collect(plan.dropped)

    async def _note(self, qube: Qube, states: Iterable[VolumeState]) -> None:
        change = Change()
        for state in states:
            change += self._ledger.system.plan_volume(qube, state)
        await self._ledger.commit(change)

    async def _flatten(self, qube: Qube, state: VolumeState) -> None:
        """Merge a deep stack in the background; a qube that starts meanwhile comes first."""
        merged = plan_flatten(state)
        if not merged:
            return
        try:
            layer = await asyncio.to_thread(self._pool.flatten, merged)
            plan = None
            if qube in self._ledger.system.qubes.values():
                present = qube.volumes[state.name]
                used = is_begun(present)
                if not present.rw:  # then its state does not tell
                    used = not self._ledger.power(qube).gone.is_set()
                plan = None if used else flattened(present, merged, layer)
            if plan is None:
                self._pool.remove([layer])
            else:
                await self._settle(qube, plan)
        except CaissonError as error:
            _log.warning("a deep volume stays deep", qube=qube.name, error=str(error))
        except Exception:  # noqa: BLE001 - a bug here must not end the daemon
            _log.exception("a deep volume stays deep", qube=qube.name)

    def _collect(self, dropped: Iterable[str]) -> None:
        dropped = set(dropped)
        if dropped:
            self._pool.remove(garbage(dropped, self._states()))

    def _states(self) -> Iterable[VolumeState]:
        return (
            state for qube in self._ledger.system.qubes.values() for state in qube.volumes.values()
        )


def lacks_private(creation: Change) -> bool:
    """Whether a planned qube has a private volume of its own, which must be given content."""
    return any(_is_own_private(op) for op in creation.ops)


def with_private(creation: Change, layer: str) -> Change:
    """The same creation, with this layer as the content of the private volume."""
    ops = tuple(
        SetVolume(op.uuid, replace(op.volume, layers=(layer,))) if _is_own_private(op) else op
        for op in creation.ops
    )
    return replace(creation, ops=ops)


def _is_own_private(op: Op) -> TypeGuard[SetVolume]:
    return isinstance(op, SetVolume) and op.volume.name == PRIVATE and not op.volume.snap_on_start


def _now() -> int:
    return int(time.time())
