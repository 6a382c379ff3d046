"""Words for a person: tables, errors, questions; never a raw control character."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Self

from caisson.errors import CaissonError

if TYPE_CHECKING:
    import threading

_RED = "\033[1;31m"
_BOLD = "\033[1m"
_PLAIN = "\033[0m"
_PATIENCE = 1.0


def harmless(text: str) -> str:
    """Text with every control character but line break and tab made visible."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def emit(untrusted: str | bytes) -> None:
    """Print a text that came from the daemon: exactly, or on a terminal without harm."""
    text = untrusted if isinstance(untrusted, str) else untrusted.decode("utf-8", "replace")
    if sys.stdout.isatty():
        print(harmless(text), end="")
        return
    sys.stdout.flush()
    exact = untrusted if isinstance(untrusted, bytes) else text.encode("utf-8", "surrogateescape")
    sys.stdout.buffer.write(exact)
    sys.stdout.flush()


def cell(text: str) -> str:
    """Text that stays on its line, and in its column."""
    return text if text.isprintable() else harmless(text.replace("\n", "\\n").replace("\t", "\\t"))


def coloured(stream: IO[str]) -> bool:
    """Whether colour is welcome on this stream."""
    return not os.environ.get("NO_COLOR") and stream.isatty()


def say(text: str) -> None:
    """Tell a person something that is no data."""
    print(harmless(text), file=sys.stderr)


def complain(error: CaissonError) -> None:
    """Show an error and its remedy."""
    red, bold, plain = (_RED, _BOLD, _PLAIN) if coloured(sys.stderr) else ("", "", "")
    print(f"{red}error:{plain} {harmless(error.message)}", file=sys.stderr)
    if error.hint is not None:
        print(f"{bold}hint:{plain} {harmless(error.hint)}", file=sys.stderr)


def warn(text: str, hint: str) -> None:
    """Show what a person should know though nothing is refused, and what to do about it."""
    bold, plain = (_BOLD, _PLAIN) if coloured(sys.stderr) else ("", "")
    print(f"{bold}warning:{plain} {harmless(text)}", file=sys.stderr)
    print(f"{bold}hint:{plain} {harmless(hint)}", file=sys.stderr)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows with aligned columns, two spaces between them, nothing after the last."""
    lines = [[cell(word) for word in row] for row in rows]
    if not lines:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = 0
    return "".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) + "\n"
        for line in lines
    )


class Progress:
    """A line on stderr about what takes longer than a second; nothing where nobody looks.

    Args:
        text: what is being done.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._ended: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            import threading

            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ended is not None and self._thread is not None:
            self._ended.set()
            self._thread.join()

    def tell(self, text: str) -> None:
        """Say how far it is."""
        self._text = text

    def _show(self) -> None:
        shown = False
        while self._ended is not None and not self._ended.wait(_PATIENCE):
            print(f"\r\033[K{cell(self._text)} …", end="", file=sys.stderr, flush=True)
            shown = True
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def confirmed(question: str) -> bool:
    """Ask a person; anything but yes, and no person at all, means no."""
    print(f"{harmless(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    return answer in {"y", "yes"}
