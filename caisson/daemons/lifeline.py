"""A daemon that `caisson up` started ends with it, even where that one was killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

OPTION = "--until-eof"
HELP = "end when standard input ends"


def watch(end: Callable[[], object]) -> None:
    """Call `end` when standard input ends: the kernel closes its other end with who holds it."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def over() -> None:
        loop.remove_reader(descriptor)
        end()

    loop.add_reader(descriptor, over)
