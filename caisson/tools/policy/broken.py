"""A policy that does not load, shown: the error, the line that it is about, and where in it."""

from __future__ import annotations

from caisson.errors import PolicyError
from caisson.tools import terminal

_WIDEST = 160
"""Columns of a line of a policy that are shown around a mistake."""


def complain(error: PolicyError) -> None:
    """Show an error in a policy, with the line that it is about, on stderr."""
    if error.text is None or error.column is None:
        terminal.complain(error)
        return
    message = f"{error.message}\n{excerpt(error.text, error.column)}"
    terminal.complain(PolicyError(message, error.hint))


def excerpt(text: str, column: int) -> str:
    """A line, or what is around its column, with a caret under the column (counted from 1)."""
    start = max(0, column - 1 - _WIDEST // 2)
    before = terminal.cell(text[start : column - 1])
    behind = terminal.cell(text[column - 1 : start + _WIDEST])
    return f"    {before}{behind}".rstrip() + f"\n    {' ' * len(before)}^"
