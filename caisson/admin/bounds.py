"""What one caller may use of the daemon: bounds that keep one qube from starving the others.

The admin qube is not bounded: whoever acts there can stop the daemon anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from caisson.errors import CaissonError
from caisson.model import ADMIN_UUID, Qube
from caisson.names import DOM0
from caisson.qrexec.patience import Allowance, Clock

REQUEST_SECONDS = 10.0
"""How long a client may take to send its whole request."""
ANSWER_SECONDS = 60.0
"""How long a client may leave one answer or one event unread, and lag behind events in all."""
MOST_AT_ONCE = 2
"""Calls of one qube that are worked on at once; the others wait in order."""
MOST_STREAMS = 8
"""Streams of events of one qube."""
MOST_WORDS = 20
"""What one qube may say of itself in a row; each may change hundreds of features."""
SECONDS_A_WORD = 6.0
"""After so long it may say one more."""
REFUSAL_SECONDS = 1.0
"""So long the refusal of one that is too many is held back, or refusals would be a flood, too."""


@dataclass(slots=True)
class _Line:
    """The calls of one source: those worked on, and those that wait."""

    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_AT_ONCE))
    calls: int = 0


class Turns:
    """Lets a few calls of each source be worked on at once."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def of(self, source: str) -> AsyncIterator[None]:
        """Wait for a turn of this source, and keep it as long as the context lasts."""
        if source == DOM0:
            yield
            return
        line = self._lines.setdefault(source, _Line())
        line.calls += 1
        try:
            async with line.turns:
                yield
        finally:
            line.calls -= 1
            if not line.calls:
                del self._lines[source]


class Streams:
    """Counts the streams of each source."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def of(self, source: str) -> Iterator[None]:
        """Count a stream of this source as long as the context lasts.

        Raises:
            CaissonError: it has as many as it may.
        """
        if source != DOM0 and self._open[source] >= MOST_STREAMS:
            raise CaissonError(
                f"qube `{source}` has too many streams", hint="end one of them first"
            )
        self._open[source] += 1
        try:
            yield
        finally:
            self._open[source] -= 1
            if not self._open[source]:
                del self._open[source]


class Budget:
    """A number of calls for each qube, which grows again with time: none lives on another's.

    Args:
        most: what a qube may have left.
        seconds: the time in which it gets one more.
        pause: seconds before a refusal.
        clock: the time in seconds.
    """

    def __init__(
        self,
        most: int = MOST_WORDS,
        seconds: float = SECONDS_A_WORD,
        pause: float = REFUSAL_SECONDS,
        clock: Clock = time.monotonic,
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._pause = pause
        self._allowance = Allowance(most, seconds, clock)

    async def spend(self, source: Qube) -> None:
        """Take one call from the budget of a qube; the admin qube has no bound.

        Raises:
            CaissonError: nothing is left of it.
        """
        # By identity: one that takes over a name is another qube.
        if source.uuid == ADMIN_UUID or self._allowance.take(source.uuid):
            return
        await asyncio.sleep(self._pause)
        raise CaissonError(
            f"qube `{source.name}` says too much of itself: {self._most} calls in a row, then "
            f"one in {self._seconds:g} s",
            hint=f"try again in {self._seconds:g} s",
        )
