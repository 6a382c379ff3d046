"""One file of the policy directory: its name, what a caller takes it for, and how it is changed.

Everything goes through descriptors of the directory and follows no symbolic link; whoever writes
holds the lock of `policy_lock`; a crash leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from caisson.errors import (
    InvalidPolicyPathError,
    PolicyAdminError,
    PolicyFileNotFoundError,
    PolicyTokenError,
)
from caisson.names import PolicyFileName, shown
from caisson.policy.load import SUFFIX
from caisson.store.policy_files import LARGEST_FILE

INCLUDES = "include"

_GROUP = "qubes"
_MODE = 0o664
_DIRECTORY_MODE = 0o2775
"""As `script/install` leaves it: what is made in it is the group's."""
_TOKEN = re.compile(r"any|new|sha256:[0-9a-f]{64}")
_LISTED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One file: a policy, or one that policies include.

    Args:
        name: its name, without suffix and directory.
        included: whether it lies in `include/`.
    """

    name: PolicyFileName
    included: bool

    @classmethod
    def parse(cls, untrusted: str, *, included: bool) -> Self:
        """The file of that name.

        Raises:
            InvalidPolicyNameError: files cannot have that name.
        """
        return cls(PolicyFileName.parse(untrusted), included)

    @property
    def basename(self) -> str:
        """Its name in its directory."""
        return self.name if self.included else f"{self.name}{SUFFIX}"

    @property
    def path(self) -> str:
        """Its path below the policy directory, as errors and rules name it."""
        return f"{INCLUDES}/{self.name}" if self.included else self.basename


@dataclass(frozen=True, slots=True)
class Token:
    """What a caller takes a file for: `any`, `new` (there is none), or `sha256:` and its hash."""

    text: str

    @classmethod
    def parse(cls, untrusted: str) -> Self:
        """The token of that text.

        Raises:
            PolicyTokenError: it is none.
        """
        if _TOKEN.fullmatch(untrusted) is None:
            raise PolicyTokenError(
                f"`{shown(untrusted)}` is not a token",
                hint="use `any`, `new`, or `sha256:` and the 64 digits of the file as it was read",
            )
        return cls(untrusted)

    @classmethod
    def of(cls, content: bytes | None) -> Self:
        """The token of a file with this content; None where there is none."""
        if content is None:
            return cls("new")
        return cls(f"sha256:{hashlib.sha256(content).hexdigest()}")

    def check(self, file: PolicyFile, content: bytes | None) -> None:
        """Make sure that the file is what the caller takes it for.

        Raises:
            PolicyTokenError: it is not.
        """
        if self.text == "any":
            return
        if self.text == "new":
            if content is not None:
                raise PolicyTokenError(f"`{file.path}` exists already", hint="read it first")
            return
        if content is None:
            raise PolicyTokenError(f"`{file.path}` does not exist any more")
        if self.text != Token.of(content).text:
            raise PolicyTokenError(
                f"`{file.path}` was changed since it was read",
                hint="read it again, and make the change on what is there now",
            )


@dataclass(frozen=True, slots=True)
class Changed:
    """What a file was and is, as tokens: `new` where there is none."""

    old: Token
    new: Token


class PolicyDirectory:
    """The policy directory, opened.

    Args:
        descriptor: of the directory; it stays the caller's to close.
    """

    def __init__(self, descriptor: int) -> None:
        self._top = descriptor

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        """The directory itself, which an administrator may have put elsewhere.

        Raises:
            PolicyAdminError: it cannot be opened.
        """
        try:
            descriptor = os.open(path, _DIRECTORY)
        except OSError as error:
            raise PolicyAdminError(
                f"the policy directory cannot be opened: {error.strerror}",
                hint="without it every call is denied; `script/install-policy` makes it",
            ) from None
        try:
            yield cls(descriptor)
        finally:
            os.close(descriptor)

    def names(self, *, included: bool) -> list[str]:
        """The names of all policies, or of all included files, sorted."""
        suffix = "" if included else SUFFIX
        with self._inside(included=included) as directory:
            found = [] if directory is None else os.listdir(directory)  # noqa: PTH208 - no path
            return sorted(
                name.removesuffix(suffix)
                for name in found
                if name.endswith(suffix) and _LISTED.fullmatch(name) and _is_file(directory, name)
            )

    def content(self, file: PolicyFile) -> bytes | None:
        """What a file holds; None where there is none.

        Raises:
            InvalidPolicyPathError: it is a link, or no file.
        """
        with self._inside(included=file.included) as directory:
            return None if directory is None else _content(directory, file)

    def put(self, file: PolicyFile, content: bytes | None) -> None:
        """Make a file hold this, or be gone; whatever happens, it is the old one or the new one.

        Raises:
            PolicyAdminError: it cannot be written.
        """
        try:
            if content is not None and file.included:
                self._make_includes()
            with self._inside(included=file.included) as directory:
                if directory is None:
                    raise missing(file)
                if content is None:
                    os.unlink(file.basename, dir_fd=directory)
                else:
                    _write(directory, file, content)
                os.fsync(directory)
        except OSError as error:
            raise PolicyAdminError(f"`{file.path}` cannot be changed: {error.strerror}") from None

    @contextmanager
    def _inside(self, *, included: bool) -> Iterator[int | None]:
        """The directory of policies or of included files; None where there is none."""
        if not included:
            yield self._top
            return
        try:
            descriptor = os.open(INCLUDES, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._top)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise InvalidPolicyPathError(
                f"`{INCLUDES}` is no directory of its own: {error.strerror}"
            ) from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_includes(self) -> None:
        try:
            os.mkdir(INCLUDES, dir_fd=self._top)
        except FileExistsError:
            return
        descriptor = os.open(INCLUDES, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._top)
        try:
            # Whatever the umask: the broker has to read it.
            _give_to_group(descriptor)
            os.fchmod(descriptor, _DIRECTORY_MODE)
        finally:
            os.close(descriptor)
        os.fsync(self._top)


def missing(file: PolicyFile) -> PolicyFileNotFoundError:
    """The error that says that there is no such file."""
    return PolicyFileNotFoundError(f"`{file.path}` does not exist")


def _is_file(directory: int | None, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=directory).st_mode)
    except OSError:
        return False


def _content(directory: int, file: PolicyFile) -> bytes | None:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(file.basename, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidPolicyPathError(
            f"`{file.path}` is no plain file: {error.strerror}",
            hint="links and devices are for an editor in the admin qube",
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidPolicyPathError(f"`{file.path}` is no plain file")
    with os.fdopen(descriptor, "rb") as opened:
        content = opened.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise PolicyAdminError(f"`{file.path}` is larger than {LARGEST_FILE} bytes")
    return content


def _write(directory: int, file: PolicyFile, content: bytes) -> None:
    # Without `.policy`: to a reader in between it is no policy, and no bad name for one.
    temporary = f"!{file.name}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            _give_to_group(descriptor)
            os.fchmod(descriptor, _MODE)
            os.fsync(descriptor)
        os.rename(temporary, file.basename, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _give_to_group(descriptor: int) -> None:
    """Administrators of the machine are in the group; elsewhere nobody but root is."""
    with contextlib.suppress(KeyError, PermissionError):
        os.fchown(descriptor, -1, grp.getgrnam(_GROUP).gr_gid)
