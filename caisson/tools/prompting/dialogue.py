"""One question on the screen: who wants what, the targets, and the keys that answer."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from caisson.qrexec.patience import MUTED_FOR, Clock
from caisson.tools.prompting import words
from caisson.tools.prompting.agent import Asked, Verdict
from caisson.tools.prompting.caution import Caution

COUNTDOWN = 30.0
"""The last seconds of a question, which are shown."""

_TICK = 0.1
_LONGEST_FILTER = 64
_LINES_OF_ARGUMENT = 2
_MOVES = {
    "down": "cursor_down",
    "up": "cursor_up",
    "pagedown": "page_down",
    "pageup": "page_up",
    "home": "first",
    "end": "last",
}


class Dialogue(Widget, can_focus=True):
    """The question; `verdict` is the person's answer.

    Args:
        asked: the question.
        clock: seconds that never run backwards.
    """

    DEFAULT_CSS: ClassVar[str] = """
    Dialogue { height: 1fr; layout: vertical; border: round $primary; padding: 0 1; }
    Dialogue Static { height: auto; }
    Dialogue .line { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    Dialogue #targets { height: 1fr; min-height: 1; border: none; padding: 0; }
    Dialogue #targets > .option-list--option-highlighted { text-style: reverse; }
    Dialogue #keys { height: 1; }
    Dialogue #keys Static { width: auto; margin-right: 2; }
    Dialogue #ok { text-style: bold reverse; }
    Dialogue #ok:disabled { text-style: dim; }
    """

    def __init__(self, asked: Asked, clock: Clock) -> None:
        super().__init__()
        self._question, self._deadline = asked
        self._clock = clock
        self._caution = Caution(clock)
        self._filter = ""
        self._shown: list[str] = []
        self._waiting = 0
        self._last: tuple[object, ...] = ()
        self.chosen: str | None = None
        self.verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def compose(self) -> ComposeResult:
        """The parts, each in lines of its own."""
        question = self._question
        yield _line("source", Text("From     ") + words.source(question))
        yield Static(self._service(80), id="service", markup=False)
        yield _line("filter")
        targets = OptionList(id="targets", markup=False)
        targets.can_focus = False
        yield targets
        yield _line("choice")
        with Horizontal(id="keys"):
            yield Static("Enter: OK", id="ok", markup=False, disabled=True)
            yield Static("Escape: deny", markup=False)
        asker, lasting = words.asker(question), words.duration(MUTED_FOR)
        yield _line("for-now", Text(f"Ctrl-X: deny all from {asker} for {lasting}"))
        yield _line("state")

    def on_mount(self) -> None:
        """Show it, with what the policy suggests, and nothing else, chosen."""
        if self._question.default_target in self._question.targets:
            self.chosen = self._question.default_target
        self._list()
        self._refresh()
        self.focus()
        self.attract()
        self.set_interval(_TICK, self._refresh)

    def on_resize(self, event: events.Resize) -> None:
        """Show as much of a long argument as leaves room for the targets."""
        self.query_one("#service", Static).update(self._service(event.size.width))

    def _service(self, width: int) -> Text:
        longest = max(20, width * _LINES_OF_ARGUMENT)
        named = words.service(self._question.service, self._question.argument, longest)
        return Text("Calls    ") + named

    def attract(self) -> None:
        """The person turns to it: keys count in a second."""
        self._caution.attract()
        self._refresh()

    def waiting(self, others: int) -> None:
        """So many questions of other qubes wait."""
        self._waiting = others + max(0, self._question.waiting)
        if self.is_mounted:
            self._refresh()

    def on_unmount(self) -> None:
        """Nobody will answer."""
        if not self.verdict.done():
            self.verdict.cancel()

    # Keys.

    def on_key(self, event: events.Key) -> None:
        """Take every key: nothing behind this widget gets one."""
        event.stop()
        event.prevent_default()
        if self._caution.admits():
            self._press(event)
        self._refresh()

    def on_paste(self, event: events.Paste) -> None:
        """What is pasted was not written for this question."""
        event.stop()

    def _press(self, event: events.Key) -> None:
        match event.key:
            case "enter":
                if self.chosen is not None:
                    self._answer(Verdict(self.chosen))
            case "escape":
                self._answer(Verdict(None))
            case "ctrl+x":
                self._answer(Verdict(None, for_now=True))
            case "backspace":
                self._narrow(self._filter[:-1])
            case "ctrl+u":
                self._narrow("")
            case key if key in _MOVES:
                self._move(_MOVES[key])
            case _ if event.character and event.character.isascii() and event.is_printable:
                self._narrow((self._filter + event.character)[:_LONGEST_FILTER])

    def _answer(self, verdict: Verdict) -> None:
        if not self.verdict.done():
            self.verdict.set_result(verdict)

    # Targets.

    def _move(self, how: str) -> None:
        targets = self.query_one("#targets", OptionList)
        getattr(targets, f"action_{how}")()
        if targets.highlighted is not None:
            self.chosen = self._shown[targets.highlighted]

    def _narrow(self, wanted: str) -> None:
        if wanted != self._filter:
            self._filter = wanted
            self._list()

    def _list(self) -> None:
        """List what the filter leaves; what it hides is not chosen any more, nothing else is."""
        question = self._question
        wanted = self._filter.lower()
        self._shown = [t for t in question.targets if wanted in t.lower()]
        targets = self.query_one("#targets", OptionList)
        targets.set_options([Option(self._option(target)) for target in self._shown])
        if self.chosen not in self._shown:
            self.chosen = None
        targets.highlighted = None if self.chosen is None else self._shown.index(self.chosen)

    def _option(self, target: str) -> Text:
        text = words.qube(target, self._question)
        if target == self._question.default_target:
            text.append("  (the policy suggests it)", style="dim")
        text.no_wrap = True
        return text

    # State.

    def _refresh(self) -> None:
        """Show what has changed, also by time alone."""
        ready = self._caution.ready and self.chosen is not None
        state = self._state()
        now = (ready, state, self.chosen, self._filter)
        if now == self._last:
            return
        self._last = now
        self.query_one("#ok").disabled = not ready
        listed = Text(f" ({len(self._shown)} of {len(self._question.targets)})", style="dim")
        typed = Text(f"Filter   {self._filter}_") + listed
        self.query_one("#filter", Static).update(typed)
        chosen = Text("nothing chosen yet: arrows choose", style="dim")
        if self.chosen is not None:
            chosen = words.qube(self.chosen, self._question)
        self.query_one("#choice", Static).update(Text("Allow to ") + chosen)
        self.query_one("#state", Static).update(Text(state, style="dim"))

    def _state(self) -> str:
        parts = []
        left = self._deadline - self._clock()
        if left <= COUNTDOWN:
            parts.append(f"denied by itself in {words.duration(left)}")
        if not self._caution.ready:
            parts.append("keys count in a second")
        if self._waiting:
            word = "question waits" if self._waiting == 1 else "questions wait"
            parts.append(f"{self._waiting} more {word}")
        return "; ".join(parts)


def _line(name: str, text: Text | str = "") -> Static:
    return Static(text, id=name, classes="line", markup=False)
