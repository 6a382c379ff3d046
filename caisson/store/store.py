"""The database: opened once, written one transaction a change, safe against a kill."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from caisson.errors import StorageError
from caisson.model.changes import Op
from caisson.store.rows import operations, statement
from caisson.store.schema import APPLICATION_ID, STEPS, VERSION

_BUSY_SECONDS = 2.0
_PRIVATE = 0o600
_PRIMARY = 0xFF
"""SQLite's extended error codes carry the plain one in their lowest byte."""

_FULL = "free some space on its file system"
_HINTS = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_BUSY: "another process holds it: stop the other qubesd on this root",
    sqlite3.SQLITE_LOCKED: "another process holds it: stop the other qubesd on this root",
    sqlite3.SQLITE_CORRUPT: "put it aside and restore it from a backup",
    sqlite3.SQLITE_NOTADB: "put it aside and restore it from a backup",
    sqlite3.SQLITE_READONLY: "check its owner and whether its file system is mounted read-only",
    sqlite3.SQLITE_CANTOPEN: "check that its directory exists and belongs to root",
    sqlite3.SQLITE_PERM: "check its owner",
    sqlite3.SQLITE_IOERR: "check the free space and the health of its disk",
}


class Store:
    """The model on disk.

    One process at a time: the file stays locked while the store is open.
    Calls block, `write` for as long as the disk takes to flush. They may come from any one
    thread, but never from two at a time: call from the event loop, or from a single worker.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the database at `path`, made if there is none, and bring it up to date.

        Raises:
            StorageError: it cannot be opened: in use, damaged, not ours, of a newer version.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # SQLite gives its side files the mode of the database.
            descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE
            )
            try:
                os.fchmod(descriptor, _PRIVATE)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(
                f"state database `{path}` cannot be opened: {error.strerror}",
                hint="run as root, and check that its directory is writable",
            ) from error
        with _explained(path, "opened"):
            connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                store = cls(connection, path)
                store._set_up()
            except BaseException:
                connection.close()
                raise
        return store

    def load(self) -> Iterator[Op]:
        """Yield all that is kept, in an order that `System.load` accepts.

        Raises:
            StorageError: the database cannot be read.
        """
        with _explained(self._path, "read"):
            yield from operations(self._connection)

    def write(self, ops: Iterable[Op]) -> None:
        """Keep all operations of a change, or none; on return they are on the disk.

        Raises:
            StorageError: nothing was written.
        """
        statements = [statement(op) for op in ops]
        if not statements:
            return
        with _explained(self._path, "written"), self._transaction():
            for sql, values in statements:
                self._connection.execute(sql, values)

    def close(self) -> None:
        """Let go of the database."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA trusted_schema = OFF")
        self._check_ours()
        with self._transaction():
            for step in STEPS[self._version() :]:
                self._migrate(step)
        if execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        if execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise sqlite3.DatabaseError("it refers to a qube that does not exist")

    def _check_ours(self) -> None:
        (found,) = self._connection.execute("PRAGMA application_id").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if found != APPLICATION_ID and (found or tables):
            raise StorageError(
                f"`{self._path}` is a database of another program", hint="put it aside"
            )
        if self._version() > VERSION:
            raise StorageError(
                f"state database `{self._path}` has version {self._version()}, "
                f"this Caisson knows up to {VERSION}",
                hint="install the Caisson that wrote it, or a newer one",
            )

    def _version(self) -> int:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _migrate(self, step: str) -> None:
        """Take one step within the transaction; a script call would commit by itself."""
        for sql in step.split(";"):
            if sql.strip():
                self._connection.execute(sql)
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {self._version() + 1}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


@contextmanager
def _explained(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & _PRIMARY
        raise StorageError(
            f"state database `{path}` cannot be {verb}: {error}",
            hint=_HINTS.get(code),
        ) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise StorageError(
            f"state database `{path}` cannot be {verb}: {error}",
            hint=_HINTS[sqlite3.SQLITE_CORRUPT],
        ) from error
