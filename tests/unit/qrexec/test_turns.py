"""Whose question is shown next."""

from __future__ import annotations

import asyncio
import random

import pytest

from caisson.errors import CaissonError
from caisson.qrexec.turns import MOST_SHOWN, MOST_WAITING, MOST_WAITING_IN_ALL, Turns


class Desk:
    """A person who looks at questions and is done with one when the test says so."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[str] = []
        self.shown: list[tuple[str, asyncio.Event]] = []

    async def ask(self, origin: str) -> None:
        """One question, until it is done."""
        async with self.turns.turn(origin):
            entry = (origin, asyncio.Event())
            self.order.append(origin)
            self.shown.append(entry)
            try:
                await entry[1].wait()
            finally:
                self.shown.remove(entry)

    async def ask_many(self, *origins: str) -> list[asyncio.Task[None]]:
        """Questions that come in this order."""
        tasks = [asyncio.create_task(self.ask(origin)) for origin in origins]
        await settle()
        return tasks

    async def done_with(self, origin: str) -> None:
        """The person answered this one."""
        next(done for name, done in self.shown if name == origin).set()
        await settle()


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """All callers leave."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_question_a_qube_is_shown():
    """The next one comes when the first is done."""
    desk = Desk()
    tasks = await desk.ask_many("a", "a", "b")
    assert desk.order == ["a", "b"]
    assert desk.turns.waiting("a") == 1
    await desk.done_with("a")
    assert desk.order == ["a", "b", "a"]
    await end(tasks)


async def test_qubes_take_turns_when_many_ask():
    """Who asks for the first time comes before the second question of anyone."""
    desk = Desk()
    busy = [f"q{n}" for n in range(MOST_SHOWN)]
    tasks = await desk.ask_many(*busy, "a", "a", "a", "b")
    assert desk.order == busy
    for name in busy[:3]:
        await desk.done_with(name)
    assert desk.order == [*busy, "a", "b"]
    await desk.done_with("a")
    assert desk.order[-1] == "a"
    await end(tasks)


async def test_each_qube_has_few_waiting_questions():
    """The ninth that waits is refused."""
    desk = Desk()
    tasks = await desk.ask_many(*["a"] * (MOST_WAITING + 1))
    with pytest.raises(CaissonError, match="too many questions"):
        await desk.ask("a")
    more = await desk.ask_many("b")
    assert desk.order == ["a", "b"]
    await end([*tasks, *more])


async def test_first_question_of_a_qube_has_room_whatever_others_do():
    """Many qubes together fill the queue; a new one still gets its place in it."""
    desk = Desk()
    many = [f"q{n}" for n in range(MOST_WAITING_IN_ALL)]
    tasks = await desk.ask_many(*(name for name in many for _ in range(2)))
    more = await desk.ask_many("new")
    assert desk.turns.waiting("new") == 1
    with pytest.raises(CaissonError, match="too many questions"):
        await desk.ask("new")
    await end([*tasks, *more])
    assert (desk.turns._count, desk.turns._waiting, desk.turns._shown) == (0, {}, set())


@pytest.mark.parametrize("seed", range(20))
async def test_callers_that_leave_at_any_moment_leave_nothing_behind(seed: int):
    """Leaving while waiting, while shown, or in the moment of coming up."""
    chance = random.Random(seed)
    desk = Desk()
    tasks = [asyncio.create_task(desk.ask(chance.choice("abcdefghijkl"))) for _ in range(60)]
    while tasks:
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        if desk.shown and chance.random() < 0.5:
            chance.choice(desk.shown)[1].set()
        task = tasks.pop(chance.randrange(len(tasks)))
        task.cancel()
    await settle()
    assert (desk.turns._count, desk.turns._waiting, desk.turns._shown) == (0, {}, set())
    assert desk.shown == []
