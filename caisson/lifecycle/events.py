"""Who hears of what happens: events go to every subscriber in order, or the subscription ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from caisson.model import Event

_BACKLOG = 262_144
"""Of 10,000 qubes, each may have a dozen properties that move with one default."""
Wanted = Callable[[Event], bool]


def _every(_event: Event) -> bool:
    return True


class Subscription:
    """One listener's queue of events; iterate over it.

    A listener that falls too far behind loses the subscription, never single events:
    iteration ends, and it must read the state anew.
    """

    def __init__(self, bus: EventBus, wanted: Wanted) -> None:
        self._bus = bus
        self._wanted = wanted
        self._events: deque[Event] = deque()
        self._more = asyncio.Event()
        self._over = False

    def put(self, event: Event) -> None:
        """Queue one event, if it is wanted."""
        if not self._wanted(event):
            return
        if len(self._events) >= _BACKLOG:
            self.close()
            return
        self._events.append(event)
        self._more.set()

    def close(self) -> None:
        """End the subscription; what is queued is dropped."""
        self._over = True
        self._events.clear()
        self._more.set()
        self._bus.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._over:
                raise StopAsyncIteration
            self._more.clear()
            await self._more.wait()
        return self._events.popleft()


class EventBus:
    """Hands every published event to every subscriber, in the order of publication."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def subscribe(self, wanted: Wanted = _every) -> Subscription:
        """Start to listen; use it as a context manager and iterate over it.

        Args:
            wanted: asked about each event when it is published; it must not fail.
        """
        subscription = Subscription(self, wanted)
        self._subscriptions.add(subscription)
        return subscription

    def discard(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        self._subscriptions.discard(subscription)

    def publish(self, *events: Event) -> None:
        """Queue events to all; never waits."""
        for event in events:
            for subscription in tuple(self._subscriptions):
                subscription.put(event)
