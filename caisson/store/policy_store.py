"""The policy files as a store: list, read, replace and remove them, none of it half.

What would keep the policy from loading is refused before anything is written. Names are checked
types; no symbolic link is followed; whoever writes holds a lock on the directory, and a crash
leaves the old file or the new one. Specification sheet `qrexec`, section 4.4.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import hmac
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from caisson.errors import (
    InvalidPolicyNameError,
    InvalidPolicyPathError,
    PolicyAdminError,
    PolicyError,
    PolicyFileNotFoundError,
    PolicyRequestError,
    PolicySyntaxError,
    PolicyTokenError,
)
from caisson.names import PolicyFileName, shown
from caisson.paths import Paths
from caisson.policy import Files, PolicySet, parse_policy
from caisson.policy.load import SUFFIX
from caisson.store.policy_files import (
    LARGEST_FILE,
    files_with,
    read_legacy_directory,
    read_policy_directory,
)

LARGEST = 1024 * 1024
"""Bytes that a file may have which is written here: some 20,000 rules."""
INCLUDES = "include"
LOCK_SECONDS = 5.0
"""How long a writer waits for another one."""

_PAUSE = 0.02
_GROUP = "qubes"
_MODE = 0o664
_DIRECTORY_MODE = 0o775
_TOKEN = re.compile(r"any|new|sha256:[0-9a-f]{64}")
_LISTED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_IN_FORCE = re.compile(r"[a-z0-9_-]+")
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
    def of(cls, content: bytes) -> Self:
        """The token of a file with this content."""
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
        if not hmac.compare_digest(self.text, Token.of(content).text):
            raise PolicyTokenError(
                f"`{file.path}` was changed since it was read",
                hint="read it again, and make the change on what is there now",
            )


NEW = Token("new")


@dataclass(frozen=True, slots=True)
class Changed:
    """What a file was and is, as tokens: `new` where there is none."""

    old: Token
    new: Token


class PolicyStore:
    """The policy files of an instance, `/etc/qubes/policy.d`.

    Every method may wait for the disk, and those that write for other writers: call them in a
    thread.

    Args:
        paths: the instance.
        lock_seconds: how long a writer waits for another one.
    """

    def __init__(self, paths: Paths, lock_seconds: float = LOCK_SECONDS) -> None:
        self._over, self._base = paths.policy_dirs
        self._legacy = paths.root / "etc/qubes-rpc/policy"
        self._lock_seconds = lock_seconds

    def names(self, *, included: bool) -> list[str]:
        """The names of all policies, or of all included files, sorted."""
        suffix = "" if included else SUFFIX
        with self._top() as top, _inside(top, included=included) as directory:
            found = [] if directory is None else os.listdir(directory)  # noqa: PTH208 - a descriptor
            return sorted(
                name.removesuffix(suffix)
                for name in found
                if name.endswith(suffix) and _LISTED.fullmatch(name) and _is_file(directory, name)
            )

    def read(self, file: PolicyFile) -> bytes:
        """What a file holds.

        Raises:
            PolicyFileNotFoundError: it does not exist.
            InvalidPolicyPathError: it is no plain file.
        """
        with self._top() as top, _inside(top, included=file.included) as directory:
            content = _content(directory, file)
        if content is None:
            raise _missing(file)
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
                raise _missing(file)
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
            raise _reticent(error, None) from None

    # The one way in which a file changes.

    def _change(self, file: PolicyFile, change: Callable[[bytes | None], bytes | None]) -> Changed:
        with self._top() as top, self._locked(top):
            with _inside(top, included=file.included) as directory:
                old = _content(directory, file)
            new = change(old)
            if new != old:
                self._check(file, new)
                _put(top, file, new)
        return Changed(_token(old), _token(new))

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
        change = (self._base / file.path, content)
        try:
            self._parsed(change)
        except PolicyError as error:
            raise _reticent(error, file) from None
        # What is broken under /run already cannot be mended here, and must not stand in the way.
        if self._loads_over():
            try:
                self._parsed(change, self._files_over())
            except PolicyError as error:
                raise _reticent(error, file) from None

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
            return files if change is None else files_with(files, directory, *change)

        return parse_policy(
            changed(read_policy_directory(self._base), self._base),
            changed(over, self._over) if over else None,
            changed(read_legacy_directory(self._legacy), self._legacy),
        )

    @contextmanager
    def _top(self) -> Iterator[int]:
        """The policy directory itself, which an administrator may have put elsewhere."""
        try:
            descriptor = os.open(self._base, _DIRECTORY)
        except OSError as error:
            raise PolicyAdminError(
                f"the policy directory cannot be opened: {error.strerror}",
                hint="without it every call is denied; `script/install-policy` makes it",
            ) from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self, top: int) -> Iterator[None]:
        """Keep other writers out, of this process and of others."""
        deadline = time.monotonic() + self._lock_seconds
        while True:
            try:
                fcntl.flock(top, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PolicyAdminError(
                        "somebody else is changing the policy", hint="try again"
                    ) from None
                time.sleep(_PAUSE)
            else:
                break
        try:
            yield
        finally:
            fcntl.flock(top, fcntl.LOCK_UN)


def _token(content: bytes | None) -> Token:
    return NEW if content is None else Token.of(content)


def _missing(file: PolicyFile) -> PolicyFileNotFoundError:
    return PolicyFileNotFoundError(f"`{file.path}` does not exist")


def _reticent(error: PolicyError, file: PolicyFile | None) -> PolicySyntaxError:
    """The error as its caller may be told: what other files say is none of its business.

    QSB-099: whoever may write one file must not read others by the errors that it provokes.
    """
    if file is not None and error.file == file.path:
        return PolicySyntaxError(error.message, error.hint)
    place = ":".join(str(part) for part in (error.file, error.line, error.column) if part)
    if file is None:
        return PolicySyntaxError(f"the policy is broken at `{place}`")
    return PolicySyntaxError(
        f"the policy would not load at `{place}`",
        hint=f"it was broken already, or needs `{file.path}` as it is",
    )


@contextmanager
def _inside(top: int, *, included: bool) -> Iterator[int | None]:
    """The directory of policies or of included files; None where there is none."""
    if not included:
        yield top
        return
    try:
        descriptor = os.open(INCLUDES, _DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
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


def _is_file(directory: int | None, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=directory).st_mode)
    except OSError:
        return False


def _content(directory: int | None, file: PolicyFile) -> bytes | None:
    """What a file holds; None where there is none.

    Raises:
        InvalidPolicyPathError: it is a link, or no file.
    """
    if directory is None:
        return None
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
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidPolicyPathError(f"`{file.path}` is no plain file")
        content = opened.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise PolicyAdminError(f"`{file.path}` is larger than {LARGEST_FILE} bytes")
    return content


def _put(top: int, file: PolicyFile, content: bytes | None) -> None:
    """Make the change last; whatever happens, the file is the old one or the new one."""
    try:
        if content is not None and file.included:
            _make_includes(top)
        with _inside(top, included=file.included) as directory:
            if directory is None:
                raise _missing(file)
            if content is None:
                os.unlink(file.basename, dir_fd=directory)
            else:
                _write(directory, file, content)
            os.fsync(directory)
    except OSError as error:
        raise PolicyAdminError(f"`{file.path}` cannot be changed: {error.strerror}") from None


def _make_includes(top: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(INCLUDES, _DIRECTORY_MODE, dir_fd=top)
        os.fsync(top)


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
