"""Who hears of what happens: events go to every subscriber in order, or the subscription ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Self

import structlog

from caisson.model import Event

_BACKLOG = 262_144
"""Of 10,000 qubes, each may have a dozen properties that move with one default."""
_MOST_BYTES = 32 << 20
"""How much text one subscription may have queued."""
_UNBROKEN = 100
"""So many events are handed over before others get a turn."""
_log = structlog.get_logger("events")

Hearing = Callable[[], Callable[[Event], bool]]
"""Called for every batch of events: looks at the rules as they are now, and returns which events
of the batch are heard. Subscriptions whose hearings are equal are judged once."""
Clock = Callable[[], float]


class Subscription:
    """One listener's queue of events; iterate over it.

    A listener that falls too far behind loses the subscription, never single events:
    iteration ends, and it must read the state anew.

    Args:
        bus: where it listens.
        hearing: which events it hears; None for all.
        patience: how old, in seconds, the oldest event that it has not taken may get.
        clock: the time in seconds.
    """

    def __init__(
        self, bus: EventBus, hearing: Hearing | None, patience: float | None, clock: Clock
    ) -> None:
        self.hearing = hearing
        self._bus = bus
        self._patience = patience
        self._clock = clock
        self._events: deque[Event] = deque()
        self._since: deque[float] = deque()
        self._bytes = 0
        self._handed_over = 0
        self._more = asyncio.Event()
        self._over = False

    def put(self, event: Event) -> None:
        """Queue one event."""
        size = _size(event)
        if self._over:
            return
        if len(self._events) >= _BACKLOG or self._bytes + size > _MOST_BYTES or self._lags():
            self.close()
            return
        self._events.append(event)
        self._since.append(self._clock())
        self._bytes += size
        self._more.set()

    def close(self) -> None:
        """End the subscription; what is queued is dropped."""
        self._over = True
        self.take()
        self._more.set()
        self._bus.discard(self)

    def take(self) -> list[Event]:
        """Everything that is queued, at once."""
        taken = list(self._events)
        self._events.clear()
        self._since.clear()
        self._bytes = 0
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        await self._give_way()
        if self._lags():
            self.close()
        while not self._events:
            if self._over:
                raise StopAsyncIteration
            self._more.clear()
            await self._more.wait()
        event = self._events.popleft()
        self._since.popleft()
        self._bytes -= _size(event)
        return event

    async def _give_way(self) -> None:
        """A long queue is not worked off in one go: nothing else would run meanwhile."""
        self._handed_over += 1
        if self._handed_over >= _UNBROKEN:
            self._handed_over = 0
            await asyncio.sleep(0)

    def _lags(self) -> bool:
        if self._patience is None or not self._since:
            return False
        return self._clock() - self._since[0] > self._patience


class EventBus:
    """Hands every published event to those that hear it, in the order of publication.

    Who hears an event is judged when it is published: what a listener may not hear is never
    queued, and what happens to a name afterwards changes nothing.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._subscriptions: dict[Hearing | None, dict[Subscription, None]] = {}

    def subscribe(
        self, hearing: Hearing | None = None, *, patience: float | None = None
    ) -> Subscription:
        """Start to listen; use it as a context manager and iterate over it.

        Args:
            hearing: which events are heard; None for all. It must not change anything.
            patience: how many seconds an event may stay queued; None for any time.
        """
        subscription = Subscription(self, hearing, patience, self._clock)
        self._subscriptions.setdefault(hearing, {})[subscription] = None
        return subscription

    @property
    def listeners(self) -> int:
        """How many subscriptions there are."""
        return sum(map(len, self._subscriptions.values()))

    def discard(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        alike = self._subscriptions.get(subscription.hearing, {})
        alike.pop(subscription, None)
        if not alike:
            self._subscriptions.pop(subscription.hearing, None)

    def publish(self, *events: Event) -> None:
        """Queue events to all that hear them as things are now; never waits."""
        for hearing, alike in tuple(self._subscriptions.items()):
            heard = _heard(hearing, events)
            for subscription in tuple(alike):
                if heard is None:
                    subscription.close()
                    continue
                for event in heard:
                    subscription.put(event)


def _heard(hearing: Hearing | None, events: Iterable[Event]) -> Iterable[Event] | None:
    """The events that are heard; None if that cannot be told, which must stop nobody else."""
    if hearing is None:
        return events
    try:
        return list(filter(hearing(), events))
    except Exception:  # noqa: BLE001 - the event has happened, whoever hears of it
        _log.exception("a subscription ends; this is a bug in Caisson, report it")
        return None


def _size(event: Event) -> int:
    return sum(map(len, event.kwargs), len(event.name)) + sum(map(len, event.kwargs.values()))
