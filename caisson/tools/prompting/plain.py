"""Asking line by line, for any terminal; and answers by a script."""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
import time
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from rich.console import Console
from rich.text import Text

from caisson.qrexec.patience import MUTED_FOR, Clock
from caisson.qrexec.prompt import Notice, Question
from caisson.tools.prompting import words
from caisson.tools.prompting.agent import Asked, Verdict
from caisson.tools.prompting.caution import Caution
from caisson.tools.terminal import harmless

_LONGEST_TYPED = 64
_FOR_NOW = "!"
_ESCAPE, _END, _GONE = "\x1b", "\x04", ""
_ERASE = frozenset({"\x7f", "\b"})
_ENTER = frozenset({"\r", "\n"})


class _Lines:
    """Prints what happens."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def taken_back(self) -> None:
        """Say so."""
        self._console.print("The call was taken back, or answered elsewhere.", style="dim")

    def wait_changed(self, waiting: int) -> None:
        """Whoever reads lines is told with the next question."""

    def tell(self, notice: Notice) -> None:
        """Print a notice."""
        text = Text("• ")
        text.append_text(words.notice(notice))
        self._console.print(text)


class Scripted(_Lines):
    """Answers without a person; shows the question all the same.

    Args:
        console: where questions are shown.
        target: what is allowed where it may be picked; None: nothing.
    """

    def __init__(self, console: Console, target: str | None) -> None:
        super().__init__(console)
        self._target = target

    async def ask(self, asked: Asked) -> Verdict:
        """Allow if the wished target is among those to pick from."""
        _show(self._console, asked.question)
        chosen = self._target if self._target in asked.question.targets else None
        text = Text(f"allowed to {words.plain(chosen)}" if chosen else "denied", style="bold")
        text.append(" (scripted answer)", style="not bold")
        self._console.print(text)
        return Verdict(chosen)


class Plain(_Lines):
    """Asks line by line.

    Args:
        console: where questions are shown.
        descriptor: where keys come from.
        clock: seconds that never run backwards.
    """

    def __init__(self, console: Console, descriptor: int, clock: Clock = time.monotonic) -> None:
        super().__init__(console)
        self._descriptor = descriptor
        self._clock = clock

    async def ask(self, asked: Asked) -> Verdict:
        """Show the question and read what is typed."""
        question = asked.question
        with _unbuffered(self._descriptor):
            _show(self._console, question)
            invitation = _invitation(question)
            self._write(invitation)
            verdict = await self._pick(question.targets, invitation)
            self._write("\n" + _told(verdict, question) + "\n")
            return verdict

    async def _pick(self, targets: list[str], invitation: str) -> Verdict:
        caution = Caution(self._clock)
        typed = ""
        async with _keys_of(self._descriptor) as keys:
            while True:
                key = await keys.get()
                if key and not caution.admits():
                    continue
                if key in {_GONE, _ESCAPE, _END}:
                    return Verdict(None)
                if key in _ERASE:
                    self._write("\b \b" if typed else "")
                    typed = typed[:-1]
                elif key in _ENTER:
                    if typed == _FOR_NOW:
                        return Verdict(None, for_now=True)
                    if (chosen := _chosen(typed, targets)) is not None:
                        return Verdict(chosen)
                    # Enter alone does nothing.
                    if typed:
                        self._write(f"\nThere is no target `{typed}`. {invitation}")
                    typed = ""
                elif key.isascii() and key.isprintable() and len(typed) < _LONGEST_TYPED:
                    typed += key
                    self._write(key)

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)


def _told(verdict: Verdict, question: Question) -> str:
    if verdict.target is not None:
        return f"allowed to {harmless(verdict.target)}"
    if verdict.for_now:
        return f"denied, and all from {_all_from(question)}"
    return "denied"


def _invitation(question: Question) -> str:
    everything = _all_from(question)
    return f"Number of the target, ! to deny all from {everything}, or Escape to deny: "


def _all_from(question: Question) -> str:
    return f"{words.asker(question)} for {words.duration(MUTED_FOR)}"


def _chosen(typed: str, targets: list[str]) -> str | None:
    """What the typed number or name stands for."""
    if typed in targets:
        return typed
    if typed.isdecimal() and 1 <= int(typed) <= len(targets):
        return targets[int(typed) - 1]
    return None


def _show(console: Console, question: Question) -> None:
    console.print()
    line = Text()
    line.append_text(words.source(question))
    line.append(" wants to call ")
    line.append_text(words.service(question.service, question.argument))
    console.print(line)
    console.print("Which qube may serve it?")
    for number, target in enumerate(question.targets, 1):
        line = Text(f"  {number}  ")
        line.append_text(words.qube(target, question))
        if target == question.default_target:
            line.append("  (the policy suggests it)", style="dim")
        console.print(line)


@contextmanager
def _unbuffered(descriptor: int) -> Iterator[None]:
    """Single keys, no echo; what was typed before is dropped."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSAFLUSH)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


@asynccontextmanager
async def _keys_of(descriptor: int) -> AsyncIterator[asyncio.Queue[str]]:
    """Keys as they are typed; an empty one is the end of the input."""
    loop = asyncio.get_running_loop()
    keys: asyncio.Queue[str] = asyncio.Queue()

    def readable() -> None:
        try:
            chunk = os.read(descriptor, 1024)
        except OSError:
            chunk = b""
        if not chunk:
            loop.remove_reader(descriptor)
            keys.put_nowait(_GONE)
        elif chunk.startswith(b"\x1b"):
            # Escape, or a key that begins with it: what follows is not typing.
            keys.put_nowait(_ESCAPE)
        else:
            for key in chunk.decode("ascii", "replace"):
                keys.put_nowait(key)

    try:
        loop.add_reader(descriptor, readable)
    except PermissionError:
        # A file, or /dev/null: nobody types there.
        keys.put_nowait(_GONE)
    try:
        yield keys
    finally:
        with contextlib.suppress(OSError):
            loop.remove_reader(descriptor)
