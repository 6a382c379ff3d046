"""The run-time state of a qube: what it is doing, and who may change that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caisson.engines import Instance
from caisson.model import PowerState


@dataclass(eq=False)
class Power:
    """One qube's state; whoever starts, stops or changes the running qube holds `turn`.

    Attributes:
        state: as told on the wire.
        instance: what the engine runs, from the start of its init process until it is gone.
        claims: reports of processes that spoke before the engine said which one is the first.
        verdict: the barriers that are not up, once the agent has reported.
        set_up: how many things failed in the qube's own set-up, once its agent has told.
        gone: set while nothing of the qube runs and its volumes are put away.
    """

    state: PowerState = PowerState.HALTED
    instance: Instance | None = None
    claims: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    verdict: asyncio.Future[list[str]] | None = None
    set_up: asyncio.Future[int] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gone.set()

    def runs(self, instance: Instance, state: PowerState) -> bool:
        """Whether this very run of the qube is in that state, and not over."""
        return self.state is state and self.instance is instance

    @property
    def up(self) -> bool:
        """Whether others may depend on it now."""
        return self.state in {PowerState.RUNNING, PowerState.PAUSED, PowerState.TRANSIENT}
