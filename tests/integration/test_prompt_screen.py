"""The full-screen prompt: what it shows, which keys count, asked through the real protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from broker_rig import PATIENCE, until
from textual import events
from textual.pilot import Pilot
from textual.widgets import OptionList

from caisson.paths import Paths
from caisson.qrexec import prompt
from caisson.qrexec.prompt import Answer, Notice, Question
from caisson.tools.prompting.agent import Agent
from caisson.tools.prompting.full_screen import FullScreen

pytestmark = pytest.mark.root

QUESTION = Question(
    source="work",
    service="my.Service",
    argument="+arg",
    targets=["other", "vault", "@dispvm:base"],
    labels={"work": "0xcc0000", "vault": "0x00cc00"},
    isolation={"work": "container"},
)


class Seat:
    """A person before a screen, whose clock stands still until the test sets it forward."""

    def __init__(self, directory: Path) -> None:
        self.path = Paths(directory).prompt_agent
        self.path.parent.mkdir(parents=True)
        self.now = 1000.0
        self.app = FullScreen(
            lambda person: Agent(person, once=False, clock=self.clock).run(self.path), self.clock
        )
        self.pilot: Pilot[None]

    def clock(self) -> float:
        """The time."""
        return self.now

    @asynccontextmanager
    async def asked(
        self, question: Question = QUESTION, size: tuple[int, int] = (80, 24)
    ) -> AsyncIterator[asyncio.Task[Answer]]:
        """The screen, with a question on it."""
        async with self.app.run_test(size=size) as self.pilot:
            asking = asyncio.create_task(self.ask(question))
            await self.shows("Allow to")
            try:
                yield asking
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def ask(self, question: Question = QUESTION) -> Answer:
        """Ask as the broker does."""
        await until(self.path.exists)
        return await prompt.ask(self.path, question)

    def text(self) -> str:
        """All that is on the screen."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    async def shows(self, text: str) -> None:
        """Wait until this is on the screen."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.text():
                await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)

    async def wait_a_second(self) -> None:
        """Let the second pass in which keys do not count."""
        self.now += 1
        await until_pilot(self.pilot, lambda: "keys count" not in self.text())

    @property
    def ok(self) -> bool:
        """Whether OK can be had."""
        return not self.app.query_one("#ok").disabled


async def until_pilot(pilot: Pilot[None], condition: Any) -> None:
    """Wait until the screen has come so far."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await pilot.pause()


@pytest.fixture
def seat(tmp_path: Path) -> Seat:
    """Nobody asks yet."""
    return Seat(tmp_path)


# What is shown.


async def test_question_is_shown_with_colour_isolation_and_service(seat: Seat):
    """The part of the service behind the first dot is bold, nothing is chosen."""
    async with seat.asked() as asking:
        for text in ("■ work [container]", "my.Service+arg", "■ new disposable of base"):
            assert text in seat.text()
        assert "nothing chosen yet: arrows choose" in seat.text()
        service = str(seat.app.query_one("#service").render())
        assert service == "Calls    my.Service+arg"
        bold = [s.text for strip in seat.app.screen._compositor.render_strips()
                for s in strip if s.style and s.style.bold]  # fmt: skip
        assert "Service" in bold
        assert "my.Service" not in bold
        styles = {s.text: s.style for strip in seat.app.screen._compositor.render_strips()
                  for s in strip}  # fmt: skip
        assert styles["■ "].color is not None
        assert not asking.done()


async def test_what_the_policy_suggests_is_chosen_and_nothing_else(seat: Seat):
    """A default target of the rule needs Enter only, after the second."""
    question = Question("work", "a.B", "+", ["other", "vault"], default_target="vault")
    async with seat.asked(question) as asking:
        assert "Allow to ■ vault" in seat.text()
        assert not seat.ok
        await seat.wait_a_second()
        assert seat.ok
        await seat.press("enter")
        assert (await asking).target == "vault"


async def test_default_target_that_is_not_offered_is_not_chosen(seat: Seat):
    """Whoever wrote it there."""
    question = Question("work", "a.B", "+", ["other"], default_target="vault")
    async with seat.asked(question) as asking:
        await seat.wait_a_second()
        await seat.press("enter")
        assert "nothing chosen" in seat.text()
        assert not asking.done()


async def test_nothing_in_a_question_is_markup_or_moves_the_cursor(seat: Seat):
    """Portal prompts, CVE-2023-28101: names with control characters or look-alikes are escaped."""
    evil = Question(
        "wo\x1b[2Jrk", "my.\x07[bold red]S[/]", "+\x1b]0;x\x07[link=http://x]",
        ["va\nult", "[reverse]x[/]", "v\u0430ult", "■ vault", "a\u202eb"],
        labels={"work": "]["}, isolation={"wo\x1b[2Jrk": "[b]\x1b[31m"}, origin="[blink]o",
    )  # fmt: skip
    async with seat.asked(evil) as asking:
        shown = seat.text()
        for text in (
            "wo\\x1b[2Jrk", "[[b]\\x1b[31m]", "my.\\x07[bold red]S[/]+\\x1b]0;x\\x07[link=http://x]",
            "va\\nult", "[reverse]x[/]", "v\\u0430ult", "■ \\u25a0 vault", "a\\u202eb", "[blink]o",
        ):  # fmt: skip
            assert text in shown
        assert all(c.isprintable() or c == "\n" for c in shown)
        await seat.wait_a_second()
        await seat.press("down", "enter")
        assert (await asking).target == "va\nult"


