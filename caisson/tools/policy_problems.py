"""What is wrong with the text of one policy file, every line of it, before anybody relies on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caisson.errors import PolicyError

if TYPE_CHECKING:
    from caisson.tools.policy_files import Named

MOST = 20
"""Problems that are told at once."""
_OF_ADMINISTRATORS = "admin-"


def problems(file: Named, text: bytes) -> list[PolicyError]:
    """The problems of a file by itself, in the order of its lines; what it includes is not read.

    Files of `include/` may be in either format: that of `!include-service`, lines without service
    and argument, is what `admin-*` have, and others if they make more sense so.
    """
    from caisson.policy.analysis import lint_text

    name = str(file) if file.included else f"{file}.policy"
    legacy = True if file.included and file.name.startswith(_OF_ADMINISTRATORS) else None
    return [
        PolicyError(
            found.message, found.hint or None, file=name, line=found.line, column=found.column
        )
        for found in lint_text(name, text, legacy=legacy)[:MOST]
    ]
