"""Read the policy directories for `caisson.policy.parse_policy`.

Trusts that only administrators can write there; the text itself is judged by the policy room.
Specification sheet `qrexec`, sections 3.1 and 3.2.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from caisson.errors import PolicyError, StorageError
from caisson.names import shown
from caisson.paths import Paths
from caisson.policy import BrokenPolicy, PolicySet, parse_policy
from caisson.policy.grants import rules_of
from caisson.policy.load import SUFFIX, Files, included_path, service_file
from caisson.policy.parse import referenced_paths
from caisson.store.grants import GrantFile, preceded

# A policy is text that people write; more than this is a mistake, or a file that never ends.
LARGEST_FILE = 64 * 1024 * 1024
LARGEST_POLICY = 2 * LARGEST_FILE
MOST_PATHS = 20_000


def load_policy(paths: Paths) -> PolicySet | BrokenPolicy:
    """Read and parse the policy of an instance, with its grants as they are at this moment.

    What is broken denies every call.
    """
    run, etc = paths.policy_dirs
    try:
        policy = parse_policy(
            read_policy_directory(etc),
            over=read_policy_directory(run),
            legacy=read_legacy_directory(paths.legacy_policy),
        )
    except PolicyError as e:
        return BrokenPolicy(e)
    try:
        granted = rules_of(GrantFile(paths).read())
    except StorageError:
        granted = ()  # as the broker takes it, which also says so
    return preceded(policy, granted)


def read_policy_directory(directory: Path, looked_at: dict[str, bool] | None = None) -> Files:
    """The policy files of a directory and all that they include, name → bytes.

    Args:
        directory: where they are.
        looked_at: gets every path that the result depends on, and whether something was there.

    Raises:
        PolicyError: the directory or a file in it cannot be read, or there is too much of it.
    """
    reading = _Reading(directory, looked_at)
    for name in reading.names():
        if _is_policy(name):
            reading.add(name)
    return reading.with_included()


def read_policy_file(path: Path) -> Files:
    """One policy file and all that it includes, as if it were alone in its directory.

    A file of another name is read as one that ends in `.policy`.

    Raises:
        PolicyError: the file, or one that it includes, cannot be read.
    """
    reading = _Reading(path.parent)
    if not reading.add(path.name):
        raise PolicyError("there is no such policy file", file=str(path))
    files = dict(reading.with_included())
    if not path.name.endswith(SUFFIX):
        files[path.name + SUFFIX] = files.pop(path.name)
    return files


def read_legacy_directory(directory: Path, looked_at: dict[str, bool] | None = None) -> Files:
    """The files of `/etc/qubes-rpc/policy` and all that they include; none if it is absent.

    Args and Raises: as `read_policy_directory`.
    """
    reading = _Reading(directory, looked_at)
    if not reading.exists():
        return {}
    for name in reading.names():
        if service_file(name):
            reading.add(name)
    return reading.with_included()


def files_with(files: Files, directory: Path, path: Path, content: bytes | None) -> Files:
    """The files of a directory as they would be if one of them, or one they include, changed.

    Args:
        files: what was read from the directory.
        directory: where that was.
        path: the file that changes; it need not exist.
        content: what it would hold; None where it would be gone.

    Raises:
        PolicyError: what the new content includes cannot be read, or is too much.
    """
    real = os.path.realpath(path)

    def is_it(name: str) -> bool:
        return not name.endswith("/") and os.path.realpath(directory / name) == real

    changed = {name: text for name, text in files.items() if not is_it(name)}
    if content is not None:
        # By whatever way it is included, and by the way that a new file would be.
        changed |= dict.fromkeys(filter(is_it, files), content)
        if path.is_relative_to(directory):
            changed[str(path.relative_to(directory))] = content
    changed = dict(_Reading(directory, files=changed).with_included())
    if content is None:
        return {name: text for name, text in changed.items() if not is_it(name)}
    return changed


def _is_policy(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


class _Reading:
    """The files of one directory while they are read."""

    def __init__(
        self,
        directory: Path,
        looked_at: dict[str, bool] | None = None,
        files: Files | None = None,
    ) -> None:
        self._directory = directory
        self._looked_at = {} if looked_at is None else looked_at
        self._files = dict(files or {})
        self._size = 0
        self._looks = 0
        self._looked_at[str(directory)] = False

    def exists(self) -> bool:
        """Whether the directory is there; one that cannot be seen is."""
        try:
            self._directory.stat()
        except OSError as e:
            return not isinstance(e, FileNotFoundError | NotADirectoryError)
        return True

    def names(self) -> list[str]:
        """What stands in the directory."""
        try:
            return self._list(self._directory)
        except OSError as e:
            raise PolicyError(
                f"policy directory cannot be read: {e.strerror}",
                hint="without it every call is denied; create it, or mend its permissions",
                file=str(self._directory),
            ) from None

    def add(self, name: str) -> bool:
        """Read a file that a directory lists; whether there is something to read.

        Raises:
            PolicyError: it cannot be read, or is too much.
        """
        try:
            found = self._read(name)
            lost = not found and name not in self._files and (self._directory / name).is_symlink()
        except OSError as e:
            raise self._error(name, f"policy file cannot be read: {e.strerror}") from None
        if lost:
            # What it should lead to could be what denies. What is itself no file is no policy.
            raise self._error(
                name, "policy file cannot be read: it is a link that leads to no file"
            )
        return found

    def with_included(self) -> Files:
        """All files, and what they include.

        An included file that cannot be read is left out: the parser knows the line that asks
        for it, and says so.
        """
        waiting = list(self._files)
        asked: set[str] = set()
        while waiting:
            for path in referenced_paths(self._files[waiting.pop()]):
                key = included_path(path)
                if key not in asked:
                    asked.add(key)
                    waiting += self._include(key)
        return self._files

    def _include(self, key: str) -> list[str]:
        """Read what an include names, if it is new; the names of new files."""
        try:
            names = self._list(self._look_at(key))
        except NotADirectoryError:
            pass
        except (OSError, ValueError):
            return []
        else:
            self._files[f"{key}/"] = b""
            inner = [f"{key}/{name}" for name in names if _is_policy(name)]
            # One that cannot be read may not be passed over: it could be the one that denies.
            return [name for name in inner if self.add(name)]
        try:
            return [key] if self._read(key) else []
        except (OSError, ValueError):
            return []

    def _read(self, name: str) -> bool:
        """Read a file if it is new and a regular one; symbolic links are followed."""
        if name in self._files:
            return False
        path = self._look_at(name)
        try:
            # Some devices do something when they are opened.
            if not stat.S_ISREG(path.stat().st_mode):
                return False
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with open(descriptor, "rb") as file:  # noqa: PTH123
            # A file of /proc may have nothing to say at the moment, which is None.
            text = file.read(LARGEST_FILE + 1) or b""
        self._looked_at[str(path)] = True
        self._size += len(text)
        if len(text) > LARGEST_FILE or self._size > LARGEST_POLICY:
            most = LARGEST_FILE if len(text) > LARGEST_FILE else LARGEST_POLICY
            whole = "file is" if len(text) > LARGEST_FILE else "files together are"
            raise self._error(name, f"policy {whole} larger than {most} bytes")
        self._files[name] = text
        return True

    def _look_at(self, name: str) -> Path:
        self._looks += 1
        if self._looks > MOST_PATHS:
            raise self._error(name, f"the policy consists of more than {MOST_PATHS} files")
        path = self._directory / name
        self._looked_at.setdefault(str(path), False)
        return path

    def _list(self, directory: Path) -> list[str]:
        names = [path.name for path in directory.iterdir()]
        self._looked_at[str(directory)] = True
        return names

    def _error(self, name: str, message: str) -> PolicyError:
        return PolicyError(message, file=f"{self._directory}/{shown(name)}")
