"""The life of qubes on an engine in memory, with a real store and pool, restarts included."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from patience import PATIENCE

from caisson.engines import BARRIERS, MemoryEngine
from caisson.engines.memory import MemoryInstance
from caisson.errors import CaissonError, NetworkError
from caisson.lifecycle import DomainInfo, NoDoor, Qubes
from caisson.lifecycle.events import Subscription
from caisson.model import Host, Klass, PowerState, Qube, System
from caisson.names import DOM0, LabelName, QubeName
from caisson.network import Endpoint, Uplink
from caisson.paths import Paths
from caisson.storage import Pool
from caisson.storage.volumes import layers_of
from caisson.store import Store

RED = LabelName("red")
TEMPLATE = QubeName("tpl")
WORK = QubeName("work")
BASE = QubeName("base")
NET = QubeName("sys-net")


def report(*down: str) -> dict[str, Any]:
    """What an agent reports, with some barriers down."""
    return {"barriers": {name: {"up": name not in down, "detail": ""} for name in BARRIERS}}


async def until(condition: Callable[[], object]) -> None:
    """Return when a condition that nothing announces holds; fail when it does not come true.

    It counts real seconds: the loop's own may be set forward.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0)


class Clock:
    """The clock of the running event loop, which can be set forward."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._real = self._loop.time
        self._ahead = 0.0
        self._loop.time = lambda: self._real() + self._ahead  # type: ignore[method-assign]

    def advance(self, seconds: float) -> None:
        """Let seconds pass at once."""
        self._ahead += seconds


class TestDoor(NoDoor):
    """A broker that notes what it is told, slowly if asked to, and fails on request."""

    __test__ = False

    def __init__(self) -> None:
        self.fail_open: CaissonError | None = None
        self.states: dict[str, str] = {}
        self.opened: set[str] = set()
        self.admitted: list[str] = []
        self.rejected: list[int] = []
        self.hold: asyncio.Event | None = None

    async def push(self, changed: Mapping[str, DomainInfo], removed: Iterable[str] = ()) -> None:
        """Note the states."""
        if self.hold is not None:
            await self.hold.wait()
        self.states |= {name: str(info["power_state"]) for name, info in changed.items()}
        for name in removed:
            self.states.pop(name, None)

    async def open_qube(self, name: QubeName) -> Path:
        """Note that it is open."""
        if self.fail_open is not None:
            raise self.fail_open
        self.opened.add(name)
        return await super().open_qube(name)

    async def close_qube(self, name: QubeName) -> None:
        """Note that it is closed."""
        self.opened.discard(name)

    def admit(self, name: QubeName, pid: int) -> None:
        """Note who was admitted."""
        self.admitted.append(name)

    def reject(self, name: QubeName, pid: int, reason: str) -> None:
        """Note who was rejected."""
        self.rejected.append(pid)


class Wires:
    """A network that is only remembered, as the engine's qubes are."""

    def __init__(self) -> None:
        self.plugged: set[tuple[str, str]] = set()
        self.fail_plug = False

    async def prepare(self, netvm: Endpoint, clients: object, uplink: Uplink | None) -> None:
        """Nothing to prepare."""

    async def plug(self, client: Endpoint, netvm: Endpoint) -> None:
        """Remember a link."""
        if self.fail_plug:
            raise NetworkError("no link can be made")
        self.plugged.add((client.name, netvm.name))

    async def unplug(self, client: Endpoint, netvm: Endpoint) -> None:
        """Forget a link."""
        self.plugged.discard((client.name, netvm.name))

    async def forget(self, client: Endpoint, netvm: Endpoint) -> None:
        """Forget a link whose client is gone."""
        self.plugged.discard((client.name, netvm.name))

    async def drop_uplink(self, qid: int, uplink: Uplink) -> None:
        """Nothing to drop."""

    async def sweep(self, qids: Iterable[int]) -> None:
        """Nothing to sweep."""


class _StopError(Exception):
    pass


