"""Include lines that bring nothing."""

from __future__ import annotations

from collections.abc import Iterator

from caisson.errors import PolicyError
from caisson.names import shown
from caisson.policy.analysis.findings import Finding
from caisson.policy.load import SUFFIX, Files, included_path
from caisson.policy.parse import parse_text
from caisson.policy.syntax import Include, IncludeDirectory, IncludeService, Line


def empty_includes(files: Files) -> list[Finding]:
    """The include lines whose files are empty; a file of comments is empty on purpose."""
    return [
        Finding(
            line.location.file,
            line.location.line or 1,
            line.column(len(line.fields) - 1),
            "empty-include",
            f"`{shown(path)}` is empty",
            "take the line out, or say in the file why nothing is in it",
        )
        for line, path in _included(files)
        if _is_empty(files, included_path(path))
    ]


def _included(files: Files) -> Iterator[tuple[Line, str]]:
    for name in files:
        if not name.endswith(SUFFIX):
            continue
        try:
            statements = parse_text(name, files[name])
        except PolicyError:
            continue
        for statement in statements:
            if isinstance(statement, Include | IncludeService | IncludeDirectory):
                yield statement.line, statement.path


def _is_empty(files: Files, path: str) -> bool:
    if path in files:
        return not files[path].strip()
    inside = [name for name in files if name.startswith(f"{path}/") and name.endswith(SUFFIX)]
    return f"{path}/" in files and not inside
