"""What the qube of `clockvm` says in the admin qube's place: one date, and nothing else.

The rule that allows the call is about the admin qube. So no byte of the caller reaches the clock
qube, and what that one answers is checked and written anew: two qubes that may ask for the time
are no way for data between them.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from caisson.qrexec.calls import Call, CallError, Pipes

DESCRIPTORS = 3
"""How many one date takes while it is asked for."""
MOST_DATES = 64
MOST_OF_ONE = 4
PATIENCE = 10.0
_LONGEST = 36
_DATE = re.compile(
    rb"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](?P<parts>,[0-9]{9})?\+00:00\n"
)


@dataclass
class _Asked:
    """A date that is asked for: what the clock says, what it complains, and who waits for it."""

    said: int
    complained: int
    to: int
    patience: asyncio.TimerHandle

    def close(self) -> None:
        self.patience.cancel()
        for descriptor in (self.said, self.complained, self.to):
            os.close(descriptor)


class Dates:
    """The dates that are asked for now.

    Args:
        most: how many at once; no qube has all of them.
        too_late: ends a call whose clock does not answer.
    """

    def __init__(self, most: int, too_late: Callable[[Call], None]) -> None:
        self._most = most
        self._too_late = too_late
        self._asked: dict[Call, _Asked] = {}
        self._by_source: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def between(self, call: Call, pipes: Pipes) -> Iterator[tuple[int, int, int]]:
        """Stand between a caller, with its pipes, and the clock; gives the clock's ends.

        Raises:
            CallError: too many dates are asked for, or there are no descriptors.
        """
        if len(self._asked) >= self._most or self._by_source[call.source] >= MOST_OF_ONE:
            raise CallError("too many ask for the date")
        try:
            to = os.dup(pipes.service[1])
        except OSError as e:
            raise CallError(f"no pipes: {e.strerror}") from None
        try:
            own = Pipes.make()
        except OSError as e:
            os.close(to)
            raise CallError(f"no pipes: {e.strerror}") from None
        try:
            nothing, said, complained = own.caller
            os.close(nothing)
            # Whoever has the other end can open the pipe anew, and fill it: nothing here may wait.
            os.set_blocking(said, False)
            os.set_blocking(to, False)
            patience = self._loop.call_later(PATIENCE, self._too_late, call)
            self._asked[call] = _Asked(said, complained, to, patience)
            self._by_source[call.source] += 1
            yield own.service
        finally:
            for descriptor in own.service:
                os.close(descriptor)

    def answer(self, call: Call) -> bool:
        """Hand on what the clock said, now that it has ended; whether that was a date."""
        asked = self._asked.get(call)
        if asked is None:
            return False
        try:
            untrusted = os.read(asked.said, _LONGEST + 1)
        except OSError:
            return False
        found = _DATE.fullmatch(untrusted)
        if found is None or (found["parts"] is None) != (call.argument == ""):
            return False
        with suppress(OSError):  # the caller has gone, or has filled its own pipe
            os.write(asked.to, untrusted)
        return True

    def give_back(self, call: Call) -> None:
        """The call ended."""
        asked = self._asked.pop(call, None)
        if asked is not None:
            asked.close()
            self._by_source[call.source] -= 1
            self._by_source += Counter()  # those with none are forgotten
