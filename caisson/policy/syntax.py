"""The syntax tree of a policy file: what is written, where, and not yet checked."""

from __future__ import annotations

import re
from typing import Self

import msgspec

from caisson.errors import PolicyError

_FIELD = re.compile(r"\S+")


class Location(msgspec.Struct, frozen=True, gc=False):
    """A place in a policy: file, and the line counted from 1.

    `line` is None where no line says it: the implicit rules of `!compat-4.0`.
    """

    file: str
    line: int | None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    @property
    def rule(self) -> str:
        """The short form that results and logs carry: the last part of the file's name."""
        name = self.file.rpartition("/")[2]
        return name if self.line is None else f"{name}:{self.line}"


class Line(msgspec.Struct, frozen=True):
    """One line of a file that says something, split into its fields."""

    location: Location
    text: str
    fields: tuple[str, ...]

    def column(self, field: int) -> int:
        """The column of a field, counted from 1; past the last field, the end of the line."""
        for index, match in enumerate(_FIELD.finditer(self.text)):
            if index == field:
                return match.start() + 1
        return len(self.text.rstrip()) + 1

    def error(self, field: int, message: str, hint: str | None = None) -> PolicyError:
        """An error about one field of this line."""
        return PolicyError(
            message,
            hint,
            file=self.location.file,
            line=self.location.line,
            column=self.column(field),
            text=self.text,
        )


class RuleLine(msgspec.Struct, frozen=True):
    """`SERVICE ARGUMENT SOURCE TARGET ACTION [PARAM=VALUE …]`, or its legacy form.

    `first` is the index of SOURCE among the fields of the line: a legacy line starts with it,
    because its service and argument come from elsewhere.
    """

    line: Line
    service: str
    argument: str
    first: int

    @property
    def source(self) -> str:
        """The SOURCE field."""
        return self.line.fields[self.first]

    @property
    def target(self) -> str:
        """The TARGET field."""
        return self.line.fields[self.first + 1]

    @property
    def action(self) -> str:
        """The ACTION field."""
        return self.line.fields[self.first + 2]

    @property
    def parameters(self) -> tuple[str, ...]:
        """What follows the action, each as written."""
        return self.line.fields[self.first + 3 :]


class _Directive(msgspec.Struct, frozen=True):
    line: Line

    def at(self, location: Location) -> Self:
        """The same directive, written in another place."""
        line = Line(location, self.line.text, self.line.fields)
        return msgspec.structs.replace(self, line=line)


class Include(_Directive, frozen=True):
    """`!include PATH`."""

    path: str


class IncludeDirectory(_Directive, frozen=True):
    """`!include-dir PATH`."""

    path: str


class IncludeService(_Directive, frozen=True):
    """`!include-service SERVICE ARGUMENT PATH`."""

    service: str
    argument: str
    path: str


class Compatibility(_Directive, frozen=True):
    """`!compat-4.0`."""


Directive = Include | IncludeDirectory | IncludeService | Compatibility
Statement = RuleLine | Directive
