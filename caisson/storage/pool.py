"""Layers on disk: plain directories that overlay mounts stack.

A pool is one directory, readable by root alone, for qubes own the files in it.
`<pool>/<id>/d` is the tree of a layer; `<pool>/<id>/w` exists while it may be written and is
the overlay's scratch directory. Owner ids in the trees start at 0, as inside a qube;
engines shift them with id-mapped mounts.

A kill at any moment leaves one of three things, all found again at the next start:
`.new-<id>` (half made), an entry of `.trash` (half erased), or a whole layer that nobody
refers to (`Pool.orphans`).
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from caisson.errors import StorageError
from caisson.names import LayerId, shown

OVERLAY_OPTIONS: Final = "redirect_dir=on,index=off,metacopy=off,nfs_export=off,xino=off"
"""How an engine must mount layers.

`redirect_dir`: else renaming a directory of a lower layer fails.
`index` must stay off: with it a write through one name of a file with several names is seen
through all of them until the layer is committed, and through one only from then on.
`metacopy` must stay off: a layer must hold its own data.
"""

_APART: Final = Path(__file__).with_name("apart.py")
_LINGER: Final = 1.0
"""Seconds in which trash gathers, so that a burst of disposables costs one child, not many."""
_log = structlog.get_logger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)

_HINTS: Final = {
    errno.ENOSPC: "free some space on the disk that holds the pool, then try again",
    errno.EDQUOT: "free some space, or raise the quota of the disk that holds the pool",
    errno.EROFS: "the disk that holds the pool is read-only: see `dmesg` for the reason",
    errno.EACCES: "run as root",
    errno.EPERM: "run as root",
    errno.EMFILE: "raise the limit of open files of the daemon",
    errno.ENFILE: "raise the limit of open files of the machine",
    errno.EIO: "the disk that holds the pool fails: see `dmesg`",
}


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that says what failed and what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else shown(str(error))
        raise StorageError(
            f"cannot {doing}: {reason}", hint=_HINTS.get(error.errno or 0)
        ) from error


class Building:
    """A layer while it is being filled: nobody sees it before it is whole."""

    def __init__(self, directory: Path, layer: LayerId) -> None:
        self.id = layer
        self.directory = directory
        self.tree = directory / "d"


class Pool:
    """The layers of all volumes, as directories below `path`.

    Every method but `flatten` and `building` takes constant or nearly constant time;
    call those two in a thread. Methods raise `StorageError` and leave nothing half done.
    """

    def __init__(self, path: Path) -> None:
        self.directory = path
        self._trash = path / ".trash"
        self._sizes: dict[LayerId, int] = {}
        self._lock = threading.Lock()
        self._eraser: threading.Thread | None = None
        self._more_trash = False
        self._hurry = threading.Event()
        with storage_errors(f"make the pool `{path}`"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            self._trash.mkdir(mode=0o700, exist_ok=True)

    def path(self, layer: str) -> Path:
        """The directory of a layer."""
        return self.directory / LayerId.parse(layer)

    def exists(self, layer: str) -> bool:
        """Tell whether the layer is there."""
        return self.path(layer).is_dir()

    def layers(self) -> set[LayerId]:
        """All layers that are there and whole."""
        with storage_errors(f"read the pool `{self.directory}`"):
            return {
                LayerId(name)
                for name in os.listdir(self.directory)  # noqa: PTH208  # names, not paths
                if LayerId.pattern.fullmatch(name)
            }

    def orphans(self, known: Iterable[str]) -> set[LayerId]:
        """Layers that nobody in `known` refers to; ask only while none is being made."""
        return self.layers() - set(known)

    def recover(self) -> None:
        """At the start of the daemon: forget half-made layers, finish erasing."""
        with storage_errors(f"recover the pool `{self.directory}`"):
            for name in os.listdir(self.directory):  # noqa: PTH208  # names, not paths
                if name.startswith(".new-"):
                    self._discard(self.directory / name)
        self._erase()

    def new_layer(self, skeleton: Path | None = None, *, like: str | None = None) -> LayerId:
        """Make a writable layer.

        Args:
            skeleton: a tree whose content it starts with, owners and modes included.
            like: a layer whose root directory it takes mode, owner and attributes from:
                the newest one below it, since an overlay shows those of its upper layer.
        """
        with self.building(writable=True) as new:
            if like is not None:
                _copy_attributes(self.path(like) / "d", new.tree)
            if skeleton is not None:
                _copy_tree(skeleton, new.tree)
        return new.id

    @contextlib.contextmanager
    def building(self, *, writable: bool = False, sync: bool = True) -> Iterator[Building]:
        """Fill a new layer in the `with` block; it appears at the end, whole or not at all.

        Args:
            writable: the layer gets a scratch directory and may become an overlay's upper.
            sync: what was filled in reaches the disk before the layer appears; needed
                where it is too dear to lose in a power cut.
        """
        with storage_errors("make a layer"):
            new = self._begin(writable=writable)
        try:
            with storage_errors("fill a layer"):
                yield new
                if sync and not writable:
                    self.sync()
            with storage_errors("make a layer"):
                new.directory.rename(self.directory / new.id)
        except BaseException:
            with contextlib.suppress(OSError):
                self._discard(new.directory)
            self._erase()
            raise

    def seal(self, layer: str) -> None:
        """Commit a layer: from now on it is only read. Idempotent."""
        work = self.path(layer) / "w"
        with storage_errors(f"commit layer `{layer}`"):
            if work.is_dir():
                self._discard(work)
        self._erase()

    def is_sealed(self, layer: str) -> bool:
        """Tell whether the layer was committed."""
        return not (self.path(layer) / "w").exists()

    def is_empty(self, layer: str, *, like: str | None = None) -> bool:
        """Tell whether committing the layer would change nothing; a missing one is empty.

        Args:
            layer: the layer in question.
            like: the layer that it was made `like`: a changed mode or owner of the root
                directory is a change too.
        """
        tree = self.path(layer) / "d"
        with storage_errors(f"read layer `{layer}`"):
            try:
                with os.scandir(tree) as entries:
                    if next(entries, None) is not None:
                        return False
            except FileNotFoundError:
                return True
            return like is None or _attributes(tree) == _attributes(self.path(like) / "d")

    def usage(self, layer: str) -> int:
        """The bytes on disk of a layer; remembered once the layer is sealed."""
        known = LayerId.parse(layer)
        if known not in self._sizes:
            tree = self.path(known) / "d"
            command = ["du", "--summarize", "--one-file-system", "--block-size=1", "--", str(tree)]
            with storage_errors(f"measure layer `{known}`"):
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
                )
            if not done.stdout:
                raise StorageError(f"layer `{known}` is not in the pool `{self.directory}`")
            size = int(done.stdout.split(b"\t", 1)[0])
            if not self.is_sealed(known):
                return size
            self._sizes[known] = size
        return self._sizes[known]

    def space(self) -> tuple[int, int]:
        """The bytes of the pool's file system, and how many of them are used."""
        with storage_errors(f"measure the pool `{self.directory}`"):
            found = os.statvfs(self.directory)
        return found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize

    def remove(self, layers: Iterable[str]) -> None:
        """Drop layers: gone at once, erased in the background. Missing ones do not matter."""
        for layer in layers:
            path = self.path(layer)
            with storage_errors(f"remove layer `{layer}`"), contextlib.suppress(FileNotFoundError):
                self._discard(path)
            self._sizes.pop(LayerId(layer), None)
        self._erase()

    def flatten(self, layers: Sequence[str]) -> LayerId:
        """Merge a whole stack into one new sealed layer; the old ones stay as they are.

        Whiteouts, opaque and redirected directories are resolved, so the stack must
        include its lowest layer. What qubes wrote is copied, never interpreted.

        Args:
            layers: newest first.
        """
        if not layers:
            raise StorageError("there is nothing to flatten: the stack has no layers")
        with self.building() as new:
            empty = new.directory / "e"
            empty.mkdir(0o755)
            for layer in layers:
                if not self.exists(layer):
                    raise StorageError(f"layer `{layer}` is not in the pool `{self.directory}`")
            lower = [*(f"{layer}/d" for layer in layers), f"{new.directory.name}/e"]
            self._apart("merge", str(self.directory), new.directory.name, *lower)
            (new.directory / "m").rmdir()
            empty.rmdir()
        return new.id

    def close(self) -> None:
        """Wait until nothing is left to erase."""
        self._hurry.set()
        while (eraser := self._eraser) is not None:
            eraser.join()
        self._hurry.clear()

    def _begin(self, *, writable: bool) -> Building:
        while True:
            layer = LayerId(base64.b32encode(secrets.token_bytes(5)).decode().lower())
            directory = self.directory / f".new-{layer}"
            if (self.directory / layer).exists():
                continue
            with contextlib.suppress(FileExistsError):
                directory.mkdir(0o755)
                break
        new = Building(directory, layer)
        try:
            directory.chmod(0o755)
            new.tree.mkdir()
            new.tree.chmod(0o755)
            if writable:
                (directory / "w").mkdir(0o700)
        except OSError:
            self._discard(directory)
            raise
        return new

    def _discard(self, path: Path) -> None:
        path.rename(self._trash / f"{path.name.lstrip('.')}.{secrets.token_hex(8)}")

    def sync(self) -> None:
        """Write the pool's file system to disk: a store may refer to a new layer at once."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)

    def _erase(self) -> None:
        with self._lock:
            self._more_trash = True
            if self._eraser is None:
                self._eraser = threading.Thread(target=self._eraser_main, daemon=True)
                self._eraser.start()

    def _eraser_main(self) -> None:
        while True:
            with self._lock:
                if not self._more_trash:
                    self._eraser = None
                    return
            self._hurry.wait(_LINGER)
            with self._lock:
                self._more_trash = False
            try:
                with os.scandir(self._trash) as entries:
                    anything = next(entries, None) is not None
                if anything:
                    self._apart("erase", str(self._trash))
            except FileNotFoundError:
                continue  # the pool itself is gone
            except (OSError, StorageError) as error:
                _log.warning("erasing is put off to the next start", error=str(error))

    def _apart(self, *arguments: str) -> None:
        command = [sys.executable, "-I", "-S", str(_APART), str(os.getpid()), *arguments]
        with storage_errors("start `apart.py`"):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        if done.returncode == 0:
            return
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = shown(lines[-1].rsplit(": ", 1)[-1]) if lines else f"status {done.returncode}"
        full = b"No space left" in done.stderr or b"quota exceeded" in done.stderr
        raise StorageError(
            f"cannot {arguments[0]} layers: {reason}",
            hint=_HINTS[errno.ENOSPC] if full else None,
        )


_Attributes = tuple[int, int, int, dict[str, bytes]]


def _attributes(path: Path) -> _Attributes:
    status = path.lstat()
    names = os.listxattr(path, follow_symlinks=False)
    kept = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if not name.startswith("trusted.overlay.")
    }
    return status.st_mode, status.st_uid, status.st_gid, kept


def _copy_attributes(source: Path, target: Path) -> None:
    mode, uid, gid, extended = _attributes(source)
    os.chown(target, uid, gid)
    target.chmod(mode & 0o7777)
    for name, value in extended.items():
        os.setxattr(target, name, value)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a small trusted tree of files, directories and links; links stay links."""
    for entry in sorted(source.iterdir()):
        status = entry.lstat()
        copy = target / entry.name
        if entry.is_symlink():
            copy.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy.mkdir()
            _copy_tree(entry, copy)
        else:
            shutil.copyfile(entry, copy, follow_symlinks=False)
        os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
        if not copy.is_symlink():
            copy.chmod(status.st_mode & 0o7777)
