"""Dates that the broker asks the clock qube for."""

from __future__ import annotations

import asyncio
import os

import pytest
from broker_rig import PATIENCE

from caisson.qrexec import dates
from caisson.qrexec.calls import Call, CallError, Pipes
from caisson.qrexec.dates import Dates


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the names only


async def test_a_clock_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    """Its call is ended; one that has ended already is not ended again."""
    monkeypatch.setattr(dates, "PATIENCE", 0)
    before = descriptors()
    late: asyncio.Queue[Call] = asyncio.Queue()
    asked = Dates(2, late.put_nowait)
    slow, quick = Call("slow", None), Call("quick", None)
    pipes = Pipes.make()
    for call in (slow, quick):
        with asked.between(call, pipes):
            pass
    asked.give_back(quick)
    async with asyncio.timeout(PATIENCE):
        assert await late.get() is slow
    asked.give_back(slow)
    assert not asked.answer(slow)
    assert late.empty()
    pipes.close()
    assert descriptors() == before


async def test_there_is_an_end_to_what_is_asked_at_once():
    """Of all qubes together, and of one; every call that ends makes room."""
    before = descriptors()
    asked = Dates(dates.MOST_OF_ONE + 1, lambda _: None)
    pipes = Pipes.make()
    calls = [Call("one", None) for _ in range(dates.MOST_OF_ONE)]
    for call in calls:
        with asked.between(call, pipes):
            pass
    with pytest.raises(CallError), asked.between(Call("one", None), pipes):
        pass
    other = Call("other", None)
    with asked.between(other, pipes):
        pass
    with pytest.raises(CallError), asked.between(Call("third", None), pipes):
        pass
    asked.give_back(calls[0])
    with asked.between(calls[0], pipes):
        pass
    for call in (*calls, other):
        asked.give_back(call)
        asked.give_back(call)
    pipes.close()
    assert descriptors() == before
