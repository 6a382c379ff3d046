"""What the lines of a file say, and what of it is still so when the file has changed.

The text of a line decides what it says; only its place is its own. So a file that was loaded
before is compared with what it is now: the lines at its begin and end that are the same keep
what they said, and only those between them are parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from caisson.errors import PolicyError
from caisson.policy.parse import parse_line, parse_service_line
from caisson.policy.rules import Rule, check_rule
from caisson.policy.syntax import Directive, Location, RuleLine

MOST_RULES = 250_000
"""As many as one policy may have."""

Trail = tuple[Location, ...]
"""The directives that led to a file, the outermost first."""

Service = tuple[str, str]
"""The service and argument that a file of legacy lines speaks about."""

Said = Rule | Directive | None
"""What one line says; None: nothing."""


class Visit(msgspec.Struct, frozen=True):
    """The text of a file, its lines, what each of them says, and how the file was reached."""

    text: str | bytes
    lines: list[str]
    said: list[Said]
    trail: Trail


Visits = Mapping[tuple[str, str, Service | None], Visit]
"""By directory, path, and service of legacy lines: the latest visit of a file."""


def visit(
    path: str,
    text: str | bytes,
    lines: list[str],
    trail: Trail,
    service: Service | None,
    former: Visit | None,
) -> Visit:
    """Find out what the lines of a file say.

    Args:
        path: the file.
        text: what it holds.
        lines: the same, in lines.
        trail: how it was reached.
        service: what it speaks about, if its lines are legacy lines.
        former: a visit of the same file for the same service, with any text.

    Raises:
        PolicyError: with file, line and column.
    """
    if former is None:
        return Visit(text, lines, list(_parsed(path, lines, 0, trail, service)), trail)
    if lines is former.lines and trail == former.trail:
        return former
    head = _common(lines, former.lines)
    tail = _common(reversed(lines[head:]), reversed(former.lines[head:]))
    end, former_end = len(lines) - tail, len(former.lines) - tail
    first, last = former.said[:head], former.said[former_end:]
    if trail != former.trail:
        first = _placed(first, path, 0, trail)
    between = list(_parsed(path, lines[head:end], head, trail, service))
    if trail != former.trail or end != former_end:
        last = _placed(last, path, end, trail)
    return Visit(text, lines, first + between + last, trail)


def _common(lines: Iterable[str], others: Iterable[str]) -> int:
    """How many lines are the same before the first that differs."""
    count = 0
    for line, other in zip(lines, others, strict=False):
        if line != other:
            break
        count += 1
    return count


def _placed(said: list[Said], path: str, before: int, trail: Trail) -> list[Said]:
    """The same, said by the lines of a file that follow so many others."""
    return [
        line.at(Location(path, number), trail)
        if isinstance(line, Rule)
        else line and line.at(Location(path, number))
        for number, line in enumerate(said, before + 1)
    ]


def _parsed(
    path: str, lines: list[str], before: int, trail: Trail, service: Service | None
) -> Iterator[Said]:
    """What the lines of a file that follow so many others say."""
    rules = 0
    for number, raw in enumerate(lines, before + 1):
        location = Location(path, number)
        statement = (
            parse_line(location, raw)
            if service is None
            else parse_service_line(location, raw, *service)
        )
        if not isinstance(statement, RuleLine):
            yield statement
            continue
        rule = check_rule(statement, trail)
        rules += 1
        if rules > MOST_RULES:
            raise too_many_rules(rule)
        yield rule


def too_many_rules(rule: Rule) -> PolicyError:
    """The error about the first rule that is one too many."""
    return PolicyError(
        f"the policy has more than {MOST_RULES} rules",
        "use tags instead of names, and fewer includes",
        file=rule.location.file,
        line=rule.location.line,
        column=1,
    )
