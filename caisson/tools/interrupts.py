"""A Ctrl-C, or a request to end, at a moment when there is something to clean up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_TO_END = (signal.SIGTERM, signal.SIGHUP)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Let a request to end be an exception, as Ctrl-C is: what is under way is cleaned up."""
    before = _handlers(_TO_END)
    for number in before:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def held_back() -> Iterator[None]:
    """Finish this first: the first signal takes effect afterwards, a second one at once.

    For calls whose outcome has to be known, such as whether a qube was created.
    """
    came: list[int] = []
    before = _handlers((signal.SIGINT, *_TO_END))

    def hold(number: int, _: FrameType | None) -> None:
        came.append(number)
        _restore(before)

    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        _restore(before)
        if came:
            signal.raise_signal(came[0])


def _handlers(numbers: tuple[signal.Signals, ...]) -> dict[signal.Signals, Any]:
    """What happens now on these; what is ignored, as under `nohup`, is left out."""
    found = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
