"""All syntax errors of one text, where loading a policy stops at the first."""

from __future__ import annotations

import re

import msgspec

from caisson.errors import PolicyError
from caisson.policy.analysis.findings import Finding, Severity, finding_of
from caisson.policy.parse import parse_service_text, parse_text
from caisson.policy.rules import EVERY, check_rule, check_service
from caisson.policy.syntax import IncludeService, RuleLine

MOST_FINDINGS = 1000
"""A text with more errors than that is no policy, and a list of them no help."""

_INCLUDED = "include/"
_BREAK = re.compile(rb"\r\n|\r|\n")
_MARK = "\ufeff".encode()


def lint_text(name: str, text: str | bytes, *, legacy: bool | None = None) -> list[Finding]:
    """Check the syntax of every line of a policy file, without following its includes.

    Args:
        name: the name of the file, for the findings.
        text: what it says.
        legacy: whether its lines are those of one service (`SOURCE TARGET ACTION`); None: as the
            name says. A file below `include/` may be of either form, and is taken for the one
            in which it has fewer errors.
    """
    if legacy is not None:
        return _lint(name, text, legacy)
    found = _lint(name, text, legacy=False)
    if found and name.startswith(_INCLUDED):
        return min(found, _lint(name, text, legacy=True), key=len)
    return found


def _lint(name: str, text: str | bytes, legacy: bool) -> list[Finding]:
    found: list[Finding] = []
    for number, line in enumerate(lines_of(text), 1):
        finding = _finding(name, number, line, legacy)
        if finding is None:
            continue
        if len(found) == MOST_FINDINGS:
            message = f"there are more than {MOST_FINDINGS} errors; the rest is not checked"
            return [*found, Finding(name, number, 1, "syntax", message, "", Severity.ERROR)]
        found.append(finding)
    return found


def lines_of(text: str | bytes) -> list[bytes]:
    """The lines of a policy file, whatever ends them."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return _BREAK.split(raw)


def _finding(name: str, number: int, line: bytes, legacy: bool) -> Finding | None:
    """What is wrong with one line."""
    # Only at the start of a file is it a byte order mark.
    shift = int(number > 1 and line.startswith(_MARK))
    try:
        _check(name, b" " * shift + line, legacy)
    except PolicyError as error:
        found = finding_of(error, number)
        return msgspec.structs.replace(found, column=max(1, found.column - shift))
    return None


def _check(name: str, line: bytes, legacy: bool) -> None:
    statements = parse_service_text(name, line, EVERY, EVERY) if legacy else parse_text(name, line)
    for statement in statements:
        if isinstance(statement, RuleLine):
            check_rule(statement)
        elif isinstance(statement, IncludeService):
            check_service(statement.line, 1, statement.service, statement.argument)