class Lab:
    """One instance: its daemon can be restarted, its machine (engine, pool, store) goes on."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.paths.state.mkdir(parents=True)
        self.engine = MemoryEngine()
        self.engine.on_start = self.play_agent
        self.pool = Pool(self.paths.pool)
        self.wires = Wires()
        self.report = report()
        self.silent = False
        self.door: TestDoor
        self.store: Store
        self.system: System
        self.qubes: Qubes
        self.heard: Subscription
        self._stop: asyncio.Event
        self._threads: ThreadPoolExecutor
        self._life: asyncio.Task[None]

    def play_agent(self, instance: MemoryInstance) -> None:
        """Report the barriers as soon as the loop turns."""
        if not self.silent:
            said = self.qubes.running.agent_said
            asyncio.get_running_loop().call_soon(said, instance.name, instance.pid, self.report)

    async def begin(self) -> None:
        """Start the daemon."""
        ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._threads = ThreadPoolExecutor(4)
        asyncio.get_running_loop().set_default_executor(self._threads)
        self._life = asyncio.create_task(self._live(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self._life, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._life.done():
            self._life.result()

    async def stop(self) -> None:
        """Stop the daemon; qubes run on."""
        self._stop.set()
        await self._life
        self._threads.shutdown()  # with a real daemon they end, too

    async def restart(self) -> None:
        """Stop the daemon and start the next one."""
        await self.stop()
        await self.begin()

    async def _live(self, ready: asyncio.Event) -> None:
        self.door = TestDoor()
        self.store = Store.open(self.paths.database)
        self.system = System(Host(memory=8000, cpus=4))
        self.system.load(self.store.load())
        try:
            async with asyncio.TaskGroup() as tasks:
                self.qubes = Qubes(
                    self.system,
                    self.store,
                    engine=self.engine,
                    network=self.wires,  # type: ignore[arg-type]
                    pool=self.pool,
                    door=self.door,
                    qube_files=self.paths.state,
                    facts=self.paths.facts,
                    tasks=tasks,
                )
                self.heard = self.qubes.events.subscribe()
                await self.qubes.recover()
                ready.set()
                await self._stop.wait()
                raise _StopError
        except BaseExceptionGroup as ended:
            if ended.split(_StopError)[1]:
                raise
        finally:
            self.store.close()

    async def populate(self) -> None:
        """Make a template, `work` based on it and `base` for disposables; without a network."""
        await self.install(TEMPLATE)
        self.set(None, "default_template", TEMPLATE)
        await self.app(WORK)
        await self.app(BASE)
        self.set(BASE, "template_for_dispvms", "True")
        await self.settle()
        self.news()

    async def settle(self) -> None:
        """Let the tasks that are ready run."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def install(self, name: QubeName) -> None:
        """Make a template with a root of one layer, or give it a new root."""
        with self.pool.building(sync=False) as new:
            (new.tree / "etc").mkdir()
        await self.qubes.install_template(name, RED, new.id)

    async def app(self, name: QubeName) -> Qube:
        """Make an AppVM."""
        return await self.qubes.create(Klass.APP, name, RED, None, DOM0)

    async def network(self) -> None:
        """Make `sys-net` the network qube of `work`."""
        await self.app(NET)
        self.set(NET, "provides_network", "True")
        self.set(NET, "netvm", "")
        self.set(WORK, "netvm", NET)
        self.news()

    def set(self, name: QubeName | None, prop: str, value: str) -> None:
        """Set a property, at once."""
        qube = None if name is None else self.system.qube(name)
        change = self.system.plan_set(qube, prop, value, lambda _: False)
        self.store.write(change.ops)
        self.system.apply(change)

    def state(self, name: QubeName) -> PowerState:
        """What a qube is doing."""
        return self.qubes.power_state(name)

    def instance(self, name: str) -> MemoryInstance:
        """What runs of a qube."""
        return next(i for i in self.engine.running.values() if i.name == name)

    def running(self) -> list[str]:
        """The qubes that the engine runs."""
        return sorted(instance.name for instance in self.engine.running.values())

    def news(self, subject: str | None = None, *, without: tuple[str, ...] = ()) -> list[str]:
        """The events since the last look, by name; about one qube if that is given."""
        events = self.heard.take()
        return [
            event.name
            for event in events
            if (subject is None or event.subject == subject or event.kwargs.get("vm") == subject)
            and not event.name.startswith(without)
        ]

    def write(self, name: QubeName, file: str, content: str = "x") -> None:
        """Let a running qube write a file into its private volume."""
        private = self.instance(name).spec.private
        assert private is not None
        assert private.upper is not None
        (self.pool.path(private.upper) / "d" / file).write_text(content)

    def read(self, name: QubeName, file: str) -> str | None:
        """A file in the private volume of a halted qube, in its newest layer that has it."""
        for layer in self.system.qube(name).volumes["private"].layers:  # type: ignore[index]
            with suppress(FileNotFoundError):
                return (self.pool.path(layer) / "d" / file).read_text()
        return None

    def known_layers(self) -> set[str]:
        """Every layer that a volume needs."""
        return layers_of(
            state for qube in self.system.qubes.values() for state in qube.volumes.values()
        )

    def dirty(self, name: QubeName) -> list[str]:
        """The volumes of a qube that have a writable layer."""
        volumes = self.system.qube(name).volumes.values()
        return [state.name for state in volumes if state.dirty is not None]

    def untouched(self, name: QubeName) -> bool:
        """Whether nothing of a run is left: on disk, in the engine, at the broker, on the wire."""
        return (
            self.state(name) is PowerState.HALTED
            and self.dirty(name) == []
            and name not in self.running()
            and name not in self.door.opened
            and not any(name in ends for ends in self.wires.plugged)
            and self.pool.layers() == self.known_layers()
        )

    def refuse_writes(self, *, really: bool = True) -> None:
        """Let the store refuse every write, or take them again."""
        self.store._connection.execute(f"PRAGMA query_only={'ON' if really else 'OFF'}")


@asynccontextmanager
async def lifecycle_lab(root: Path) -> AsyncIterator[Lab]:
    """A populated instance for as long as the context lasts."""
    made = Lab(root / "instance")
    await made.begin()
    try:
        await made.populate()
        yield made
    finally:
        await made.stop()
        made.pool.close()
