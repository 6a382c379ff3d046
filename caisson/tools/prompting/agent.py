"""The server side of the prompt protocol (sheet `qrexec`, section 4.3): questions in turn."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from caisson.qrexec.answering import hang_up_of
from caisson.qrexec.patience import Clock
from caisson.qrexec.prompt import (
    ANSWER_TIMEOUT,
    ASK,
    DENY_FOR_NOW,
    NOTIFY,
    Notice,
    Question,
)
from caisson.tools.prompting.place import listening

LONGEST_QUESTION = 16 * 1024 * 1024
QUESTION_TIMEOUT = 10.0
MOST_QUESTIONS = 64
"""Questions that wait here; a broker asks fewer at a time."""


class Asked(NamedTuple):
    """A question, and when it is too late for an answer, by the monotonic clock."""

    question: Question
    deadline: float


class Verdict(NamedTuple):
    """What the person says: the target, None to deny; `for_now`: deny what follows, too."""

    target: str | None
    for_now: bool = False

    def encode(self) -> bytes:
        """As it is sent."""
        if self.target is not None:
            return f"allow:{self.target}".encode()
        return DENY_FOR_NOW if self.for_now else b"deny"


class Person(Protocol):
    """Who is asked, one question after the other."""

    async def ask(self, asked: Asked) -> Verdict:
        """Show a question and wait for the answer; cancelling takes it away."""

    def taken_back(self) -> None:
        """The question that was shown is off: the caller left, or another agent answered."""

    def wait_changed(self, waiting: int) -> None:
        """So many questions of other qubes wait behind the one that is shown."""

    def tell(self, notice: Notice) -> None:
        """Show what happened to a call."""


class Agent:
    """Answers the broker.

    Args:
        person: who is asked.
        once: end after one question.
        clock: seconds that never run backwards.
    """

    def __init__(self, person: Person, *, once: bool, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._person = person
        self._once = once
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0
        self._done = asyncio.Event()
        self._asking: set[asyncio.Task[Verdict | None]] = set()

    async def run(self, path: Path) -> None:
        """Serve until cancelled, or after one question.

        Args:
            path: the well-known socket.

        Raises:
            CaissonError: the socket cannot be made.
        """
        with listening(path) as (sock, _):
            server = await asyncio.start_unix_server(self._serve, sock=sock, limit=LONGEST_QUESTION)
            try:
                await self._done.wait()
            finally:
                server.close()
                # Questions that nobody will answer here: the broker sees a hang-up.
                for asking in self._asking:
                    asking.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT):
                received = await _read(reader)
            if received.startswith(ASK):
                question = msgspec.json.decode(received.removeprefix(ASK), type=Question)
                await self._answer(question, writer)
            elif received.startswith(NOTIFY):
                self._person.tell(msgspec.json.decode(received.removeprefix(NOTIFY), type=Notice))
        except (OSError, TimeoutError, msgspec.DecodeError):
            # Not a question: no answer is a refusal.
            return
        finally:
            writer.close()

    async def _answer(self, question: Question, writer: asyncio.StreamWriter) -> None:
        if self._waiting >= MOST_QUESTIONS:
            return
        asked = Asked(question, self._clock() + ANSWER_TIMEOUT)
        with hang_up_of(writer.get_extra_info("socket")) as hung_up:
            asking = asyncio.create_task(self._ask(asked))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
            waiting: set[asyncio.Future[Any]] = {asking, hung_up}
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not asking.done():
                    asking.cancel()
                    await asyncio.wait({asking})
        if not asking.cancelled() and (verdict := asking.result()) is not None:
            writer.write(verdict.encode())
            await writer.drain()
            if self._once:
                self._done.set()

    async def _ask(self, asked: Asked) -> Verdict | None:
        self._count(1)
        try:
            await self._one_at_a_time.acquire()
        finally:
            self._count(-1)
        try:
            return None if self._done.is_set() else await self._person.ask(asked)
        except asyncio.CancelledError:
            self._person.taken_back()
            raise
        finally:
            self._one_at_a_time.release()

    def _count(self, by: int) -> None:
        self._waiting += by
        self._person.wait_changed(self._waiting)


async def _read(reader: asyncio.StreamReader) -> bytes:
    received = bytearray()
    while chunk := await reader.read(65_536):
        received += chunk
        if len(received) > LONGEST_QUESTION:
            raise OSError(0, "endless question")
    return bytes(received)
