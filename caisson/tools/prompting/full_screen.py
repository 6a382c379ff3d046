"""Asking on the whole screen of a terminal, with textual.

All keys go to one widget, `Dialogue`, which decides whether they count before anything happens;
mouse and paste do nothing. Texts of a question are given to textual as `Text`, never as markup.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from caisson.errors import CaissonError
from caisson.qrexec.patience import Clock
from caisson.qrexec.prompt import Notice
from caisson.tools.prompting import words
from caisson.tools.prompting.agent import Agent, Asked, Person, Verdict
from caisson.tools.prompting.dialogue import Dialogue

MOST_NOTICES = 4
LOW = 16
"""Lines of a screen too low for a log of notices beside a question."""

_RESTORE = "\x1b[?1004;2004;2048l\x1b[<u\x1b[?7h\x1b[?1049l\x1b[?25h\x1b[0m"
"""No reports of focus, paste and size; the keyboard, wrapping, screen and cursor as before."""

_ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class FullScreen(App[None]):
    """The person's side: one question at a time, notices below.

    Args:
        serve: brings questions, and ends when no more are wanted.
        clock: seconds that never run backwards.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #title { height: 1; background: $primary; color: $text; text-style: bold; padding: 0 1; }
    #place { height: 1fr; }
    #idle { padding: 1 2; }
    #notices { height: auto; max-height: 5; padding: 0 1; border-top: solid $primary; }
    #notices.empty, .low #notices, .low #title { display: none; }
    .low Dialogue { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+q,ctrl+c", "quit", priority=True)]

    def __init__(
        self,
        serve: Callable[[Person], Coroutine[Any, Any, None]],
        clock: Clock = time.monotonic,
    ) -> None:
        # The terminal's own colours, or textual would turn colours into greys.
        super().__init__(ansi_color=True if os.environ.get("NO_COLOR") else None)
        self._serve = serve
        self._clock = clock
        self._notices: deque[tuple[Text, int]] = deque(maxlen=MOST_NOTICES)
        self._waiting = 0
        self._dialogue: Dialogue | None = None
        self.serving: asyncio.Task[None] | None = None

    def compose(self) -> ComposeResult:
        """Title, question, notices."""
        yield Static("caisson prompt", id="title", markup=False)
        with Vertical(id="place"):
            yield Static("No question waits. Ctrl-Q ends.", id="idle", markup=False)
        yield Static("", id="notices", classes="empty", markup=False)

    def on_mount(self) -> None:
        """Let questions come: from here, where widgets know the screen that they are for."""
        self.serving = asyncio.create_task(self._serve_and_exit())
        self.set_interval(1.0, self._look_for_terminal)

    async def _serve_and_exit(self) -> None:
        try:
            await self._serve(self)
        finally:
            # A crash of the screen that ended this has its code already.
            self.exit(return_code=self.return_code or 0)

    def end(self) -> None:
        """Take no more questions, and leave the screen."""
        if self.serving is not None:
            self.serving.cancel()
        else:
            self.exit()

    async def action_quit(self) -> None:
        """What the key does."""
        self.end()

    # What the agent says.

    async def ask(self, asked: Asked) -> Verdict:
        """Show a question until it is answered or taken away."""
        dialogue = self._dialogue = Dialogue(asked, self._clock)
        dialogue.waiting(self._waiting)
        idle = self.query_one("#idle")
        idle.display = False
        try:
            await self.query_one("#place").mount(dialogue)
            self.bell()
            return await dialogue.verdict
        finally:
            self._dialogue = None
            idle.display = True
            # Not waited for: at the end of the program it would wait for us.
            dialogue.remove()

    def taken_back(self) -> None:
        """Say that the question that was shown is off."""
        self._note(Text("The call was taken back, or answered elsewhere."))

    def wait_changed(self, waiting: int) -> None:
        """Show how many questions wait."""
        self._waiting = waiting
        if self._dialogue is not None:
            self._dialogue.waiting(waiting)

    def tell(self, notice: Notice) -> None:
        """Add a notice to the log."""
        self._note(words.notice(notice))

    def _note(self, text: Text) -> None:
        if not self.is_running:
            return
        if self._notices and self._notices[-1][0].plain == text.plain:
            # One that says the same again takes no other's place.
            self._notices[-1] = (text, self._notices[-1][1] + 1)
        else:
            self._notices.append((text, 1))
        log = self.query_one("#notices", Static)
        log.update(Text("\n").join(_counted(*n) for n in self._notices))
        log.remove_class("empty")

    # What the terminal says.

    def watch_app_focus(self, focus: bool) -> None:
        """Turned to again: keys do not count at once."""
        if focus and self._dialogue is not None:
            self._dialogue.attract()

    def on_resize(self, event: events.Resize) -> None:
        """Leave a low screen to the question."""
        self.screen.set_class(event.size.height < LOW, "low")

    def _look_for_terminal(self) -> None:
        """End when the terminal is gone, also where no signal says so."""
        if not self.is_headless:
            poll = select.poll()
            poll.register(sys.stdin.fileno(), 0)
            if poll.poll(0):
                self.end()


def _counted(text: Text, times: int) -> Text:
    line = Text("• ") + text
    return line + Text(f" ({times} times)") if times > 1 else line


def run(path: Path, *, once: bool) -> int:
    """Answer questions on the whole screen; the exit code.

    Args:
        path: the well-known socket of prompt agents.
        once: end after one question.

    Raises:
        CaissonError: no socket could be made.
    """
    with _restored_terminal():
        return asyncio.run(_run(path, once=once))


async def _run(path: Path, *, once: bool) -> int:
    app = FullScreen(lambda person: Agent(person, once=once).run(path))
    ended_by: list[signal.Signals] = []

    def end(sign: signal.Signals) -> None:
        ended_by.append(sign)
        app.end()
        # A terminal that takes no more output would hold us up: the second signal does not wait.
        loop.remove_signal_handler(sign)

    loop = asyncio.get_running_loop()
    for sign in _ENDINGS:
        loop.add_signal_handler(sign, end, sign)
    await app.run_async(mouse=False)
    if app.serving is not None:
        app.serving.cancel()
        with suppress(asyncio.CancelledError):
            await app.serving
    return 128 + ended_by[0] if ended_by else app.return_code or 0


@contextmanager
def _restored_terminal() -> Iterator[None]:
    """Whatever happens in between, the terminal is as before."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    # The terminal may be gone: nothing to restore then.
    try:
        yield
    except CaissonError:
        raise
    except BaseException:
        # Else textual has done so, and once more would undo what others did before it.
        with suppress(OSError):
            os.write(descriptor, _RESTORE.encode())
        raise
    finally:
        with suppress(OSError, termios.error):
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
