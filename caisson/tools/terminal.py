"""Words for a person: tables, errors, questions; never a raw control character."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO

from caisson.errors import CaissonError

_RED = "\033[1;31m"
_BOLD = "\033[1m"
_PLAIN = "\033[0m"


def harmless(text: str) -> str:
    """Text with every control character but line break and tab made visible."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


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


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows with aligned columns, two spaces between them, nothing after the last."""
    lines = [[harmless(cell) for cell in row] for row in rows]
    if not lines:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = 0
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + "\n"
        for line in lines
    )


def confirmed(question: str) -> bool:
    """Ask a person; anything but yes, and no person at all, means no."""
    print(f"{harmless(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    return answer in {"y", "yes"}
