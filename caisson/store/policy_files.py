"""Read the policy directories for `caisson.policy.parse_policy`.

Trusts that only administrators can write there; the text itself is judged by the policy room.
Specification sheet `qrexec`, sections 3.1 and 3.2.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from caisson.errors import PolicyError
from caisson.paths import Paths
from caisson.policy import BrokenPolicy, PolicySet, parse_policy
from caisson.policy.load import SUFFIX, Files, included_path
from caisson.policy.parse import referenced_paths

# A policy is text that people write; more than this is a mistake, or a device that never ends.
LARGEST_FILE = 64 * 1024 * 1024


def load_policy(paths: Paths) -> PolicySet | BrokenPolicy:
    """Read and parse the policy of an instance; what is broken denies every call."""
    run, etc = paths.policy_dirs
    try:
        return parse_policy(
            read_policy_directory(etc),
            over=read_policy_directory(run),
            legacy=read_legacy_directory(paths.root / "etc/qubes-rpc/policy"),
        )
    except PolicyError as e:
        return BrokenPolicy(e)


def read_policy_directory(directory: Path) -> Files:
    """The policy files of a directory and all that they include, name → bytes.

    Raises:
        PolicyError: the directory or a file in it cannot be read.
    """
    files: dict[str, str | bytes] = {}
    for name in _names(directory):
        if name.endswith(SUFFIX) and not name.startswith("."):
            _read_into(files, directory, name)
    _read_included(files, directory)
    return files


def read_policy_file(path: Path) -> Files:
    """One policy file and all that it includes, as if it were alone in its directory.

    A file of another name is read as one that ends in `.policy`.

    Raises:
        PolicyError: the file, or one that it includes, cannot be read.
    """
    files: dict[str, str | bytes] = {}
    if not _read_into(files, path.parent, path.name):
        raise PolicyError("there is no such policy file", file=str(path))
    if not path.name.endswith(SUFFIX):
        files = {path.name + SUFFIX: files[path.name]}
    _read_included(files, path.parent)
    return files


def read_legacy_directory(directory: Path) -> Files:
    """The files of `/etc/qubes-rpc/policy` and all that they include; none if it is absent.

    Raises:
        PolicyError: a file cannot be read.
    """
    files: dict[str, str | bytes] = {}
    if not directory.is_dir():
        return files
    for name in _names(directory):
        _read_into(files, directory, name)
    _read_included(files, directory)
    return files


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError as e:
        raise PolicyError(
            f"policy directory cannot be read: {e.strerror}",
            hint="without it every call is denied; create it, or mend its permissions",
            file=str(directory),
        ) from None


def _read_included(files: dict[str, str | bytes], directory: Path) -> None:
    waiting = list(files.values())
    while waiting:
        for path in referenced_paths(waiting.pop()):
            waiting += [files[name] for name in _fetch(files, directory, path)]


def _fetch(files: dict[str, str | bytes], directory: Path, path: str) -> Iterator[str]:
    """Read what an include names, if it is there and new; yield the names of new files."""
    key = included_path(path)
    found = directory / key
    if not found.is_dir():
        if key not in files and _read_into(files, directory, key):
            yield key
        return
    if f"{key}/" in files:
        return
    files[f"{key}/"] = b""
    for name in _names(found):
        inner = f"{key}/{name}"
        wanted = inner.endswith(SUFFIX) and inner not in files
        if wanted and _read_into(files, directory, inner):
            yield inner


def _read_into(files: dict[str, str | bytes], directory: Path, name: str) -> bool:
    """Add a file if it is a regular one; symbolic links are followed."""
    path = directory / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # O_NONBLOCK: a FIFO must not stop us
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return False
            text = file.read(LARGEST_FILE + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    except (OSError, ValueError) as e:
        raise PolicyError(f"policy file cannot be read: {e}", file=str(path)) from None
    if len(text) > LARGEST_FILE:
        raise PolicyError(f"policy file is larger than {LARGEST_FILE} bytes", file=str(path))
    files[name] = text
    return True
