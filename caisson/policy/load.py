"""Files to rules: which files count, in which order, and what they include.

Specification sheet `qrexec`, sections 3.1 and 3.2.
Pure: the files come as mappings of name to text; `caisson.store.policy_files` reads them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from caisson.errors import PolicyError
from caisson.names import shown
from caisson.policy.parse import (
    MOST_LINES,
    lines_of,
    too_many_lines,
)
from caisson.policy.rules import EVERY, Action, Rule, check_service
from caisson.policy.syntax import (
    Compatibility,
    Directive,
    Include,
    IncludeDirectory,
    IncludeService,
    Line,
    Location,
)
from caisson.policy.tokens import ADMINVM, ANYVM
from caisson.policy.visit import (
    MOST_RULES,
    Service,
    Trail,
    Visit,
    Visits,
    too_many_rules,
    visit,
)

Files = Mapping[str, str | bytes]
SUFFIX = ".policy"
# Bounds of what one policy may cost: a few include lines can ask for 2**n rules.
DEEPEST_INCLUDE = 64
MOST_INCLUDES = 10_000

_FILE_NAME = re.compile(r"[0-9a-z_.-]+")
_SERVICE_FILE = re.compile(r"([A-Za-z0-9._-]+)(\+[A-Za-z0-9._+-]*)?")
_NOT_SERVICE_FILES = (".rpmsave", ".rpmnew", ".swp")


class Source(msgspec.Struct, frozen=True):
    """Where the files of a policy come from: three directories, each as name → text.

    A name is relative to its directory (`30-user.policy`, `include/web`) or absolute.
    A name that ends in `/` says that this directory exists, for `!include-dir`.
    `over` (`/run/qubes/policy.d`) hides files of `files` (`/etc/qubes/policy.d`) by name.
    `legacy` is `/etc/qubes-rpc/policy`, for `!compat-4.0`.
    """

    files: Files
    over: Files = {}
    legacy: Files = {}


def load(source: Source, former: Visits) -> tuple[tuple[Rule, ...], Visits]:
    """All rules in the order in which they are tried, and what the files said.

    Args:
        source: the files.
        former: what the files of a former policy said.

    Raises:
        PolicyError: anything is wrong anywhere; with file, line and column.
    """
    loader = _Loader(former, _Directory("legacy", source.legacy))
    chosen: dict[str, _Directory] = {}
    for directory in (_Directory("files", source.files), _Directory("over", source.over)):
        chosen |= dict.fromkeys(directory.considered(), directory)
    for name in sorted(chosen):
        loader.policy_file(name, chosen[name])
    return tuple(loader.rules), loader.visits


def considered(files: Files, directory: str = "") -> list[str]:
    """The names of the policy files that stand directly in a directory, sorted.

    Raises:
        PolicyError: a name has characters that policy files may not have.
    """
    prefix = f"{directory}/" if directory else ""
    names = sorted(
        name
        for path in files
        if path.startswith(prefix)
        and "/" not in (name := path[len(prefix) :])
        and name.endswith(SUFFIX)
        and not name.startswith(".")
    )
    for name in names:
        if _FILE_NAME.fullmatch(name) is None:
            raise PolicyError(
                "the file name has a character that policy files may not have",
                "use lower-case letters, digits, `_`, `.` and `-`",
                file=shown(prefix + name),
            )
    return [prefix + name for name in names]


def service_file(name: str) -> re.Match[str] | None:
    """Service and argument of a legacy file; None where files of that name are ignored."""
    if name.startswith(".") or name.endswith(_NOT_SERVICE_FILES):
        return None
    return _SERVICE_FILE.fullmatch(name)


def included_path(path: str) -> str:
    """The key under which an included path stands in its mapping."""
    return posixpath.normpath(path)


class _Directory:
    """One directory of the source: its files, and what was found out about them."""

    def __init__(self, name: str, files: Files) -> None:
        self.name = name
        self.files = files
        self._lines: dict[str, list[str]] = {}
        self._considered: dict[str, list[str]] = {}
        self._exists: dict[str, bool] = {}

    def lines(self, path: str) -> list[str]:
        """The lines of a file, split once however often it is included."""
        if path not in self._lines:
            self._lines[path] = lines_of(path, self.files[path])
        return self._lines[path]

    def considered(self, directory: str = "") -> list[str]:
        """See the function of this name."""
        if directory not in self._considered:
            self._considered[directory] = considered(self.files, directory)
        return self._considered[directory]

    def exists(self, directory: str) -> bool:
        """Whether there is a directory of this name below this one."""
        if directory not in self._exists:
            prefix = f"{directory}/"
            self._exists[directory] = any(name.startswith(prefix) for name in self.files)
        return self._exists[directory]


@dataclass
class _Loader:
    former: Visits
    legacy: _Directory
    rules: list[Rule] = field(default_factory=list)
    visits: dict[tuple[str, str, Service | None], Visit] = field(default_factory=dict)
    includes: int = 0
    lines: int = 0

    def policy_file(
        self,
        path: str,
        files: _Directory,
        trail: Trail = (),
        open_files: tuple[str, ...] = (),
    ) -> None:
        """Add the rules of a file in the new format, and of what it includes."""
        inner = (*open_files, path)
        for directive in self._directives(path, files, trail, None):
            self._follow(directive, files, (*trail, directive.line.location), inner)

    def _follow(
        self,
        directive: Directive,
        files: _Directory,
        trail: Trail,
        open_files: tuple[str, ...],
    ) -> None:
        """Add the rules that a directive stands for."""
        match directive:
            case Include(line, path):
                name = self._enter(line, path, files, open_files)
                self.policy_file(name, files, trail, open_files)
            case IncludeDirectory(line, path):
                for name in self._directory(line, path, files, open_files):
                    self._count(line, open_files)
                    self.policy_file(name, files, trail, open_files)
            case IncludeService(line, service, argument, path):
                check_service(line, 1, service, argument)
                name = self._enter(line, path, files, open_files)
                self._service_file(name, files, (service, argument), trail, open_files)
            case Compatibility(line):
                self._compatibility(line, trail, open_files)

    def _service_file(
        self,
        path: str,
        files: _Directory,
        service: Service,
        trail: Trail,
        open_files: tuple[str, ...] = (),
    ) -> None:
        """Add the rules of a file of legacy lines, and of what it includes."""
        inner = (*open_files, path)
        for directive in self._directives(path, files, trail, service):
            assert isinstance(directive, Include)  # noqa: S101 - legacy lines know no other
            name = self._enter(directive.line, directive.path, files, inner)
            self._service_file(name, files, service, (*trail, directive.line.location), inner)

    def _directives(
        self, path: str, files: _Directory, trail: Trail, service: Service | None
    ) -> Iterator[Directive]:
        """Add the rules of a file, one after the other; yield the directives between them."""
        key = (files.name, path, service)
        former = self.visits.get(key) or self.former.get(key)
        text = files.files[path]
        lines = former.lines if former and former.text == text else files.lines(path)
        self._count_lines(path, len(lines) - 1)
        self.visits[key] = visit(path, text, lines, trail, service, former)
        for said in self.visits[key].said:
            if isinstance(said, Rule):
                if len(self.rules) >= MOST_RULES:
                    raise too_many_rules(said)
                self.rules.append(said)
            elif said is not None:
                yield said

    def _compatibility(self, line: Line, trail: Trail, open_files: tuple[str, ...]) -> None:
        """Add the rules of `/etc/qubes-rpc/policy`, one file a service and argument."""
        self._count(line, open_files)
        for service, argument, name in _service_files(self.legacy.files):
            self._count(line, open_files)
            self._service_file(name, self.legacy, (service, argument), trail)
            if argument != EVERY:
                self._deny_rest(service, argument, Location(name, None), trail)

    def _deny_rest(self, service: str, argument: str, location: Location, trail: Trail) -> None:
        """Add what a legacy file about one argument ends in."""
        for target in (ANYVM, ADMINVM):
            rule = Rule(service, argument, ANYVM, target, Action.DENY, location, notify=True)
            self.rules.append(rule.at(location, trail))

    def _count_lines(self, path: str, count: int) -> None:
        """Count the lines of a file, unless they are too many together with those before."""
        left = MOST_LINES - self.lines
        self.lines += count
        if count > left:
            raise too_many_lines(path, left + 1)

    def _enter(self, line: Line, path: str, files: _Directory, open_files: tuple[str, ...]) -> str:
        """The name of an included file, checked."""
        self._count(line, open_files)
        _check_path(line, path)
        name = included_path(path)
        last = len(line.fields) - 1
        if name not in files.files or name.endswith("/"):
            raise line.error(
                last,
                f"included file `{shown(path)}` does not exist, or cannot be read",
                "paths are relative to the policy directory, not to the including file",
            )
        if name in open_files:
            raise line.error(last, f"`{shown(path)}` includes itself")
        return name

    def _directory(
        self, line: Line, path: str, files: _Directory, open_files: tuple[str, ...]
    ) -> list[str]:
        self._count(line, open_files)
        _check_path(line, path)
        directory = included_path(path)
        if not files.exists(directory):
            raise line.error(
                1, f"included directory `{shown(path)}` does not exist, or cannot be read"
            )
        names = files.considered(directory)
        for name in names:
            if name in open_files:
                raise line.error(1, f"`{shown(name)}` includes itself")
        return names

    def _count(self, line: Line, open_files: tuple[str, ...]) -> None:
        self.includes += 1
        if self.includes > MOST_INCLUDES:
            raise line.error(0, f"the policy includes more than {MOST_INCLUDES} files")
        if len(open_files) > DEEPEST_INCLUDE:
            raise line.error(0, f"includes are nested deeper than {DEEPEST_INCLUDE}")


def _check_path(line: Line, path: str) -> None:
    """Refuse what a place could not be told with: it goes to logs and terminals."""
    if not path.isprintable():
        raise line.error(
            len(line.fields) - 1, f"`{shown(path)}` has a character that cannot be printed"
        )


def _service_files(legacy: Files) -> Iterator[tuple[str, str, str]]:
    """Service, argument and name of the files that speak about a service, in their order."""
    found = []
    for name in legacy:
        if match := service_file(name):
            service, argument = match.groups()
            # The file without an argument speaks last: `+…` sorts before the marker.
            found.append((service, argument or "~", name))
    for service, order, name in sorted(found):
        yield service, EVERY if order == "~" else order, name
