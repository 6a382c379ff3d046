"""What is put up with: how often one may ask or tell, and who is not heard for now.

Kept for each asker (to a person, an `asking.Asker`; to qubesd, a qube's UUID), on a monotonic
clock, in memory: a daemon that starts anew has forgotten it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

MUTED_FOR = 600.0
"""Seconds for which an asker is not heard after `deny all from ... for now`."""

_MANY = 1024

Clock = Callable[[], float]


class Allowance:
    """So many at once, and another every few seconds: a bucket of tokens for each asker.

    Args:
        burst: tokens in a full bucket.
        seconds: how long it takes until a token is there again.
        clock: seconds that never run backwards.
    """

    def __init__(self, burst: int, seconds: float, clock: Clock) -> None:
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._levels: dict[Hashable, tuple[float, float]] = {}
        self._many = _MANY

    def has(self, asker: Hashable) -> bool:
        """Whether a token is there."""
        return self._level(asker) >= 1

    def take(self, asker: Hashable) -> bool:
        """Take a token, if one is there."""
        level = self._level(asker)
        if level < 1:
            return False
        if len(self._levels) >= self._many:
            self._forget_full()
        self._levels[asker] = (level - 1, self._clock())
        return True

    def give_back(self, asker: Hashable) -> None:
        """What the token was taken for did not cost anything."""
        if asker in self._levels:
            self._levels[asker] = (min(self._burst, self._level(asker) + 1), self._clock())

    def _level(self, asker: Hashable) -> float:
        level, then = self._levels.get(asker, (self._burst, 0.0))
        return min(self._burst, level + (self._clock() - then) / self._seconds)

    def _forget_full(self) -> None:
        self._levels = {a: v for a, v in self._levels.items() if self._level(a) < self._burst}
        self._many = max(_MANY, 2 * len(self._levels))


class Mute(NamedTuple):
    """Who does not want to hear from an asker, and for how many seconds more."""

    by: str
    left: float


class Mutes:
    """The askers that are not heard for now.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[Hashable, tuple[float, str]] = {}

    def begin(self, asker: Hashable, by: str) -> None:
        """Do not hear this asker from now on."""
        now = self._clock()
        self._until = {a: entry for a, entry in self._until.items() if entry[0] > now}
        self._until[asker] = (now + MUTED_FOR, by)

    def find(self, asker: Hashable) -> Mute | None:
        """Whether the asker is not heard."""
        until, by = self._until.get(asker, (0.0, ""))
        left = until - self._clock()
        return Mute(by, left) if by and left > 0 else None
