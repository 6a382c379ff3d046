"""Log lines that a qube can cause: a few a second for each qube, then only their number.

A line is bounded as well: the name of a service and its argument may have 65,000 bytes. The audit
log has every call; this log is for people, and must not be a way to fill the disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

LINES = 10
SECONDS = 1.0
LONGEST = 1024
"""Characters of one text in a line; of a longer one the rest is left out."""
_MOST_QUBES = 4096

_log = structlog.get_logger("broker")


@dataclass(slots=True)
class _Budget:
    began: float
    lines: int = 0
    left_out: int = 0


_budgets: dict[str, _Budget] = {}


def info(event: str, *, qube: str, **fields: object) -> None:
    """Tell what a qube did, unless it does it all the time."""
    if _granted(qube):
        _log.info(event, qube=qube, **_bounded(fields))


def warning(event: str, *, qube: str, **fields: object) -> None:
    """Tell what a qube did wrong, unless it does it all the time."""
    if _granted(qube):
        _log.warning(event, qube=qube, **_bounded(fields))


def _bounded(fields: dict[str, object]) -> dict[str, object]:
    return {name: _cut(value) for name, value in fields.items()}


def _cut(value: object) -> object:
    return f"{value[:LONGEST]}…" if isinstance(value, str) and len(value) > LONGEST else value


def _granted(qube: str) -> bool:
    now = time.monotonic()
    budget = _budgets.get(qube)
    if budget is None or now - budget.began >= SECONDS:
        if budget is not None and budget.left_out:
            _log.warning("log lines were left out", qube=qube, count=budget.left_out)
        if len(_budgets) >= _MOST_QUBES:
            _budgets.clear()
        budget = _budgets[qube] = _Budget(now)
    if budget.lines >= LINES:
        budget.left_out += 1
        return False
    budget.lines += 1
    return True
