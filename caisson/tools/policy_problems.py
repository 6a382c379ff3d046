"""What is wrong with the text of one policy file, every line of it, before anybody relies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from caisson.errors import PolicyError

if TYPE_CHECKING:
    from caisson.policy.syntax import Statement
    from caisson.tools.policy_files import Named

MOST = 20
"""Problems that are told at once."""
_OF_ADMINISTRATORS = "admin-"


def problems(file: Named, text: bytes) -> list[PolicyError]:
    """The problems of a file by itself, in the order of its lines; what it includes is not read.

    Files of `include/` may be in either format: that of `!include-service`, lines without service
    and argument, is what `admin-*` have, and others if they make more sense so.
    """
    from caisson.policy.parse import parse_service_text, parse_text

    legacy: _Parse = partial(parse_service_text, service="my.Service", argument="*")
    if not file.included:
        return _problems(f"{file}.policy", text, parse_text)
    in_legacy = _problems(str(file), text, legacy)
    if file.name.startswith(_OF_ADMINISTRATORS):
        return in_legacy
    return min(_problems(str(file), text, parse_text), in_legacy, key=len)


_Parse = Callable[[str, bytes], "Iterable[Statement]"]


def _problems(label: str, text: bytes, parse: _Parse) -> list[PolicyError]:
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    found: list[PolicyError] = []
    while len(found) < MOST:
        try:
            _check(parse(label, b"\n".join(lines)))
        except PolicyError as error:
            found.append(error)
            if error.line is None:
                break
            # The parser stops at the first: look on without that line.
            lines[error.line - 1] = b""
        else:
            break
    return sorted(found, key=lambda error: error.line or 0)


def _check(statements: Iterable[Statement]) -> None:
    from caisson.policy.rules import check_rule, check_service
    from caisson.policy.syntax import IncludeService, RuleLine

    for statement in statements:
        match statement:
            case RuleLine():
                check_rule(statement)
            case IncludeService(line, service, argument):
                check_service(line, 1, service, argument)
