"""What running qubes use, measured at intervals for whoever listens (section 3.4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from caisson.engines import Engine, Instance
from caisson.errors import EngineError
from caisson.lifecycle.events import EventBus, Hearing, Subscription
from caisson.lifecycle.ledger import Ledger
from caisson.lifecycle.spec import memory_limit
from caisson.model import Qube
from caisson.model.events import event_of

EVENT = "vm-stats"
_KIB = 1024


@dataclass(frozen=True, slots=True)
class _Sample:
    """One measurement: when, by the steady clock in seconds, and the CPU time in ms."""

    at: float
    cpu_time: int


class Stats:
    """Measures all running qubes as long as anybody listens, however many do."""

    def __init__(self, ledger: Ledger, engine: Engine) -> None:
        self._ledger = ledger
        self._engine = engine
        self._bus = EventBus()
        self._listeners = 0
        self._measuring: asyncio.Task[None] | None = None
        self._last: dict[Instance, _Sample] = {}

    @asynccontextmanager
    async def listen(
        self, hearing: Hearing | None = None, *, patience: float | None = None
    ) -> AsyncIterator[Subscription]:
        """Hear an event `vm-stats` for each running qube, every `stats_interval` seconds.

        Args:
            hearing: which of them are heard; None for all.
            patience: how many seconds one may stay queued; None for any time.
        """
        self._listeners += 1
        if self._measuring is None:
            self._measuring = asyncio.create_task(self._measure_on())
        try:
            with self._bus.subscribe(hearing, patience=patience) as subscription:
                yield subscription
        finally:
            self._listeners -= 1
            if not self._listeners:
                measuring, self._measuring = self._measuring, None
                measuring.cancel()
                await asyncio.gather(measuring, return_exceptions=True)

    async def _measure_on(self) -> None:
        while True:
            started = time.monotonic()
            await self._measure_all()
            seconds = int(str(self._ledger.system.value(None, "stats_interval")))
            await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))

    async def _measure_all(self) -> None:
        running = {
            qube: power.instance
            for qube, power in self._ledger.powers.items()
            if power.instance is not None
        }
        former, self._last = self._last, {}
        for qube, instance in running.items():
            try:
                usage = await self._engine.usage(instance)
            except EngineError:  # it is just ending
                continue
            now = _Sample(time.monotonic(), usage.cpu_time)
            self._last[instance] = now
            kwargs = self._limits(qube) | {
                "memory_kb": usage.memory,
                "memory_with_swap_used": usage.memory + (usage.swap or 0),
                "cpu_time": usage.cpu_time,
                "cpu_usage": _percent(former.get(instance), now, self._processors(qube)),
                "online_vcpus": self._processors(qube),
            }
            if usage.swap is not None:
                kwargs["swap_used"] = usage.swap
            self._bus.publish(
                event_of(qube, EVENT, {key: str(kwargs[key]) for key in _ORDER if key in kwargs})
            )

    def _limits(self, qube: Qube) -> dict[str, int]:
        limit = memory_limit(self._ledger.system, qube) * _KIB
        return {"memory_assigned_total": limit, "memory_assigned_usable": limit}

    def _processors(self, qube: Qube) -> int:
        return int(str(self._ledger.system.value(qube, "vcpus")))


_ORDER = (
    "memory_kb",
    "memory_assigned_total",
    "memory_assigned_usable",
    "memory_with_swap_used",
    "swap_used",
    "cpu_time",
    "cpu_usage",
    "online_vcpus",
)


def _percent(former: _Sample | None, now: _Sample, processors: int) -> int:
    """How much of its processors a qube used between two samples."""
    if former is None or now.at <= former.at:
        return 0
    used = (now.cpu_time - former.cpu_time) / 1_000 / (now.at - former.at)
    return max(0, round(100 * used / processors))
