"""The lock of whoever changes policy files: qubesd, and root's `qrexec-legacy-convert`."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from caisson.errors import PolicyAdminError
from caisson.paths import Paths

_PAUSE = 0.02
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def changing_policy(paths: Paths, seconds: float = 0.0) -> Iterator[None]:
    """Keep other writers out, of this process and of others.

    A file that only root can open is locked: a lock on the directory could be held by everybody
    who may read it.
    Upstream's tools lock the directory; none of them writes here, and only ours are kept apart.

    Args:
        paths: the instance.
        seconds: how long to wait for another writer.

    Raises:
        PolicyAdminError: another one did not end within `seconds`, or this is not root.
    """
    descriptor = _opened(paths)
    try:
        _lock(descriptor, time.monotonic() + seconds)
        yield
    finally:
        os.close(descriptor)


def _opened(paths: Paths) -> int:
    try:
        paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(paths.policy_lock, _FLAGS, 0o600)
    except OSError as error:
        raise PolicyAdminError(
            f"`{paths.policy_lock}` cannot be opened: {error.strerror}",
            hint="only root changes policy with it",
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        os.close(descriptor)
        raise PolicyAdminError(
            f"`{paths.policy_lock}` is not as it is made here: others could hold it for ever",
            hint="remove it",
        )
    return descriptor


def _lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise PolicyAdminError(
                    "somebody else is changing the policy", hint="try again"
                ) from None
            time.sleep(_PAUSE)
        else:
            return
