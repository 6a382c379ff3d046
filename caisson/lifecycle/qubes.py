"""The façade of the lifecycle: every act on qubes that the Admin API and the broker ask for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import structlog

from caisson.engines import Engine, Usage
from caisson.errors import PermissionDeniedError, QubeNotFoundError
from caisson.lifecycle.door import Door
from caisson.lifecycle.facts import FactsBoard
from caisson.lifecycle.ledger import Judgement, Ledger, Rule
from caisson.lifecycle.links import Links
from caisson.lifecycle.running import Running
from caisson.lifecycle.sleep import Sleep
from caisson.lifecycle.stats import Stats
from caisson.lifecycle.volume_acts import VolumeActs
from caisson.lifecycle.volumes import Volumes, lacks_private, with_private
from caisson.model import AddQube, Change, Klass, PowerState, Qube, SetFeature, System
from caisson.model.features import OF_CALL
from caisson.model.volumes import ROOT
from caisson.names import DOM0, LabelName, PoolName, PropertyName, QubeName, VolumeName
from caisson.network import Network
from caisson.storage import Pool
from caisson.store import Store

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_REWIRING = frozenset({"netvm", "default_netvm"})
"""Properties that decide about the network qube of some qube."""
_NO_POOLS: Mapping[VolumeName, PoolName] = MappingProxyType({})


class Qubes:
    """All qubes of an instance.

    Use it within the task group that it is given: watchers of running qubes live there.
    Every method that takes a `QubeName` raises `QubeNotFoundError` for one that does not exist.
    """

    def __init__(
        self,
        system: System,
        store: Store,
        *,
        engine: Engine,
        network: Network,
        pool: Pool,
        door: Door,
        qube_files: Path,
        facts: Path,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.system = system
        self._tasks = tasks
        self._ledger = Ledger(system, store, door)
        board = FactsBoard(facts, system)
        self._ledger.heed = board.heed
        self.events = self._ledger.events
        self.stats = Stats(self._ledger, engine)
        self._volumes = Volumes(self._ledger, pool, tasks)
        self.running = Running(
            self._ledger,
            engine=engine,
            links=Links(self._ledger, network),
            volumes=self._volumes,
            door=door,
            qube_files=qube_files,
            facts=board,
            tasks=tasks,
            retire=self._retire,
        )
        self.volumes = VolumeActs(self._ledger, self._volumes, self._to_the_end)
        self._sleep = Sleep(self._ledger, self.running)
        system.runtime = self._runtime_value

    async def recover(self) -> None:
        """At the start of the daemon: adopt running qubes, put the others in order."""
        await self.running.adopt()

    def follow(self, rule: Rule, judge: Judgement) -> None:
        """Let every change pass a rule first, and those of other qubes than `dom0` a judge."""
        self._ledger.rule = rule
        self._ledger.judge = judge

    async def commit(self, change: Change, origin: QubeName = DOM0) -> None:
        """Make a planned change real; plan and commit with nothing awaited in between."""
        await self._ledger.commit(change, origin)

    def power_state(self, name: QubeName) -> PowerState:
        """What a qube is doing."""
        return self._ledger.state(self.system.qube(name))

    def state_of(self, qube: Qube) -> PowerState:
        """What a qube is doing."""
        return self._ledger.state(qube)

    def is_up(self, qube: Qube) -> bool:
        """Whether the qube runs, or is about to."""
        return self._ledger.up(qube)

    async def create(
        self,
        klass: Klass,
        name: QubeName,
        label: LabelName,
        untrusted_template: str | None,
        origin: QubeName,
        pools: Mapping[VolumeName, PoolName] = _NO_POOLS,
    ) -> Qube:
        """Make a qube; one whose volumes cannot be made does not stay behind.

        Args:
            klass: its class.
            name: its name, which must be free.
            label: its label.
            untrusted_template: its template; None for the default one, or where it has none.
            origin: the qube that asks for it.
            pools: where its volumes live, if not in the default pool.
        """

        def plan() -> Change:
            return self.system.plan_create(
                klass, name, label, untrusted_template, origin, pools=pools
            )

        return await self._to_the_end(self._create(plan, origin))

    async def install_template(self, name: QubeName, label: LabelName, layer: str) -> None:
        """Make a template, or give the halted one of that name a new root volume.

        Args:
            name: its name.
            label: the label of a new one.
            layer: the sealed layer that becomes its whole root; erased on failure.
        """
        await self._to_the_end(self._install_template(name, label, layer))

    async def create_disposable(self, template: QubeName | None, origin: QubeName) -> QubeName:
        """Make a disposable that removes itself when it ends.

        Args:
            template: the qube it is based on; None for the caller's `default_dispvm`.
            origin: the qube that asks for it.
        """
        chance = random.SystemRandom()

        def plan() -> Change:
            return self.system.plan_create_disposable(template, origin, chance)

        return (await self._to_the_end(self._create(plan, origin))).name

    async def create_disposable_for_call(self, base: QubeName, origin: QubeName) -> QubeName:
        """Make a disposable that is of no use once its call has ended; see `of_calls`.

        The policy allowed the call; no right to administer anything is needed.
        """
        chance = random.SystemRandom()

        def plan() -> Change:
            made = self.system.plan_create_disposable(base, origin, chance)
            uuid = next(op.uuid for op in made.ops if isinstance(op, AddQube))
            return made + Change((SetFeature(uuid, OF_CALL, "1"),))

        return (await self._to_the_end(self._create(plan))).name

    def of_calls(self) -> list[QubeName]:
        """The disposables that were made for calls, before a restart of the daemon too."""
        return [name for name, qube in self.system.qubes.items() if OF_CALL in qube.features]

    async def remove(self, name: QubeName, origin: QubeName = DOM0) -> None:
        """Remove a halted qube that nothing refers to, and its volumes."""
        await self._to_the_end(self._remove(self.system.qube(name), origin))

    async def start(self, name: QubeName) -> None:
        """Bring a qube up; a disposable that cannot start is removed."""
        await self._to_the_end(self.running.start(self.system.qube(name)))

    async def shutdown(self, name: QubeName, *, force: bool = False, wait: bool = False) -> None:
        """Ask a qube to shut down."""
        qube = self.system.qube(name)
        await self._to_the_end(self.running.shutdown(qube, force=force, wait=wait))

    async def kill(self, name: QubeName) -> None:
        """End a qube at once."""
        await self._to_the_end(self.running.kill(self.system.qube(name)))

    async def pause(self, name: QubeName) -> None:
        """Freeze a qube."""
        await self._to_the_end(self.running.pause(self.system.qube(name)))

    async def unpause(self, name: QubeName) -> None:
        """Let a frozen qube go on."""
        await self._to_the_end(self.running.unpause(self.system.qube(name)))

    async def resume(self, name: QubeName) -> None:
        """Let a suspended qube go on."""
        qube = self.system.qube(name)
        await self._to_the_end(self.running.resume(qube))

    async def fall_asleep(self) -> None:
        """Freeze every running qube, before the machine sleeps."""
        await self._to_the_end(self._sleep.begin())

    async def wake_up(self) -> None:
        """Let those qubes go on that `fall_asleep` froze."""
        await self._to_the_end(self._sleep.end())

    async def set_up_of(self, qube: Qube, patience: float) -> int | None:
        """How many things failed in what a running qube does once when it begins.

        None where that goes on after `patience` seconds, or is not known.
        """
        return await self.running.set_up_of(qube, patience)

    async def usage(self, qube: Qube) -> Usage:
        """The memory and the processor time that a qube uses; nothing where it does not run."""
        return await self.running.usage(qube)

    async def discard(self, name: QubeName) -> None:
        """End a disposable whose call is over.

        Raises:
            PermissionDeniedError: the qube was not made for a call.
        """
        qube = self.system.qube(name)
        if OF_CALL not in qube.features:
            raise PermissionDeniedError(f"qube `{name}` is no disposable of a call")
        await self._to_the_end(self._discard(qube))

    async def set_property(
        self,
        name: QubeName | None,
        prop: PropertyName,
        untrusted_value: str,
        origin: QubeName = DOM0,
    ) -> None:
        """Set a property; None is the system itself. A running qube follows at once."""
        await self._replanned(
            name,
            lambda qube: self.system.plan_set(qube, prop, untrusted_value, self._ledger.up),
            origin,
        )

    async def reset_property(
        self, name: QubeName | None, prop: PropertyName, origin: QubeName = DOM0
    ) -> None:
        """Let a property have its default again."""
        await self._replanned(
            name, lambda qube: self.system.plan_reset(qube, prop, self._ledger.up), origin
        )

    async def _replanned(
        self, name: QubeName | None, plan: Callable[[Qube | None], Change], origin: QubeName
    ) -> None:
        """Carry a change of a property out, unless its qube is removed before that begins."""
        qube = None if name is None else self.system.qube(name)

        async def change() -> None:
            if qube is not None:
                self._ledger.require(qube)
            await self._relinked(plan(qube), origin)

        await self._to_the_end(change())

    async def _relinked(self, change: Change, origin: QubeName) -> None:
        """Enter a change and move the links of running qubes whose network qube it changes."""
        if not any(getattr(op, "name", None) in _REWIRING for op in change.ops):
            await self._ledger.commit(change, origin)
            return
        up = [qube for qube in self._ledger.powers if self._ledger.up(qube)]
        former = {qube: self.system.netvm_of(qube) for qube in up}
        await self._ledger.commit(change, origin)
        for qube, netvm in former.items():
            if self.system.netvm_of(qube) is not netvm:
                await self.running.replug(qube)

    async def _to_the_end(self, act: Coroutine[Any, Any, T]) -> T:
        """Carry an act out although whoever asked for it may go away; the daemon's end stops it.

        Half an act would leave a qube that is neither started nor halted.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def carry_out() -> None:
            try:
                result = await act
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                if outcome.cancelled():
                    _log.info("failed after its caller had gone", error=str(error))
                else:
                    outcome.set_exception(error)
            else:
                if not outcome.cancelled():
                    outcome.set_result(result)

        def over(_task: object) -> None:
            act.close()  # the daemon may have ended before it began
            outcome.cancel()

        self._tasks.create_task(carry_out()).add_done_callback(over)
        return await outcome

    async def _create(self, plan: Callable[[], Change], origin: QubeName = DOM0) -> Qube:
        """Enter a new qube; at no moment, and after no crash, does it lack its own layers."""
        change = plan()
        if lacks_private(change):
            # Planned anew afterwards: while the layer is made, the world moves on.
            layer = await self._volumes.first_private()
            try:
                change = with_private(plan(), layer)
                await self._ledger.commit(change, origin)
            finally:
                self._volumes.drop_unless_used(layer)
        else:
            await self._ledger.commit(change, origin)
        uuid = next(op.uuid for op in change.ops if isinstance(op, AddQube))
        qube = self.system.by_uuid.get(uuid)
        if qube is None:
            raise QubeNotFoundError("the new qube was removed at once by someone else")
        async with self._ledger.power(qube).turn:
            self._ledger.require(qube)
            try:
                await self._volumes.create(qube)
            except BaseException:
                await self._retire(qube)
                raise
            self._ledger.publish(qube, "domain-create-on-disk")
        return qube

    async def _install_template(self, name: QubeName, label: LabelName, layer: str) -> None:
        try:
            qube = self.system.qubes.get(name)
            if qube is None:
                qube = await self._create(
                    lambda: self.system.plan_create(Klass.TEMPLATE, name, label, None, DOM0)
                )
            async with self._ledger.power(qube).turn:
                self._ledger.require(qube)
                await self._volumes.fill(qube, ROOT, layer)
        finally:
            self._volumes.drop_unless_used(layer)

    async def _remove(self, qube: Qube, origin: QubeName) -> None:
        async with self._ledger.power(qube).turn:
            self._ledger.require(qube)
            await self._erase(qube, origin)

    async def _discard(self, qube: Qube) -> None:
        power = self._ledger.power(qube)
        if power.state is PowerState.TRANSIENT and power.instance is None:
            async with power.turn:  # until its start comes to something that can be ended
                pass
        if power.state is PowerState.HALTED:
            await self._retire(qube)
        else:
            await self.running.kill(qube)

    async def _erase(self, qube: Qube, origin: QubeName = DOM0) -> None:
        # A qube of another machine never halts here, and has nothing that runs.
        halted = qube.klass is Klass.REMOTE or self._ledger.state(qube) is PowerState.HALTED
        change = self.system.plan_remove(qube, halted)
        states = tuple(qube.volumes.values())
        await self._ledger.commit(change, origin)
        self._ledger.powers.pop(qube, None)
        self._volumes.drop(states)
        self._ledger.publish(qube, "domain-remove-from-disk")

    async def _retire(self, qube: Qube) -> None:
        """Remove a qube that came to nothing, or that cleans up after itself."""
        if self.system.qubes.get(qube.name) is qube:
            await self._erase(qube)

    def _runtime_value(self, qube: Qube, name: str) -> object | None:
        power = self._ledger.powers.get(qube)
        instance = None if power is None else power.instance
        if instance is None:
            return None
        match name:
            case "xid":
                return instance.pid
            case "start_time":
                return instance.started
            case "isolation":
                return self.running.isolation
            case _:
                return None
