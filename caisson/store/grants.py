"""The grants of an instance: one file, written by qubesd alone, read by whoever judges calls.

Times are those of the clock that counts from the kernel's start, suspend included: setting the
machine's clock neither extends nor ends a grant. The file names that start (`boot_id`), so it is
void after the next one, also where `/run` outlives it.
Trusts that only root can write there. A file that is not as qubesd writes it grants nothing.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from caisson.errors import CaissonError, StorageError
from caisson.names import shown
from caisson.paths import Paths
from caisson.policy import BrokenPolicy, PolicySet, Rule
from caisson.policy.grants import MOST_GRANTS, Grant, live, rules_of

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LARGEST = 1024 * 1024
_HINT = "nothing is granted by it; `caisson policy revoke --all` writes it anew"


class Clock(Protocol):
    """The time since the kernel started, and which start that was."""

    def now(self) -> int:
        """Nanoseconds since the start, suspend included."""
        ...

    def boot(self) -> str:
        """The id of this start.

        Raises:
            OSError: the kernel does not tell.
        """
        ...


class BootClock:
    """The kernel's own."""

    def now(self) -> int:
        """See `Clock`."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def boot(self) -> str:
        """See `Clock`."""
        return _BOOT_ID.read_text("ascii").strip()


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds; `grants` are in the order in which they were made."""

    boot: str
    grants: tuple[Grant, ...]


class GrantFile:
    """The file.

    Args:
        paths: the instance.
        clock: injected by tests.
    """

    def __init__(self, paths: Paths, clock: Clock | None = None) -> None:
        self.path = paths.grants
        self.clock: Clock = clock or BootClock()

    def read(self) -> tuple[Grant, ...]:
        """The grants that hold now, each checked; none if there is no file.

        Raises:
            StorageError: the file cannot be read, or is not as qubesd writes it.
        """
        try:
            text = self._text()
            if text is None:
                return ()
            content = msgspec.json.decode(text, type=_Content)
            if content.boot != self.clock.boot():
                return ()
            rules_of(content.grants)
        except (OSError, ValueError, RecursionError, msgspec.DecodeError, CaissonError) as error:
            raise self._malformed(shown(str(error).partition("\n")[0])) from None
        if len(content.grants) > MOST_GRANTS:
            raise self._malformed(f"it holds more than {MOST_GRANTS}")
        return live(content.grants, self.clock.now())

    def write(self, grants: Iterable[Grant]) -> None:
        """Replace all grants at once; who reads sees the old ones or the new ones.

        Raises:
            StorageError: they cannot be written; the old ones stay.
        """
        directory = self.path.parent
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            directory.chmod(0o755)  # the broker's user reads it, whatever the umask is
            content = msgspec.json.encode(_Content(self.clock.boot(), tuple(grants)))
            descriptor, fresh = tempfile.mkstemp(dir=directory, prefix=".")
            try:
                with open(descriptor, "wb") as file:  # noqa: PTH123 - by descriptor
                    file.write(content)
                    file.flush()
                    os.fchmod(descriptor, 0o644)
                    os.fsync(descriptor)
                os.replace(fresh, self.path)  # noqa: PTH105 - a name from `mkstemp`
            except BaseException:
                os.unlink(fresh)  # noqa: PTH108 - as above
                raise
        except OSError as error:
            raise StorageError(f"grants cannot be stored: {error.strerror}") from None

    def _text(self) -> bytes | None:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:  # noqa: PTH123 - O_NONBLOCK: a FIFO must not stop us
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("it is no regular file")
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        return text

    def _malformed(self, why: str) -> StorageError:
        return StorageError(f"the grants in `{self.path}` cannot be read: {why}", _HINT)


def preceded(policy: PolicySet | BrokenPolicy, rules: tuple[Rule, ...]) -> PolicySet | BrokenPolicy:
    """The policy with the rules of grants put first; a broken policy denies them too."""
    if isinstance(policy, BrokenPolicy) or not rules:
        return policy
    return policy.preceded_by(rules)
