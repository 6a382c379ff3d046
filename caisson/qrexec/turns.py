"""Whose question is shown next: one a qube, few at once, each qube in its turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from caisson.errors import CaissonError

MOST_SHOWN = 8
"""Questions before the person at once, each of another qube; an agent shows one after the other."""

MOST_WAITING = 8
MOST_WAITING_IN_ALL = 256


class Turns:
    """The questions to one person."""

    def __init__(self) -> None:
        # In the order of turns: who had one goes to the end.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._count = 0
        self._shown: set[str] = set()

    def waiting(self, origin: str) -> int:
        """How many questions of a qube wait behind the one that is shown."""
        return len(self._waiting.get(origin, ()))

    @asynccontextmanager
    async def turn(self, origin: str) -> AsyncIterator[None]:
        """Wait for the qube's turn, and have it.

        Raises:
            CaissonError: too many wait.
        """
        await self._come_up(origin)
        try:
            yield
        finally:
            self._end(origin)

    async def _come_up(self, origin: str) -> None:
        own = self.waiting(origin)
        # The first question of a qube has room whatever the others do.
        if own >= MOST_WAITING or (own and self._count >= MOST_WAITING_IN_ALL):
            raise CaissonError("too many questions of this qube wait for a person")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(origin, deque()).append(turn)
        self._count += 1
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(origin, turn)
            else:
                # It came up at the very moment.
                self._end(origin)
            raise

    def _advance(self) -> None:
        while len(self._shown) < MOST_SHOWN:
            origin = next((o for o in self._waiting if o not in self._shown), None)
            if origin is None:
                return
            queue = self._waiting.pop(origin)
            turn = queue.popleft()
            self._count -= 1
            if queue:
                self._waiting[origin] = queue
            if not turn.cancelled():
                self._shown.add(origin)
                turn.set_result(None)

    def _leave(self, origin: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(origin)
        if queue is None or turn not in queue:
            return
        queue.remove(turn)
        self._count -= 1
        if not queue:
            del self._waiting[origin]

    def _end(self, origin: str) -> None:
        self._shown.discard(origin)
        self._advance()
