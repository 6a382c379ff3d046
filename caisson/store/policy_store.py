"""The policy files as a store: list, read, replace and remove them, none of it half.

What would keep the policy from loading is refused before anything is written.
Specification sheet `qrexec`, section 4.4.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from caisson.errors import (
    InvalidPolicyNameError,
    PolicyError,
    PolicyRequestError,
    PolicySyntaxError,
)
from caisson.names import shown
from caisson.paths import Paths
from caisson.policy import Files, PolicySet, parse_policy
from caisson.policy.load import SUFFIX, included_path
from caisson.policy.parse import referenced_paths
from caisson.store.policy_directory import (
    Changed,
    PolicyDirectory,
    PolicyFile,
    Token,
    missing,
)
from caisson.store.policy_files import (
    files_with,
    read_legacy_directory,
    read_policy_directory,
)
from caisson.store.policy_lock import changing_policy

LARGEST = 1024 * 1024
"""Bytes that a file may have which is written here: some 20,000 rules."""
LOCK_SECONDS = 5.0
"""How long a writer waits for another one."""

_IN_FORCE = re.compile(r"[a-z0-9_-]+")


class PolicyStore:
    """The policy files of an instance, `/etc/qubes/policy.d`.

    Every method may wait for the disk, and those that write for other writers: call them in a
    thread.

    Args:
        paths: the instance.
        lock_seconds: how long a writer waits for another one.
    """

    def __init__(self, paths: Paths, lock_seconds: float = LOCK_SECONDS) -> None:
        self._paths = paths
        self._over, self._base = paths.policy_dirs
        self._legacy = paths.legacy_policy
        self._lock_seconds = lock_seconds

    def names(self, *, included: bool) -> list[str]:
        """The names of all policies, or of all included files, sorted."""
        with PolicyDirectory.opened(self._base) as directory:
            return directory.names(included=included)

    def read(self, file: PolicyFile) -> bytes:
        """What a file holds.

        Raises:
            PolicyFileNotFoundError: it does not exist.
            InvalidPolicyPathError: it is no plain file.
        """
        with PolicyDirectory.opened(self._base) as directory:
            content = directory.content(file)
        if content is None:
            raise missing(file)
        return content

    def replace(self, file: PolicyFile, token: Token, content: bytes) -> Changed:
        """Put new content in the place of a file, or make it.

        Raises:
            PolicyAdminError: the class says why; nothing was changed.
        """
        if not file.included and _IN_FORCE.fullmatch(file.name) is None:
            raise InvalidPolicyNameError(
                f"a policy called `{file.name}` would deny every call of every qube",
                hint="use lower-case letters, digits, `_` and `-`",
            )

        def replaced(old: bytes | None) -> bytes:
            token.check(file, old)
            return content

        return self._change(file, replaced)

    def remove(self, file: PolicyFile, token: Token) -> Changed:
        """Remove a file.

        Raises:
            PolicyAdminError: the class says why; nothing was changed.
        """

        def removed(old: bytes | None) -> None:
            if old is None:
                raise missing(file)
            token.check(file, old)

        return self._change(file, removed)

    def edit(
        self, file: PolicyFile, change: Callable[[bytes | None, PolicySet], bytes | None]
    ) -> Changed:
        """Change a file by what is in it and by the rules of the whole policy.

        Args:
            file: which one.
            change: gets the content, None where there is no file, and the rules; gives the new
                content.

        Raises:
            PolicyAdminError: the class says why; nothing was changed.
        """
        return self._change(file, lambda old: change(old, self._in_force()))

    def is_hidden(self, file: PolicyFile) -> bool:
        """Whether a file of `/run` takes the place of a policy, so that it decides nothing."""
        return not file.included and (self._over / file.basename).is_file()

    def files_for(self, service: str) -> list[str]:
        """The names of the files that hold a rule for a service, in the order of the rules.

        Raises:
            PolicySyntaxError: the policy does not load.
        """
        rules = self._in_force().rules
        files = (rule.location.file for rule in rules if rule.service in {service, "*"})
        return list(dict.fromkeys(name.rpartition("/")[2].removesuffix(SUFFIX) for name in files))

    def _in_force(self) -> PolicySet:
        try:
            return self._parsed(None, self._files_over())
        except PolicyError as error:
            raise self._elsewhere(error) from None

    # The one way in which a file changes.

    def _change(self, file: PolicyFile, change: Callable[[bytes | None], bytes | None]) -> Changed:
        with (
            PolicyDirectory.opened(self._base) as directory,
            changing_policy(self._paths, self._lock_seconds),
        ):
            old = directory.content(file)
            new = change(old)
            if new != old:
                self._check(file, new)
                directory.put(file, new)
        return Changed(Token.of(old), Token.of(new))

    def _check(self, file: PolicyFile, content: bytes | None) -> None:
        """Refuse what would keep the policy from loading.

        Raises:
            PolicySyntaxError: with the place.
            PolicyRequestError: it is too long.
        """
        if content is not None and len(content) > LARGEST:
            raise PolicyRequestError(
                f"`{file.path}` would have {len(content)} bytes; {LARGEST} is the most",
                hint="split it, or use tags instead of names",
            )
        self._check_includes(file, content or b"")
        change = (self._base / file.path, content)
        try:
            self._parsed(change)
        except PolicyError as error:
            raise self._in(file, error) from None
        # What is broken under /run already cannot be mended here, and must not stand in the way.
        if self._loads_over():
            try:
                self._parsed(change, self._files_over())
            except PolicyError as error:
                # The file of that name may be another one, under /run.
                raise self._elsewhere(error) from None

    def _check_includes(self, file: PolicyFile, content: bytes) -> None:
        """Refuse to include what lies outside the directory, whether it exists or not.

        qubesd reads it as root: the broker might not, and errors would tell what it says.

        Raises:
            PolicySyntaxError: with the line.
        """
        directory = os.path.realpath(self._base)
        for number, line in enumerate(content.splitlines(), 1):
            for path in referenced_paths(line):
                real = Path(os.path.realpath(self._base / included_path(path)))
                if not real.is_relative_to(directory):
                    raise PolicySyntaxError(
                        f"{file.path}:{number}: `{shown(path)}` lies outside the policy directory",
                        hint="only an editor in the admin qube can include that",
                    )

    def _check_readable(self, names: Iterable[str], directory: Path, but: Path) -> None:
        """Refuse to include what the broker, which is in no group, cannot read.

        Args:
            names: of the files that were not read before.
            directory: where the names begin.
            but: the file that changes, and is made readable.

        Raises:
            PolicySyntaxError: with the file.
        """
        ends = {Path(os.path.realpath(each)) for each in (self._base, self._over, self._legacy)}
        for name in names:
            real = Path(os.path.realpath(directory / name))
            if real != Path(os.path.realpath(but)) and not _is_for_everybody(real, ends):
                raise PolicySyntaxError(
                    f"{self._told(name)} cannot be read by the broker",
                    hint="in the admin qube, let everybody read it: `chmod o+r`",
                )

    def _loads_over(self) -> bool:
        """Whether there are files under /run, and the policy as it is loads with them."""
        try:
            over = self._files_over()
            if over:
                self._parsed(None, over)
        except PolicyError:
            return False
        return bool(over)

    def _files_over(self) -> Files:
        """The files of /run, which need not be there."""
        return read_policy_directory(self._over) if self._over.is_dir() else {}

    def _parsed(
        self, change: tuple[Path, bytes | None] | None, over: Files | None = None
    ) -> PolicySet:
        """The policy as the files say it, with a change, and with other files over them."""

        def changed(files: Files, directory: Path) -> Files:
            if change is None:
                return files
            after = files_with(files, directory, *change)
            self._check_readable(after.keys() - files.keys(), directory, change[0])
            return after

        return parse_policy(
            changed(read_policy_directory(self._base), self._base),
            changed(over, self._over) if over else None,
            changed(read_legacy_directory(self._legacy), self._legacy),
        )

    # What may be told.

    def _in(self, file: PolicyFile, error: PolicyError) -> PolicySyntaxError:
        """The error as whoever changes this file may be told: in full where it is about that."""
        if error.file == file.path:
            return PolicySyntaxError(error.message, error.hint)
        told = self._elsewhere(error)
        told.hint = f"it was broken already, or needs `{file.path}` as it is"
        return told

    def _elsewhere(self, error: PolicyError) -> PolicySyntaxError:
        """The error without a word of what other files say, which is none of the caller's business.

        QSB-099: whoever may write one file must not read others by the errors that it provokes;
        a line and a column tell the length of lines.
        """
        return PolicySyntaxError(f"the policy does not load because of {self._told(error.file)}")

    def _told(self, name: str | None) -> str:
        """A file's name, if it is one of the policy directories."""
        path = Path(os.path.normpath(self._base / (name or "..")))
        directories = (self._base, self._over, self._legacy)
        inside = any(path.is_relative_to(directory) for directory in directories)
        return f"`{name}`" if inside else "another file"


def _is_for_everybody(real: Path, ends: Collection[Path]) -> bool:
    """Whether everybody may read a file, and pass the directories between it and one of `ends`."""
    needed = stat.S_IROTH
    for path in (real, *real.parents):
        if path in ends:
            break
        try:
            if not path.stat().st_mode & needed:
                return False
        except OSError:
            return False
        needed = stat.S_IXOTH
    return True
