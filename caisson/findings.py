"""What `caisson doctor` tells about one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it will do, and the remedy where it will not."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
