"""The line-by-line prompt: which keys count, and what it says, on a clock of the test's."""

from __future__ import annotations

import array
import asyncio
import fcntl
import io
import os
import termios
from collections.abc import Iterator

import pytest
from broker_rig import until
from rich.console import Console

from caisson.qrexec.prompt import Question
from caisson.tools.prompting.agent import Asked, Verdict
from caisson.tools.prompting.plain import Plain

QUESTION = Question("work", "my.Service", "+", ["other", "vault"])


class Seat:
    """A person who types into a pipe."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.shown = io.StringIO()
        self.keys, self._keyboard = os.pipe()
        self.plain = Plain(Console(file=self.shown, width=200), self.keys, lambda: self.now)

    def ask(self, question: Question = QUESTION) -> asyncio.Task[Verdict]:
        """A question, and its answer when there is one."""
        return asyncio.create_task(self.plain.ask(Asked(question, self.now + 120)))

    async def type(self, keys: bytes, after: float) -> None:
        """Press keys so many seconds later, and wait until they were taken."""
        self.now += after
        os.write(self._keyboard, keys)
        await until(lambda: self._unread() == 0)
        # From the reader to the question.
        for _ in range(8):
            await asyncio.sleep(0)

    def _unread(self) -> int:
        unread = array.array("i", [0])
        fcntl.ioctl(self.keys, termios.FIONREAD, unread)
        return unread[0]

    def close(self) -> None:
        """Leave."""
        os.close(self.keys)
        os.close(self._keyboard)


@pytest.fixture
def seat() -> Iterator[Seat]:
    """Nobody asks yet."""
    seat = Seat()
    yield seat
    seat.close()


async def test_steady_typing_answers_no_question_line_by_line(seat: Seat):
    """QSB-104: keys count after a second without any, not a second after the question came."""
    asking = seat.ask()
    await asyncio.sleep(0)
    for _ in range(30):
        await seat.type(b"1\r", after=0.1)
    assert not asking.done()
    await seat.type(b"2\r", after=1.0)
    assert (await asking).target == "vault"


async def test_lines_say_whom_denying_for_now_denies(
    seat: Seat, capsys: pytest.CaptureFixture[str]
):
    """Of a disposable's question: all disposables of its creator, before and after the key."""
    asking = seat.ask(Question("disp1", "a.B", "+", ["vault"], origin="boss"))
    await asyncio.sleep(0)
    await seat.type(b"!\r", after=1.0)
    assert (await asking).for_now
    assert "disp1 (made by boss) wants to call a.B" in seat.shown.getvalue()
    typed = capsys.readouterr().out
    assert "! to deny all from disposables of boss for 10 min" in typed
    assert "denied, and all from disposables of boss for 10 min" in typed
