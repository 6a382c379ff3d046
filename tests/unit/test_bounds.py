"""What one caller may use of the daemon at once."""

from __future__ import annotations

import asyncio

import pytest

from caisson.admin.bounds import MOST_AT_ONCE, MOST_STREAMS, Streams, Turns
from caisson.errors import CaissonError


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_of_one_source_have_their_turns_in_order_and_others_go_on() -> None:
    """Also when one that waits, or one that is worked on, is cancelled; nothing is left behind."""
    turns = Turns()
    begun: list[str] = []
    gates: dict[str, asyncio.Event] = {}

    async def call(source: str, name: str) -> None:
        async with turns.of(source):
            begun.append(name)
            await gates.setdefault(name, asyncio.Event()).wait()

    flood = [asyncio.create_task(call("mgmt", str(number))) for number in range(7)]
    await _settle()
    assert begun == ["0", "1"]
    others = [asyncio.create_task(call(who, who)) for who in ("work", "dom0", "dom0", "dom0")]
    await _settle()
    assert begun[MOST_AT_ONCE:] == ["work", "dom0", "dom0", "dom0"]
    del begun[:]
    flood[3].cancel()  # it waits
    flood[0].cancel()  # it is worked on
    await _settle()
    assert begun == ["2"]
    gates["2"].set()
    await _settle()
    assert begun == ["2", "4"]
    gates["1"].set()
    await _settle()
    assert begun == ["2", "4", "5"]
    for gate in ("4", "work", "dom0"):
        gates[gate].set()
    await _settle()
    assert begun == ["2", "4", "5", "6"]
    for gate in ("5", "6"):
        gates[gate].set()
    await asyncio.gather(*flood, *others, return_exceptions=True)
    assert turns._lines == {}


def test_streams_are_counted_by_source_and_given_back() -> None:
    """The admin qube may have any number."""
    streams = Streams()
    held = [streams.of("mgmt") for _ in range(MOST_STREAMS)]
    held += [streams.of("dom0") for _ in range(MOST_STREAMS + 1)]
    for each in held:
        each.__enter__()
    with (
        pytest.raises(CaissonError, match="qube `mgmt` has too many streams"),
        streams.of("mgmt"),
    ):
        pass
    with streams.of("work"):
        held.pop(0).__exit__(None, None, None)
    with streams.of("mgmt"):
        pass
    for each in held:
        each.__exit__(None, None, None)
    assert streams._open == {}
