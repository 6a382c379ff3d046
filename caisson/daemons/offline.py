"""What is done to an instance while no daemon serves it, under the daemon's own lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from caisson.errors import CaissonError, DaemonError
from caisson.lifecycle.volumes import lacks_private, with_private
from caisson.model import Change, System
from caisson.paths import Paths
from caisson.storage import Pool, new_private
from caisson.storage.pool import storage_errors
from caisson.store import Store, only_one


def take_over(paths: Paths, change: Change) -> None:
    """Make an instance that has nothing what a planned change says, in one transaction.

    Private volumes get the first layer that a new qube's has: one layer serves them all, for
    layers are never written. A kill leaves an empty instance, at most with a layer that the
    daemon erases at its start, or the whole new one.

    Raises:
        DaemonError: a daemon serves the instance, or the caller is not root.
        CaissonError: the instance is not empty.
        StorageError: it cannot be written; nothing changed.
    """
    with _alone(paths), Store.open(paths.database) as store:
        if next(iter(store.load()), None) is not None:
            raise CaissonError(
                f"the instance at `{paths.root}` has qubes or settings of its own",
                hint="import into a new one: add `--root DIR`",
            )
        if not lacks_private(change):
            store.write(change.ops)
            return
        pool = Pool(paths.pool)
        layer = new_private(pool)
        try:
            with storage_errors("write the pool to disk"):
                pool.sync()
            store.write(with_private(change, layer).ops)
        except BaseException:
            pool.remove([layer])
            pool.close()
            raise


def load(paths: Paths) -> System:
    """Read the model of an instance.

    Raises:
        DaemonError: a daemon serves the instance, or the caller is not root.
        CaissonError: there is no instance.
        StorageError: it cannot be read.
    """
    if not paths.database.exists():
        raise CaissonError(
            f"there is no instance at `{paths.root}`", hint="name its root: `--root DIR`"
        )
    with _alone(paths):
        system = System()
        with Store.open(paths.database) as store:
            system.load(store.load())
        return system


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    if os.geteuid() != 0:
        raise DaemonError("without the daemon this needs root", hint="run it with sudo")
    with only_one(paths):
        yield
