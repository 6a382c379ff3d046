"""`qubes.ReceiveUpdates`: packages for the admin qube, from the one qube that fetches them.

An unprivileged process unpacks what comes into a fresh directory of its own. What lies there when
it has ended is copied into a directory of root's, which appears as a whole or not at all. Nothing
is parsed, no signature is looked at: whoever installs a package does that.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from caisson.dom0.running import Command, Patience
from caisson.dom0.serving import REFUSED, about, confined, run, service_user
from caisson.errors import CaissonError
from caisson.names import shown
from caisson.paths import QFILE_UNPACKER, Paths
from caisson.qrexec import AdminCall, sparing

SUFFIXES = (".rpm", ".deb")
# What the receiver takes by `--flat` (agent/src/qfile/names.rs).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:^%-]{0,254}")
_CHUNK = 1024 * 1024
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

_log = structlog.get_logger("updates")


@dataclass(frozen=True)
class Room:
    """How much is taken.

    Args:
        most_bytes: of one transfer.
        most_files: of one transfer.
        most_kept: bytes of all that is kept; more is refused until somebody removes some.
        least_counted: so many bytes each file that is kept counts for: small ones take up room too.
    """

    most_bytes: int = 4 * 1024**3
    most_files: int = 2000
    most_kept: int = 16 * 1024**3
    least_counted: int = 64 * 1024


class Updates:
    """Takes packages, one transfer at a time.

    Args:
        paths: the instance.
        updatevm: gives the qube that may send, by its name now; None: nobody.
        user: as whom a transfer is unpacked.
        unpacker: the program that unpacks it.
        room: how much is taken.
        patience: how long the unpacking may outlive its caller.
    """

    SERVICE = "qubes.ReceiveUpdates"

    def __init__(
        self,
        paths: Paths,
        updatevm: Callable[[], str | None],
        *,
        user: str,
        unpacker: Path = QFILE_UNPACKER,
        room: Room = Room(),
        patience: Patience = Patience(),  # noqa: B008 - likewise
    ) -> None:
        self._paths = paths
        self._updatevm = updatevm
        self._user = user
        self._unpacker = unpacker
        self._room = room
        self._patience = patience
        self._busy = False

    async def serve(self, call: AdminCall) -> int:
        """Take one transfer; gives its exit code.

        Raises:
            CaissonError: it cannot be taken, or not all of it.
        """
        if call.source != self._updatevm():
            sparing.warning("only the qube of `updatevm` sends updates", **about(call))
            return REFUSED
        if call.argument:
            raise CaissonError(f"`{self.SERVICE}` takes no argument")
        if self._busy:
            raise CaissonError("another transfer is under way")
        self._busy = True
        try:
            return await self._receive(call)
        finally:
            self._busy = False

    async def _receive(self, call: AdminCall) -> int:
        account = service_user(self._user)
        await asyncio.to_thread(self._prepare)
        async with self._fresh(account.pw_uid, account.pw_gid) as incoming:
            code = await run(self._command(incoming, account.pw_uid), call, self._patience)
            if code == 0:
                names = await asyncio.to_thread(
                    keep, incoming, account.pw_uid, self._paths.packages / call.source, self._room
                )
                _log.info("updates were received", qube=call.source, files=len(names))
        return code

    def _command(self, incoming: Path, uid: int) -> Command:
        """What unpacks: root for its barriers, the user before it reads the first byte."""
        most = f"--most-bytes={self._room.most_bytes}", f"--most-files={self._room.most_files}"
        suffixes = (f"--suffix={suffix}" for suffix in SUFFIXES)
        argv = (str(self._unpacker), "--flat", *suffixes, *most, "--", str(uid), ".")
        return Command(confined(argv), _ENVIRONMENT, incoming)

    @asynccontextmanager
    async def _fresh(self, uid: int, gid: int) -> AsyncIterator[Path]:
        """A directory of the user's, which is gone afterwards."""
        incoming = self._paths.incoming_updates / secrets.token_hex(8)
        incoming.mkdir(mode=0o700)
        try:
            os.chown(incoming, uid, gid)
            yield incoming
        finally:
            # How much lies there is the user's choice: nobody waits for it.
            await asyncio.to_thread(_remove, incoming)

    def _prepare(self) -> None:
        """Remove what earlier transfers left, and make sure that there is room.

        Raises:
            CaissonError: there is none.
        """
        for directory in (self._paths.updates, self._paths.incoming_updates, self._paths.packages):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._paths.incoming_updates.chmod(0o711)
        for leftover in self._paths.incoming_updates.iterdir():
            _remove(leftover)
        for leftover in self._paths.packages.glob("*/.*"):
            _remove(leftover)
        sizes = (f.lstat().st_size for f in self._paths.packages.glob("*/*/*"))
        kept = sum(max(size, self._room.least_counted) for size in sizes)
        if kept >= self._room.most_kept:
            raise CaissonError(
                f"{kept} bytes of packages are kept already, small files counted as larger ones",
                hint=f"remove some below `{self._paths.packages}`",
            )


def keep(incoming: Path, uid: int, packages: Path, room: Room) -> list[str]:
    """Copy all that was received into a new directory below `packages`; gives the names.

    The receiver is not trusted: what it left is opened without following a link, must be plain
    files of its user, and is copied, because a file that somebody has open can still change.

    Raises:
        CaissonError: something else lies there, too much of it, or nothing. Nothing is kept then.
    """
    packages.mkdir(mode=0o755, exist_ok=True)
    fresh = packages / f".{secrets.token_hex(8)}"
    fresh.mkdir(mode=0o700)
    try:
        with _directory(incoming) as source, _directory(fresh) as target:
            names = _names(source, room)
            left = room.most_bytes
            for name in names:
                left -= _copy(name, source, target, uid, left)
            os.fsync(target)
        fresh.chmod(0o755)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        fresh.rename(packages / f"{stamp}-{fresh.name.removeprefix('.')}")
    except OSError as e:
        _remove(fresh)
        raise CaissonError(f"the updates cannot be kept: {e.strerror}") from None
    except BaseException:
        _remove(fresh)
        raise
    return names


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(directory: int, room: Room) -> list[str]:
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if len(names) >= room.most_files:
                raise CaissonError(f"there are more than {room.most_files} files")
            if not (_NAME.fullmatch(entry.name) and entry.name.endswith(SUFFIXES)):
                raise CaissonError(f"`{shown(entry.name)}` is no name of a package")
            names.append(entry.name)
    if not names:
        raise CaissonError("no package was received")
    return sorted(names)


def _copy(name: str, source: int, target: int, uid: int, most: int) -> int:
    """Copy one file; gives its size.

    Raises:
        CaissonError: it is no plain file of the user's, or longer than `most` bytes.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    received = os.open(name, flags, dir_fd=source)
    try:
        status = os.fstat(received)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid or status.st_nlink != 1:
            raise CaissonError(f"`{name}` is not a plain file of the receiver's")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        kept = os.open(name, flags, 0o644, dir_fd=target)
        try:
            copied = 0
            while count := os.sendfile(kept, received, None, _CHUNK):
                copied += count
                if copied > most:
                    raise CaissonError("there is more than one transfer may bring")
            os.fsync(kept)
        finally:
            os.close(kept)
    finally:
        os.close(received)
    return copied


def _remove(path: Path) -> None:
    """Remove what a transfer left, without following a link; what cannot be removed is told."""
    done = subprocess.run(
        ["rm", "-rf", "--one-file-system", "--", str(path)],
        env=_ENVIRONMENT | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        _log.error("a leftover of a transfer stays", path=str(path), why=done.stderr.decode()[:200])
