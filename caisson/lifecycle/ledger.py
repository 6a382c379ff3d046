"""Where every change is entered: the store first, then memory, the broker, the listeners."""

from __future__ import annotations

from collections.abc import Iterable

from caisson.lifecycle.door import Door
from caisson.lifecycle.events import EventBus
from caisson.lifecycle.power import Power
from caisson.model import Change, Event, PowerState, Qube, System
from caisson.names import QubeName
from caisson.store import Store


class Ledger:
    """The one writer of the model, and of what the broker knows of it."""

    def __init__(self, system: System, store: Store, door: Door) -> None:
        self.system = system
        self.events = EventBus()
        self.powers: dict[Qube, Power] = {}
        self._store = store
        self._door = door

    def power(self, qube: Qube) -> Power:
        """The run-time state of a qube."""
        return self.powers.setdefault(qube, Power())

    def state(self, qube: Qube) -> PowerState:
        """What a qube is doing; the admin qube always runs."""
        if qube is self.system.dom0:
            return PowerState.RUNNING
        power = self.powers.get(qube)
        return PowerState.HALTED if power is None else power.state

    def up(self, qube: Qube) -> bool:
        """Whether others may depend on the qube now."""
        return qube is self.system.dom0 or (qube in self.powers and self.powers[qube].up)

    async def commit(self, change: Change) -> None:
        """Make a planned change real; returns when no call is decided on the old state any more.

        A plan and its entry belong together: nothing may be awaited in between.
        The write is synchronous for that reason, and takes about as long as a disk's flush.

        Raises:
            StorageError: the store refused; nothing changed.
        """
        self.events.publish(*change.before)
        before = dict.fromkeys(self.system.affected_by(change))
        self._store.write(change.ops)
        self.system.apply(change)
        await self.tell(before | dict.fromkeys(self.system.affected_by(change)))
        self.events.publish(*change.events)

    async def tell(self, names: Iterable[QubeName]) -> None:
        """Hand the broker what it knows of some qubes, anew."""
        known = {name: self.system.qubes.get(name) for name in names}
        changed = {
            str(name): self.system.info_of(qube, self.state(qube))
            for name, qube in known.items()
            if qube is not None
        }
        await self._door.push(changed, [name for name, qube in known.items() if qube is None])

    def publish(self, qube: Qube, name: str, **values: str) -> None:
        """Tell the listeners of something that happened to a qube."""
        self.events.publish(Event(qube.name, name, values))
