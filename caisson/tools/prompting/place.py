"""Where a prompt agent listens: the well-known socket if it is free, else one beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caisson.errors import CaissonError
from caisson.qrexec.link import address
from caisson.qrexec.prompt import beside

_BACKLOG = 16
_LOCK_PATIENCE = 5.0
_LOCK_RETRY = 0.01


@contextmanager
def listening(path: Path) -> Iterator[tuple[socket.socket, Path]]:
    """A socket that the broker asks at, and its path; both go at the end.

    Args:
        path: the well-known socket. Only who may enter its directory reaches any of them.

    Raises:
        CaissonError: this user may not answer, or the directory is missing.
    """
    try:
        with _locked(path.parent):
            _sweep(path)
            sock, place = _listen(path)
    except PermissionError:
        raise CaissonError(
            "this user may not answer for qubes", hint="add the user to the group `qubes`"
        ) from None
    except OSError as e:
        raise CaissonError(
            f"cannot listen at `{path}`: {e.strerror}", hint="start the daemons: caisson up"
        ) from None
    born = place.lstat().st_ino
    try:
        yield sock, place
    finally:
        sock.close()
        # Another program may have put its own socket there.
        with contextlib.suppress(FileNotFoundError):
            if place.lstat().st_ino == born:
                place.unlink()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One agent at a time looks for sockets that nobody listens at, and makes its own."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        give_up = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(_LOCK_RETRY)
        yield
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove the sockets of agents that ended without doing so."""
    for place in (path, *beside(path)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(address(place))
            except ConnectionRefusedError:
                place.unlink(missing_ok=True)
            except (FileNotFoundError, BlockingIOError, PermissionError):
                # Busy, or another's: none of them is ours to remove.
                continue


def _listen(path: Path) -> tuple[socket.socket, Path]:
    mark = secrets.token_hex(4)
    fresh = path.with_name(f".{path.name}.{mark}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Born with its rights: who shares the directory could put a link in its place meanwhile.
        umask = os.umask(0o111)
        try:
            sock.bind(address(fresh))
        finally:
            os.umask(umask)
        sock.listen(_BACKLOG)
        try:
            return sock, _named(fresh, path, mark)
        finally:
            fresh.unlink()
    except BaseException:
        sock.close()
        raise


def _named(fresh: Path, path: Path, mark: str) -> Path:
    """Give a socket, made elsewhere, its name: the broker never meets one that is half made.

    An agent that has the well-known name keeps it.
    """
    try:
        os.link(fresh, path, follow_symlinks=False)
    except FileExistsError:
        place = path.with_name(f"{path.stem}-{mark}{path.suffix}")
        os.link(fresh, place, follow_symlinks=False)
        return place
    return path
