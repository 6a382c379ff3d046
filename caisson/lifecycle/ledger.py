"""Where every change is entered: the store first, then memory, the broker, the listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from caisson.errors import PermissionDeniedError, QubeNotFoundError
from caisson.lifecycle.door import Door
from caisson.lifecycle.events import EventBus
from caisson.lifecycle.power import Power
from caisson.model import Change, Event, Klass, PowerState, Qube, System
from caisson.model.events import event_of
from caisson.names import DOM0, QubeName
from caisson.store import Store

Rule = Callable[[System, Change], Change]
"""Turns a planned change into what really happens, or refuses it."""
Heed = Callable[[Change], None]
"""Hears of a change as soon as it is applied, before anybody else; must not fail."""
Judgement = Callable[[QubeName, Change], None]
"""Refuses what a qube may not bring about."""


def _as_planned(_system: System, change: Change) -> Change:
    return change


def _unheeded(_change: Change) -> None:
    pass


def _nobody_else(origin: QubeName, _change: Change) -> None:
    if origin != DOM0:
        raise PermissionDeniedError(f"qube `{origin}` may not change anything here")


class Ledger:
    """The one writer of the model, and of what the broker knows of it."""

    def __init__(self, system: System, store: Store, door: Door) -> None:
        self.system = system
        self.events = EventBus()
        self.powers: dict[Qube, Power] = {}
        self.rule: Rule = _as_planned
        self.judge: Judgement = _nobody_else
        self.heed: Heed = _unheeded
        self._store = store
        self._door = door
        self._in_order = asyncio.Lock()
        self._unheard: list[list[Event]] = []

    def power(self, qube: Qube) -> Power:
        """The run-time state of a qube."""
        return self.powers.setdefault(qube, Power())

    def state(self, qube: Qube) -> PowerState:
        """What a qube is doing; the admin qube and those elsewhere always run."""
        if qube.klass in {Klass.ADMIN, Klass.REMOTE}:
            return PowerState.RUNNING
        power = self.powers.get(qube)
        return PowerState.HALTED if power is None else power.state

    def require(self, qube: Qube) -> None:
        """Make sure that a qube was not removed while its turn was waited for.

        Raises:
            QubeNotFoundError: it was.
        """
        if self.system.qubes.get(qube.name) is not qube:
            raise QubeNotFoundError(f"qube `{qube.name}` does not exist any more")

    def up(self, qube: Qube) -> bool:
        """Whether others may depend on the qube now."""
        return qube is self.system.dom0 or (qube in self.powers and self.powers[qube].up)

    async def commit(self, change: Change, origin: QubeName = DOM0) -> None:
        """Make a planned change real; returns when no call is decided on the old state any more.

        A plan and its entry belong together: nothing may be awaited in between.
        The write is synchronous for that reason, and takes about as long as a disk's flush.

        Args:
            change: the plan.
            origin: the qube that asks for it; it is judged by what happens, whatever it asked.

        Raises:
            PermissionDeniedError: the origin may not bring that about.
            StorageError: the store refused; nothing changed, and nobody heard of it.
        """
        change = self.rule(self.system, change)
        if origin != DOM0:
            self.judge(origin, change)
        before = dict.fromkeys(self.system.affected_by(change))
        self._store.write(change.ops)
        self.system.apply(change)
        self.heed(change)
        names = before | dict.fromkeys(self.system.affected_by(change))
        await self.announce(names, *change.before, *change.events)

    async def announce(self, names: Iterable[QubeName], *events: Event) -> None:
        """Tell the broker of some qubes anew, then the listeners of what happened.

        Everyone hears of changes in the order in which they were made, provided that nothing is
        awaited between a change and this.
        """
        news = list(events)
        self._unheard.append(news)
        try:
            async with self._in_order:
                await self._tell(names)
        finally:
            place = next(i for i, other in enumerate(self._unheard) if other is news)
            del self._unheard[place]
            if place == 0:
                self.events.publish(*news)
            else:  # this task was cancelled while it waited for its turn
                self._unheard[place - 1] += news

    def publish(self, qube: Qube, name: str, /, **values: str) -> None:
        """Tell the listeners of something that is no news to the broker, in its turn."""
        event = event_of(qube, name, values)
        if self._unheard:
            self._unheard[-1].append(event)
        else:
            self.events.publish(event)

    async def _tell(self, names: Iterable[QubeName]) -> None:
        known = {name: self.system.qubes.get(name) for name in names}
        changed = {
            str(name): self.system.info_of(qube, self.state(qube))
            for name, qube in known.items()
            if qube is not None
        }
        if known:
            await self._door.push(changed, [name for name, qube in known.items() if qube is None])