async def test_long_argument_is_cut_visibly_and_leaves_room(seat: Seat):
    """65,000 characters: the targets and the keys are still there."""
    question = Question("work", "my.Service", "+" + "a" * 65_000, ["other", "vault"])
    async with seat.asked(question):
        for text in ("(65001 characters)", "■ vault", "Escape: deny", "Ctrl-X"):
            assert text in seat.text()


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (30, 9)])
async def test_small_screens_show_all_that_matters(seat: Seat, size: tuple[int, int]):
    """And a screen that is made smaller or larger meanwhile does."""
    async with seat.asked(QUESTION, (120, 50)) as asking:
        await seat.pilot.resize_terminal(*size)
        await until_pilot(seat.pilot, lambda: len(seat.text().splitlines()) == size[1])
        for text in ("■ work", "my.Service", "Filter", "Allow to", "Enter: OK", "Escape: deny"):
            await seat.shows(text)
        await seat.wait_a_second()
        await seat.press("down", "down", "enter")
        assert (await asking).target == "vault"


async def test_notices_are_listed_and_repeats_are_counted(seat: Seat):
    """One qube's noise does not push the others' notices away."""
    async with seat.asked():
        await prompt.notify(seat.path, Notice("allow", "a.B", "+", "play", "vault"))
        for _ in range(3):
            await prompt.notify(seat.path, Notice("deny", "a.B", "+x", "work", "", muted=61))
        await seat.shows("play → vault: a.B was allowed")
        await seat.shows("work → @default: a.B+x was denied; work is denied for 1 min 1 s more (3")


async def test_last_part_of_the_time_is_counted_down(seat: Seat):
    """The person sees that the broker will soon deny."""
    async with seat.asked():
        assert "denied by itself" not in seat.text()
        seat.now += prompt.ANSWER_TIMEOUT - 7
        await seat.shows("denied by itself in 7 s")


async def test_waiting_questions_are_counted(seat: Seat):
    """Those of other qubes here, those of the same qube at the broker."""
    question = Question("work", "a.B", "+", ["vault"], waiting=2)
    async with seat.asked(question):
        await seat.shows("2 more questions wait")
        other = asyncio.create_task(seat.ask(Question("play", "a.B", "+", ["vault"])))
        await seat.shows("3 more questions wait")
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        await seat.shows("2 more questions wait")


# Which keys count.


async def test_ok_needs_a_target_and_a_second(seat: Seat):
    """Either alone does not do."""
    async with seat.asked() as asking:
        await seat.press("enter")
        assert not seat.ok
        await seat.wait_a_second()
        assert not seat.ok
        await seat.press("enter")
        assert not asking.done()
        await seat.press("down", "down")
        assert seat.ok
        await seat.press("enter")
        assert (await asking).target == "vault"


@pytest.mark.parametrize("key", ["enter", "escape", "a"])
async def test_keys_do_not_count_until_a_second_passed_without_any(seat: Seat, key: str):
    """QSB-104: a key that is held down from before, at any rate of repeating, does nothing."""
    question = Question("work", "a.B", "+", ["other", "vault"], default_target="vault")
    async with seat.asked(question) as asking:
        for pause in (0.0, 0.5, 0.9, 0.99, 0.04, 0.04, 0.99):
            seat.now += pause
            await seat.press(key)
        assert not asking.done()
        assert "Allow to ■ vault" in seat.text()
        assert "Filter   _" in seat.text()
        await seat.wait_a_second()
        await seat.press("enter")
        assert (await asking).target == "vault"


async def test_terminal_that_gets_the_focus_again_makes_keys_wait_again(seat: Seat):
    """What was typed for another window does not answer."""
    question = Question("work", "a.B", "+", ["other", "vault"], default_target="vault")
    async with seat.asked(question) as asking:
        await seat.wait_a_second()
        assert seat.ok
        seat.app.post_message(events.AppBlur())
        await seat.pilot.pause()
        seat.app.post_message(events.AppFocus())
        await until_pilot(seat.pilot, lambda: not seat.ok)
        await seat.press("enter")
        assert not asking.done()
        await seat.wait_a_second()
        await seat.press("enter")
        assert (await asking).target == "vault"


