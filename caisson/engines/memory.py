"""An engine without processes, for tests of the control plane."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable

from caisson.engines.barriers import BARRIERS
from caisson.engines.interface import ID_RANGE, Instance, RunSpec, Usage
from caisson.errors import EngineError
from caisson.findings import Finding

_BASE = 0x7000_0000


class MemoryInstance(Instance):
    """A qube that is only remembered."""

    def __init__(self, spec: RunSpec, pid: int, uid_base: int, obeys: bool) -> None:
        super().__init__(spec.id, spec.name, pid, uid_base, time.time())
        self.spec = spec
        self.signals: list[signal.Signals] = []
        self._obeys = obeys

    def end(self) -> None:
        """Let the qube end, as if its first process had exited."""
        self._ended.set()

    def _signal(self, number: signal.Signals) -> None:
        if self.ended:
            return
        self.signals.append(number)
        if number is signal.SIGKILL or self._obeys:
            self.end()


class MemoryEngine:
    """The interface of an engine, with failures on request.

    Attributes:
        running: the instances that have not ended, by id.
        fail_start: the error that the next starts raise; None lets them succeed.
        obeys: False makes new instances ignore a request to shut down.
        on_start: called with each new instance, to play the qube's agent.
    """

    name = "memory"
    isolation = "container"
    virt_modes = frozenset({"container"})

    def __init__(self) -> None:
        self.fail_start: EngineError | None = None
        self.obeys = True
        self.on_start: Callable[[MemoryInstance], None] | None = None
        self._instances: dict[str, MemoryInstance] = {}
        self._pids = itertools.count(1001)

    @property
    def running(self) -> dict[str, MemoryInstance]:
        """The instances that have not ended."""
        return {key: found for key, found in self._instances.items() if not found.ended}

    async def start(self, spec: RunSpec) -> MemoryInstance:
        """Remember a new instance, on the lowest free range of ids."""
        if self.fail_start is not None:
            raise self.fail_start
        if spec.id in self._instances:
            raise EngineError(f"a qube with the id `{spec.id}` was started before")
        taken = {instance.uid_base for instance in self.running.values()}
        base = next(b for b in itertools.count(_BASE, ID_RANGE) if b not in taken)
        instance = MemoryInstance(spec, next(self._pids), base, self.obeys)
        self._instances[spec.id] = instance
        if self.on_start is not None:
            self.on_start(instance)
        return instance

    async def adopt(self) -> list[Instance]:
        """Every instance that has not ended."""
        return list(self.running.values())

    async def kill(self, instance: Instance) -> None:
        """End the instance."""
        self._own(instance).end()

    async def pause(self, instance: Instance) -> None:
        """Mark the instance as paused."""
        self._own(instance).paused = True

    async def unpause(self, instance: Instance) -> None:
        """Mark the instance as running."""
        self._own(instance).paused = False

    async def usage(self, instance: Instance) -> Usage:
        """Always the same."""
        if self._own(instance).ended:
            raise EngineError(f"`{instance.name}` has ended")
        return Usage(memory=65_536, cpu_time=1_500)

    def barriers(self, instance: Instance) -> frozenset[str]:
        """The barriers of a container, so that judging a report can be tested."""
        del instance
        return BARRIERS

    async def doctor(self) -> list[Finding]:
        """Nothing is needed."""
        return [Finding("memory engine", ok=True, detail="runs no processes")]

    async def close(self) -> None:
        """Nothing is held."""

    def _own(self, instance: Instance) -> MemoryInstance:
        return self._instances[instance.id]
