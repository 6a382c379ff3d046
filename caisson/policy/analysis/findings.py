"""Findings: what is wrong with a policy, or looks as if it were not what was meant."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from caisson.errors import PolicyError


class Severity(StrEnum):
    """How bad it is: a policy with errors is not loaded at all."""

    ERROR = "error"
    WARNING = "warning"


class Finding(msgspec.Struct, frozen=True, order=True):
    """One finding, ordered by its place.

    Args:
        file: the policy file.
        line: counted from 1.
        column: counted from 1.
        code: a short name for what it is, for scripts.
        message: what is wrong; text of the policy in it is escaped.
        hint: the remedy; empty where there is none.
        severity: whether the policy loads.
    """

    file: str
    line: int
    column: int
    code: str
    message: str
    hint: str = ""
    severity: Severity = Severity.WARNING

    def as_dict(self) -> dict[str, Any]:
        """The finding for scripts."""
        return {field: getattr(self, field) for field in self.__struct_fields__}


def finding_of(error: PolicyError, line: int | None = None, file: str | None = None) -> Finding:
    """The finding that an error of the parser is.

    Args:
        error: the error.
        line: its line, where the parser knew only a part of the file.
        file: its file, where the error names none.
    """
    places = (error.file, error.line, error.column)
    place = ":".join(str(part) for part in places if part is not None)
    return Finding(
        error.file or file or "",
        line or error.line or 1,
        error.column or 1,
        "syntax",
        error.message.removeprefix(f"{place}: "),
        error.hint or "",
        Severity.ERROR,
    )
