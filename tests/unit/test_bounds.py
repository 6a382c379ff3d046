"""What one caller may use of the daemon at once."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caisson.admin.bounds import MOST_AT_ONCE, MOST_STREAMS, Budget, Streams, Turns
from caisson.errors import CaissonError
from caisson.model import Klass, Qube
from caisson.names import QubeName


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


def _qube(name: str) -> Qube:
    return Qube(uuid4(), QubeName(name), Klass.APP, 7)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=60),
    st.integers(1, 5),
)
async def test_no_qube_gets_more_than_its_budget_nor_less_for_another(
    calls: list[tuple[str, float]], most: int
) -> None:
    """Property: `most` calls and one for each 6 seconds, whatever stretch of time one looks at."""
    now = 0.0
    together = Budget(most, 6.0, 0, lambda: now)
    alone = {name: Budget(most, 6.0, 0, lambda: now) for name in "abc"}
    qubes = {name: _qube(name) for name in "abc"}
    granted: dict[str, list[float]] = {name: [] for name in "abc"}
    for name, pause in calls:
        now += pause
        outcomes = []
        for budget in (together, alone[name]):
            try:
                await budget.spend(qubes[name])
            except CaissonError:
                outcomes.append(False)
            else:
                outcomes.append(True)
        assert outcomes[0] is outcomes[1]
        if outcomes[0]:
            granted[name].append(now)
        assert granted[name], "the first call of a qube is granted"
    for times in granted.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                stretch = times[last] - times[first]
                assert last - first + 1 <= most + stretch / 6.0 + 1e-6


async def test_who_takes_over_a_name_has_a_budget_of_its_own() -> None:
    """A removed qube's debts are not those of the next one of its name."""
    budget = Budget(1, 6.0, 0)
    await budget.spend(_qube("work"))
    await budget.spend(_qube("work"))


async def test_a_refusal_is_held_back() -> None:
    """Calls that wait for their refusal are counted as in flight: a flood slows itself down."""
    budget = Budget(1, 600.0, 3600.0)
    work = _qube("work")
    await budget.spend(work)
    refused = asyncio.create_task(budget.spend(work))
    await _settle()
    assert not refused.done()
    refused.cancel()
