"""When keys count: not those that were meant for something else (QSB-104).

A terminal tells presses, not releases: a key that is held down looks like many presses, the
second after up to a second, the others in quick succession. So keys count after a whole second
without any.
"""

from __future__ import annotations

from caisson.qrexec.patience import Clock

DEAF = 1.0
"""Seconds without a key after a question appeared, or the terminal got the focus."""


class Caution:
    """One question's.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deaf_until = 0.0
        self.attract()

    def attract(self) -> None:
        """The question has the person's eyes from now on: it appeared, or was turned to again."""
        self._deaf_until = self._clock() + DEAF

    @property
    def ready(self) -> bool:
        """Whether keys count."""
        return self._clock() >= self._deaf_until

    def admits(self) -> bool:
        """Whether the key that was pressed just now counts; if not, it delays those after it."""
        if self.ready:
            return True
        self.attract()
        return False