async def test_key_that_comes_without_focus_does_not_count(seat: Seat):
    """Such as the one that a terminal sends to all of its panes."""
    question = Question("work", "a.B", "+", ["other", "vault"], default_target="vault")
    async with seat.asked(question) as asking:
        await seat.wait_a_second()
        seat.app.post_message(events.AppBlur())
        await seat.pilot.pause()
        await seat.press("enter")
        assert not asking.done()
        assert not seat.ok


async def test_next_question_does_not_take_the_key_that_answered_the_one_before(seat: Seat):
    """Enter that is held down allows one call, not all that wait."""
    question = Question("work", "a.B", "+", ["vault"], default_target="vault")
    async with seat.asked(question) as asking:
        other = asyncio.create_task(seat.ask(Question("play", "c.D", "+", ["vault"], "vault")))
        await seat.shows("1 more question waits")
        await seat.wait_a_second()
        await seat.press("enter")
        assert (await asking).target == "vault"
        await seat.shows("■ play")
        for _ in range(5):
            seat.now += 0.04
            await seat.press("enter")
        assert not other.done()
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


async def test_what_is_pasted_does_nothing(seat: Seat):
    """A clipboard was not filled for this question."""
    async with seat.asked() as asking:
        await seat.wait_a_second()
        seat.app.post_message(events.Paste("vault\r\n"))
        await seat.pilot.pause()
        assert "Filter   _" in seat.text()
        assert not asking.done()


async def test_escape_denies(seat: Seat):
    """This call, and no other."""
    async with seat.asked() as asking:
        await seat.wait_a_second()
        await seat.press("escape")
        answer = await asking
        assert (answer.target, answer.for_now) == (None, False)
        await seat.shows("No question waits")


async def test_ctrl_x_denies_all_of_the_qube_for_now(seat: Seat):
    """The key names who is meant: of a disposable, all that the same qube made."""
    question = Question("disp1", "a.B", "+", ["vault"], origin="boss")
    async with seat.asked(question) as asking:
        assert "disp1 (made by boss)" in seat.text()
        assert "deny all from disposables of boss for 10 min" in seat.text()
        await seat.wait_a_second()
        await seat.press("ctrl+x")
        answer = await asking
        assert (answer.target, answer.for_now) == (None, True)


# Targets.


async def test_filter_narrows_the_list_and_chooses_nothing(seat: Seat):
    """Not even the only one that is left; what it hides is not chosen any more."""
    async with seat.asked() as asking:
        await seat.wait_a_second()
        await seat.press("down")
        assert "Allow to ■ other" in seat.text()
        await seat.press(*"VAU")
        assert "Filter   VAU_ (1 of 3)" in seat.text()
        assert "nothing chosen" in seat.text()
        await seat.press("enter")
        assert not asking.done()
        await seat.press("backspace", "ctrl+u")
        assert "(3 of 3)" in seat.text()
        await seat.press(*"vault", "down", "enter")
        assert (await asking).target == "vault"


async def test_filter_that_leaves_nothing_leaves_nothing_to_choose(seat: Seat):
    """Moving in an empty list is no choice."""
    async with seat.asked() as asking:
        await seat.wait_a_second()
        await seat.press(*"nosuch", "down", "end", "pagedown", "enter")
        assert "(0 of 3)" in seat.text()
        assert not asking.done()


async def test_a_thousand_targets_can_be_looked_through(seat: Seat):
    """First, last, a page, and by filter."""
    targets = [f"qube-{number:04}" for number in range(1000)]
    async with seat.asked(Question("work", "a.B", "+", targets)) as asking:
        await seat.wait_a_second()
        await seat.press("end")
        assert "Allow to ■ qube-0999" in seat.text()
        await seat.press("home", "pagedown")
        highlighted = seat.app.query_one("#targets", OptionList).highlighted
        assert f"Allow to ■ qube-{highlighted:04}" in seat.text()
        await seat.press(*"-073")
        assert "(10 of 1000)" in seat.text()
        await seat.press("down", "down", "enter")
        assert (await asking).target == "qube-0731"


# Around the question.


async def test_question_that_another_agent_answered_goes_away(seat: Seat, tmp_path: Path):
    """The dialogue closes and says so; the next question finds its place."""
    async with seat.asked() as asking:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.write(b"deny")
            writer.close()
            await writer.wait_closed()

        asking.cancel()
        await seat.shows("taken back, or answered elsewhere")
        await seat.shows("No question waits")
        place = seat.path.with_name("policy-agent-other.sock")
        server = await asyncio.start_unix_server(serve, str(place))
        try:
            assert (await seat.ask()).target is None
            await seat.shows("No question waits")
        finally:
            server.close()


async def test_leaving_with_a_question_open_answers_nothing(seat: Seat):
    """Other agents may still answer; alone, the broker refuses."""
    async with seat.asked() as asking:
        await seat.press("ctrl+q")
        with pytest.raises(prompt.PromptError, match="went away"):
            await asking
    assert not seat.path.exists()
