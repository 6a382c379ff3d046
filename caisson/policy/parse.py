"""Text to syntax: lines, fields and directives of one file. Nothing is looked up here.

Specification sheet `qrexec`, sections 3.1 (new format) and 3.2 (legacy lines).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from caisson.errors import PolicyError
from caisson.names import shown
from caisson.policy.syntax import (
    Compatibility,
    Include,
    IncludeDirectory,
    IncludeService,
    Line,
    Location,
    RuleLine,
    Statement,
)

# Bounds of what one policy may cost to read. A line is split into as many fields as it has.
MOST_LINES = 1_000_000
LONGEST_LINE = 65_536

# Terminal and log injection: a policy has no use for them. What Python counts as white space
# (tabs, form feeds, 0x1c to 0x1f) separates fields and is fine.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f]")
_LEGACY_INCLUDE = "$include:"
_RULE_FORM = "write `SERVICE ARGUMENT SOURCE TARGET ACTION [PARAM=VALUE …]`"
_LEGACY_FORM = "write `SOURCE TARGET ACTION[,PARAM=VALUE …]`"
_RULE_FIELDS = 5
_LEGACY_FIELDS = 3
_DIRECTIVES = {
    "!include": ("PATH",),
    "!include-dir": ("PATH",),
    "!include-service": ("SERVICE", "ARGUMENT", "PATH"),
    "!compat-4.0": (),
}


def lines_of(file: str, text: str | bytes) -> list[str]:
    """The lines of a file, without their ends.

    Raises:
        PolicyError: it is no text, or too much; with file, line and column.
    """
    text = _decode(file, text)
    if text.count("\n") > MOST_LINES:
        raise too_many_lines(file, MOST_LINES + 1)
    return text.split("\n")


def too_many_lines(file: str, line: int) -> PolicyError:
    """The error about the first line of a policy that is one too many."""
    return PolicyError(
        f"the policy has more than {MOST_LINES} lines",
        "use tags instead of names, and fewer includes",
        file=file,
        line=line,
        column=1,
    )


def parse_text(file: str, text: str | bytes) -> tuple[Statement, ...]:
    """Parse a file in the new format.

    Raises:
        PolicyError: with file, line and column.
    """
    statements = (parse_line(location, raw) for location, raw in _located(file, text))
    return tuple(statement for statement in statements if statement is not None)


def parse_service_text(
    file: str, text: str | bytes, service: str, argument: str
) -> tuple[Statement, ...]:
    """Parse a file of legacy lines, which speak about one service and argument.

    Raises:
        PolicyError: with file, line and column.
    """
    statements = (
        parse_service_line(location, raw, service, argument)
        for location, raw in _located(file, text)
    )
    return tuple(statement for statement in statements if statement is not None)


def _located(file: str, text: str | bytes) -> Iterator[tuple[Location, str]]:
    for number, raw in enumerate(lines_of(file, text), 1):
        yield Location(file, number), raw


def parse_line(location: Location, raw: str) -> Statement | None:
    """Parse a line in the new format; None if it says nothing.

    Raises:
        PolicyError: with file, line and column.
    """
    line = _split(location, raw)
    if line is None:
        return None
    return _directive(line) if line.fields[0].startswith("!") else _rule(line)


def parse_service_line(
    location: Location, raw: str, service: str, argument: str
) -> Statement | None:
    """Parse a legacy line, which speaks about one service and argument; None if it says nothing.

    Raises:
        PolicyError: with file, line and column.
    """
    line = _split(location, _modernise(raw))
    if line is None:
        return None
    if line.fields[0].startswith("!"):
        return _legacy_directive(line)
    return _legacy_rule(line, service, argument)


def _decode(file: str, text: str | bytes) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as e:
            before = e.object[: e.start].decode("utf-8")
            after = e.object[e.start :].decode("utf-8", "replace")
            raise _error_at(file, before, after, "the file is not UTF-8") from None
    text = _universal(text)
    if text.startswith("\ufeff"):
        raise _error_at(
            file, "", text, "the file starts with a byte order mark", "save it as UTF-8 without one"
        )
    return text


def _universal(text: str) -> str:
    """Universal line ends, as Python reads text files."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _error_at(
    file: str, before: str, after: str, message: str, hint: str | None = None
) -> PolicyError:
    """An error between two halves of a file."""
    before = _universal(before)
    line = before.count("\n") + 1
    begin = before[before.rfind("\n") + 1 :]
    text = begin + re.split("[\r\n]", after[:LONGEST_LINE], maxsplit=1)[0]
    return PolicyError(message, hint, file=file, line=line, column=len(begin) + 1, text=text)


