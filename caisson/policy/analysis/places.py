"""Where in its file a word of a rule stands."""

from __future__ import annotations

import re
from functools import cache

from caisson.policy.analysis.findings import Finding
from caisson.policy.load import Files
from caisson.policy.rules import Rule

_FIELD = re.compile(r"[^\s,]+")
_BREAK = re.compile(r"\r\n|\r|\n")
_ORDER = ("service", "argument", "source", "target", "action")


class Places:
    """The texts of policy files, for the columns of findings.

    Args:
        files: name → text; a rule of a file that is not there has no columns.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lines = cache(self._split)

    def finding(self, rule: Rule, field: str, code: str, message: str, hint: str) -> Finding:
        """A finding about one field of a rule.

        Args:
            rule: the rule.
            field: `service`, `argument`, `source`, `target`, `action`, or a parameter as `user=`.
            code: what it is.
            message: what is wrong.
            hint: the remedy; may be empty.
        """
        line = rule.location.line or 1
        column = self._column(rule, field)
        return Finding(rule.location.file, line, column, code, message, hint)

    def parameters(self, rule: Rule) -> list[str]:
        """The parameters of a rule as they are written."""
        return [match[0] for match in self._fields(rule)[len(_ORDER) - self._missing(rule) :]]

    def _column(self, rule: Rule, field: str) -> int:
        fields = self._fields(rule)
        if field.endswith("="):
            found = [match for match in fields if match[0].startswith(field)]
        else:
            index = _ORDER.index(field) - self._missing(rule)
            # The service of a line in the old format stands elsewhere.
            found = fields[max(index, 0) : max(index, 0) + 1]
        return found[0].start() + 1 if found else 1

    def _missing(self, rule: Rule) -> int:
        """How many of the fields of a rule do not stand on its line."""
        words = [match[0] for match in self._fields(rule)[:2]]
        return 0 if words == [rule.service, rule.argument] else 2

    def _fields(self, rule: Rule) -> list[re.Match[str]]:
        lines, number = self._lines(rule.location.file), rule.location.line or 0
        if not 0 < number <= len(lines):
            return []
        return list(_FIELD.finditer(lines[number - 1]))

    def _split(self, file: str) -> list[str]:
        text = self._files.get(file, "")
        return _BREAK.split(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
