"""What one caller may use of the daemon: bounds that keep one qube from starving the others.

The admin qube is not bounded: whoever acts there can stop the daemon anyway.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from caisson.errors import CaissonError
from caisson.names import DOM0

REQUEST_SECONDS = 10.0
"""How long a client may take to send its whole request."""
ANSWER_SECONDS = 60.0
"""How long a client may leave one answer or one event unread, and lag behind events in all."""
MOST_AT_ONCE = 2
"""Calls of one qube that are worked on at once; the others wait in order."""
MOST_STREAMS = 8
"""Streams of events of one qube."""


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