def _modernise(raw: str) -> str:
    """A legacy line in today's spelling; every replacement keeps its length, so columns hold."""
    if raw.lstrip().startswith(_LEGACY_INCLUDE):
        raw = raw.replace(_LEGACY_INCLUDE, "!include ", 1)
    return raw.replace("$", "@").replace(",", " ")


def _split(location: Location, raw: str) -> Line | None:
    """The fields of a line; None if it says nothing."""
    if raw.lstrip()[:1] in ("", "#"):
        return None
    if len(raw) > LONGEST_LINE:
        raise PolicyError(
            f"the line is longer than {LONGEST_LINE} characters",
            file=location.file,
            line=location.line,
            column=LONGEST_LINE + 1,
        )
    if match := _CONTROL.search(raw):
        raise PolicyError(
            f"control character 0x{ord(match[0]):02x} in a policy",
            file=location.file,
            line=location.line,
            column=match.start() + 1,
            text=raw,
        )
    return Line(location, raw, tuple(raw.split()))


def _rule(line: Line) -> RuleLine:
    if len(line.fields) < _RULE_FIELDS:
        raise line.error(
            len(line.fields),
            f"a rule needs {_RULE_FIELDS} fields, found {len(line.fields)}",
            _RULE_FORM,
        )
    return RuleLine(line, line.fields[0], line.fields[1], 2)


def _legacy_rule(line: Line, service: str, argument: str) -> RuleLine:
    if len(line.fields) < _LEGACY_FIELDS:
        raise line.error(
            len(line.fields),
            f"a rule of one service needs {_LEGACY_FIELDS} fields, found {len(line.fields)}",
            _LEGACY_FORM,
        )
    return RuleLine(line, service, argument, 0)


def _directive(line: Line) -> Statement:
    name, *values = line.fields
    expected = _DIRECTIVES.get(name)
    if expected is None:
        raise line.error(
            0, f"unknown directive `{shown(name)}`", f"known are {', '.join(_DIRECTIVES)}"
        )
    if len(values) != len(expected):
        raise line.error(
            min(len(values), len(expected)) + 1,
            f"`{name}` takes {len(expected)} values, found {len(values)}",
            f"write `{' '.join((name, *expected))}`",
        )
    match name:
        case "!include":
            return Include(line, values[0])
        case "!include-dir":
            return IncludeDirectory(line, values[0])
        case "!include-service":
            return IncludeService(line, *values)
        case _:
            return Compatibility(line)


def _legacy_directive(line: Line) -> Statement:
    if line.fields[0] != "!include":
        raise line.error(
            0,
            f"`{shown(line.fields[0])}` cannot stand in a file of one service",
            "only `!include` can",
        )
    return _directive(line)


def referenced_paths(text: str | bytes) -> Iterator[str]:
    """The paths that a file's include lines name, for a reader that has to fetch them.

    Reads both formats and raises nothing: errors are the parser's business.
    """
    decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    for line in _lines_with("include", _universal(decoded)):
        fields = line.replace(_LEGACY_INCLUDE, "!include ").split()
        if len(fields) > 1 and fields[0].startswith("!include") and "\0" not in fields[-1]:
            yield fields[-1]


def _lines_with(word: str, text: str) -> Iterator[str]:
    """The lines that hold a word, not too long ones; quick where they are few."""
    end = 0
    while (found := text.find(word, end)) >= 0:
        start = text.rfind("\n", end, found) + 1 or end
        end = text.find("\n", found)
        if end < 0:
            end = len(text)
        if end - start <= LONGEST_LINE:
            yield text[start:end]
