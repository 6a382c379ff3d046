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


def parse_text(file: str, text: str | bytes) -> tuple[Statement, ...]:
    """Parse a file in the new format.

    Raises:
        PolicyError: with file, line and column.
    """
    return tuple(
        _directive(line) if line.fields[0].startswith("!") else _rule(line)
        for line in _lines(file, _decode(file, text))
    )


def parse_service_text(
    file: str, text: str | bytes, service: str, argument: str
) -> tuple[Statement, ...]:
    """Parse a file of legacy lines that speak about one service and argument.

    Raises:
        PolicyError: with file, line and column.
    """
    return tuple(
        _legacy_directive(line)
        if line.fields[0].startswith("!")
        else _legacy_rule(line, service, argument)
        for line in _lines(file, _modernise(_decode(file, text)))
    )


def _decode(file: str, text: str | bytes) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as e:
            before = e.object[: e.start].decode("utf-8")
            after = e.object[e.start :].decode("utf-8", "replace")
            raise _error_at(file, before, after, "the file is not UTF-8") from None
    # Universal line ends, as Python reads text files.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.startswith("\ufeff"):
        raise _error_at(
            file, "", text, "the file starts with a byte order mark", "save it as UTF-8 without one"
        )
    return text


def _error_at(
    file: str, before: str, after: str, message: str, hint: str | None = None
) -> PolicyError:
    """An error between two halves of a file."""
    before = before.replace("\r\n", "\n").replace("\r", "\n")
    line = before.count("\n") + 1
    begin = before[before.rfind("\n") + 1 :]
    text = begin + re.split("[\r\n]", after, maxsplit=1)[0]
    return PolicyError(message, hint, file=file, line=line, column=len(begin) + 1, text=text)


def _modernise(text: str) -> str:
    """Legacy lines in today's spelling; every replacement keeps its length, so columns hold."""
    lines = [
        line.replace(_LEGACY_INCLUDE, "!include ", 1)
        if line.lstrip().startswith(_LEGACY_INCLUDE)
        else line
        for line in text.split("\n")
    ]
    return "\n".join(lines).replace("$", "@").replace(",", " ")


def _lines(file: str, text: str) -> Iterator[Line]:
    """The lines that say something."""
    clean = _CONTROL.search(text) is None
    for number, raw in enumerate(text.split("\n"), 1):
        fields = raw.split()
        if not fields or fields[0].startswith("#"):
            continue
        line = Line(Location(file, number), raw, tuple(fields))
        if not clean and (match := _CONTROL.search(raw)):
            raise PolicyError(
                f"control character 0x{ord(match[0]):02x} in a policy",
                file=file,
                line=number,
                column=match.start() + 1,
                text=raw,
            )
        yield line


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
    if "!" not in decoded and _LEGACY_INCLUDE not in decoded:
        return
    for line in re.split(r"\r\n|\r|\n", decoded):
        fields = line.replace(_LEGACY_INCLUDE, "!include ").split()
        if len(fields) > 1 and fields[0].startswith("!include") and "\0" not in fields[-1]:
            yield fields[-1]
