"""The lock of an instance: whoever writes its state holds it, the daemon or an offline command."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from caisson.errors import DaemonError
from caisson.paths import Paths


@contextmanager
def only_one(paths: Paths) -> Iterator[None]:
    """Hold the instance's lock: two processes must never write one state.

    Raises:
        DaemonError: another process holds it.
    """
    paths.state.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(paths.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise DaemonError(
            f"another daemon serves `{paths.root}`",
            hint="stop it first: `caisson down`, or `systemctl stop qubesd`",
        ) from None
    try:
        yield
    finally:
        os.close(lock)
