"""Grants for tests, and a clock that stands still until it is told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caisson.policy.grants import Grant

SECOND = 1_000_000_000
WORK = "uuid:00000000-0000-4000-8000-000000000001"
VAULT = "uuid:00000000-0000-4000-8000-000000000002"


@dataclass
class StillClock:
    """The time since the kernel started, as a test wants it."""

    at: int = 1_000 * SECOND
    started: str = "first"

    def now(self) -> int:
        """What a test set."""
        return self.at

    def boot(self) -> str:
        """What a test set."""
        return self.started


def granted(number: int = 0, **changed: Any) -> Grant:
    """A grant of `my.Service` from WORK to VAULT, for a minute of a new `StillClock`."""
    values: dict[str, Any] = {
        "id": f"grant-{number:08x}",
        "service": "my.Service",
        "argument": "+",
        "source": WORK,
        "target": VAULT,
        "expires": 1_060 * SECOND,
    }
    return Grant(**values | changed)
