"""What a person puts up with: how often a qube may ask, and which qubes are not heard for now.

Kept by the qube whose turn a question takes (`asking.origin_of`), on a monotonic clock, in
memory: a broker that starts anew has forgotten it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MUTED_FOR = 600.0
"""Seconds for which a qube is not heard after `deny all from this qube for now`."""

_MANY = 1024

Clock = Callable[[], float]


class Allowance:
    """So many at once, and another every few seconds: a bucket of tokens for each qube.

    Args:
        burst: tokens in a full bucket.
        seconds: how long it takes until a token is there again.
        clock: seconds that never run backwards.
    """

    def __init__(self, burst: int, seconds: float, clock: Clock) -> None:
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}
        self._many = _MANY

    def has(self, origin: str) -> bool:
        """Whether a token is there."""
        return self._level(origin) >= 1

    def take(self, origin: str) -> bool:
        """Take a token, if one is there."""
        level = self._level(origin)
        if level < 1:
            return False
        if len(self._levels) >= self._many:
            self._forget_full()
        self._levels[origin] = (level - 1, self._clock())
        return True

    def give_back(self, origin: str) -> None:
        """What the token was taken for did not cost anything."""
        if origin in self._levels:
            self._levels[origin] = (min(self._burst, self._level(origin) + 1), self._clock())

    def _level(self, origin: str) -> float:
        level, then = self._levels.get(origin, (self._burst, 0.0))
        return min(self._burst, level + (self._clock() - then) / self._seconds)

    def _forget_full(self) -> None:
        self._levels = {o: v for o, v in self._levels.items() if self._level(o) < self._burst}
        self._many = max(_MANY, 2 * len(self._levels))


class Mute(NamedTuple):
    """Who does not want to hear from a qube, and for how many seconds more."""

    by: str
    left: float


class Mutes:
    """The qubes that are not heard for now.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, tuple[float, str]] = {}

    def begin(self, origin: str, by: str) -> None:
        """Do not hear this qube from now on."""
        now = self._clock()
        self._until = {o: entry for o, entry in self._until.items() if entry[0] > now}
        self._until[origin] = (now + MUTED_FOR, by)

    def find(self, origin: str) -> Mute | None:
        """Whether the qube is not heard."""
        until, by = self._until.get(origin, (0.0, ""))
        left = until - self._clock()
        return Mute(by, left) if by and left > 0 else None
