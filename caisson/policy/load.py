"""Files to rules: which files count, in which order, and what they include.

Specification sheet `qrexec`, sections 3.1 and 3.2.
Pure: the files come as mappings of name to text; `caisson.store.policy_files` reads them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from caisson.errors import PolicyError
from caisson.names import shown
from caisson.policy.parse import parse_service_text, parse_text
from caisson.policy.rules import EVERY, Action, Rule, check_rule, check_service
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
from caisson.policy.tokens import ADMINVM, ANYVM

Files = Mapping[str, str | bytes]

SUFFIX = ".policy"
# Bounds of what one policy may cost: a few include lines can ask for 2**n rules.
DEEPEST_INCLUDE = 64
MOST_INCLUDES = 10_000
MOST_RULES = 250_000

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


def load(source: Source) -> tuple[Rule, ...]:
    """Return all rules in the order in which they are tried.

    Raises:
        PolicyError: anything is wrong anywhere; with file, line and column.
    """
    loader = _Loader(source)
    chosen = dict.fromkeys(considered(source.files), source.files)
    chosen |= dict.fromkeys(considered(source.over), source.over)
    for name in sorted(chosen):
        loader.policy_file(name, chosen[name])
    return tuple(loader.rules)


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


def included_path(path: str) -> str:
    """The key under which an included path stands in its mapping."""
    return posixpath.normpath(path)


@dataclass
class _Loader:
    source: Source
    rules: list[Rule] = field(default_factory=list)
    includes: int = 0

    def policy_file(
        self,
        path: str,
        files: Files,
        trail: tuple[Location, ...] = (),
        open_files: tuple[str, ...] = (),
    ) -> None:
        """Add the rules of a file in the new format, and of what it includes."""
        for statement in parse_text(path, files[path]):
            match statement:
                case RuleLine():
                    self._add(check_rule(statement, trail))
                case Include(line):
                    name = self._enter(line, statement.path, files, open_files)
                    self.policy_file(name, files, (*trail, line.location), (*open_files, path))
                case IncludeDirectory(line):
                    for name in self._directory(line, statement.path, files, open_files):
                        self._count(line, open_files)
                        self.policy_file(name, files, (*trail, line.location), (*open_files, path))
                case IncludeService(line, service, argument):
                    check_service(line, 1, service, argument)
                    name = self._enter(line, statement.path, files, open_files)
                    self._service_file(
                        name,
                        files,
                        (service, argument),
                        (*trail, line.location),
                        (*open_files, path),
                    )
                case Compatibility(line):
                    self._compatibility((*trail, line.location))

    def _service_file(
        self,
        path: str,
        files: Files,
        service: tuple[str, str],
        trail: tuple[Location, ...],
        open_files: tuple[str, ...],
    ) -> None:
        """Add the rules of a file of legacy lines, and of what it includes."""
        statements: Iterable[Statement] = parse_service_text(path, files[path], *service)
        for statement in statements:
            match statement:
                case RuleLine():
                    self._add(check_rule(statement, trail))
                case Include(line):
                    name = self._enter(line, statement.path, files, open_files)
                    self._service_file(
                        name, files, service, (*trail, line.location), (*open_files, path)
                    )

    def _compatibility(self, trail: tuple[Location, ...]) -> None:
        """Add the rules of `/etc/qubes-rpc/policy`, one file a service and argument."""
        found = []
        for name in self.source.legacy:
            match = _SERVICE_FILE.fullmatch(name)
            if match and not name.startswith(".") and not name.endswith(_NOT_SERVICE_FILES):
                service, argument = match.groups()
                # The file without an argument speaks last: `+…` sorts before the marker.
                found.append((service, argument or "~", name))
        for service, order, name in sorted(found):
            argument = EVERY if order == "~" else order
            self._service_file(name, self.source.legacy, (service, argument), trail, ())
            if argument != EVERY:
                for target in (ANYVM, ADMINVM):
                    self._add(
                        Rule(
                            service,
                            argument,
                            ANYVM,
                            target,
                            Action.DENY,
                            Location(name, None),
                            notify=True,
                            included_from=trail,
                        )
                    )

    def _add(self, rule: Rule) -> None:
        if len(self.rules) >= MOST_RULES:
            raise PolicyError(
                f"the policy has more than {MOST_RULES} rules",
                "use tags instead of names, and fewer includes",
                file=rule.location.file,
                line=rule.location.line,
                column=1,
            )
        self.rules.append(rule)

    def _enter(self, line: Line, path: str, files: Files, open_files: tuple[str, ...]) -> str:
        """The name of an included file, checked."""
        self._count(line, open_files)
        name = included_path(path)
        last = len(line.fields) - 1
        if name not in files:
            raise line.error(
                last,
                f"included file `{shown(path)}` does not exist",
                "paths are relative to the policy directory, not to the including file",
            )
        if name in open_files or name == line.location.file:
            raise line.error(last, f"`{shown(path)}` includes itself")
        return name

    def _directory(
        self, line: Line, path: str, files: Files, open_files: tuple[str, ...]
    ) -> list[str]:
        directory = included_path(path)
        names = considered(files, directory)
        if not names and not any(name.startswith(f"{directory}/") for name in files):
            raise line.error(1, f"included directory `{shown(path)}` does not exist")
        for name in names:
            if name in open_files or name == line.location.file:
                raise line.error(1, f"`{shown(name)}` includes itself")
        return names

    def _count(self, line: Line, open_files: tuple[str, ...]) -> None:
        self.includes += 1
        if self.includes > MOST_INCLUDES:
            raise line.error(0, f"the policy includes more than {MOST_INCLUDES} files")
        if len(open_files) >= DEEPEST_INCLUDE:
            raise line.error(0, f"includes are nested deeper than {DEEPEST_INCLUDE}")
