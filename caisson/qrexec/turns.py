"""Whose question is shown next: one of each asker, few at once, each asker in its turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from caisson.errors import CaissonError

MOST_SHOWN = 8
"""Questions before the person at once, each of another asker; agents show one after the other."""

MOST_WAITING = 8
MOST_WAITING_IN_ALL = 256


class Turns:
    """The questions to one person."""

    def __init__(self) -> None:
        # In the order of turns: who had one goes to the end.
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self._count = 0
        self._shown: set[Hashable] = set()

    def waiting(self, asker: Hashable) -> int:
        """How many questions of an asker wait behind the one that is shown."""
        return len(self._waiting.get(asker, ()))

    @asynccontextmanager
    async def turn(self, asker: Hashable) -> AsyncIterator[None]:
        """Wait for the asker's turn, and have it.

        Raises:
            CaissonError: too many wait.
        """
        await self._come_up(asker)
        try:
            yield
        finally:
            self._end(asker)

    async def _come_up(self, asker: Hashable) -> None:
        own = self.waiting(asker)
        # The first question of an asker has room whatever the others do.
        if own >= MOST_WAITING or (own and self._count >= MOST_WAITING_IN_ALL):
            raise CaissonError(f"too many questions of {asker} wait for a person")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asker, deque()).append(turn)
        self._count += 1
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(asker, turn)
            else:
                # It came up at the very moment.
                self._end(asker)
            raise

    def _advance(self) -> None:
        while len(self._shown) < MOST_SHOWN:
            asker = next((o for o in self._waiting if o not in self._shown), None)
            if asker is None:
                return
            queue = self._waiting.pop(asker)
            turn = queue.popleft()
            self._count -= 1
            if queue:
                self._waiting[asker] = queue
            if not turn.cancelled():
                self._shown.add(asker)
                turn.set_result(None)

    def _leave(self, asker: Hashable, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(asker)
        if queue is None or turn not in queue:
            return
        queue.remove(turn)
        self._count -= 1
        if not queue:
            del self._waiting[asker]

    def _end(self, asker: Hashable) -> None:
        self._shown.discard(asker)
        self._advance()
