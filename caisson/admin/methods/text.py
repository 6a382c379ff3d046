"""The forms of text that answers share."""

from __future__ import annotations

from collections.abc import Iterable


def listing(items: Iterable[object]) -> str:
    """One item a line, each line ended; nothing for no items."""
    return "".join(f"{item}\n" for item in items)


def escaped(value: str) -> str:
    """Keep a value on one line: backslash and line breaks become escapes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
