"""Replace policy files and retire old ones, so that it can be undone to the last attribute.

Each file is replaced by a rename, and its former self is kept under a hidden name, as the very
same file, until `confirm`. A failure in the middle undoes what was done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from caisson.errors import CaissonError

NEW_MODE = 0o664
_RETIRED = ".rpmsave"


class UndoError(CaissonError):
    """Something could not be put back; the message names the files."""


class Swap:
    """One replacement of several files.

    Args:
        directory: where files are written.
        written: their new contents, by name.
        old: where files are retired.
        retired: their names, in the order in which they go.
    """

    def __init__(
        self, directory: Path, written: Mapping[str, bytes], old: Path, retired: Iterable[str]
    ) -> None:
        self._directory = directory
        self._written = written
        self._old = old
        self._retired = tuple(retired)
        self._undo: list[tuple[Path, Callable[[], object]]] = []
        self._backups: list[Path] = []

    def apply(self) -> None:
        """Do it all; after a failure nothing is done.

        Raises:
            CaissonError: a file could not be written or renamed.
            UndoError: and what was done before could not be undone.
        """
        try:
            fresh = [(path, self._prepare(path, text)) for path, text in self._places()]
            for path, made in fresh:
                self._replace(path, made)
            for name in self._retired:
                self._retire(self._old / name)
            self._sync()
        except BaseException as e:
            self.undo()
            if not isinstance(e, OSError):
                raise
            where = f" (`{e.filename}`)" if e.filename else ""
            raise CaissonError(
                f"the files cannot be replaced: {(e.strerror or str(e)).lower()}{where}",
                hint="everything is as it was",
            ) from None

    def undo(self) -> None:
        """Put everything back.

        Raises:
            UndoError: something could not be put back.
        """
        failed = []
        while self._undo:
            path, step = self._undo.pop()
            try:
                step()
            except OSError as e:
                failed.append(f"`{path}`: {(e.strerror or str(e)).lower()}")
        self._backups.clear()
        if failed:
            raise UndoError(
                f"not everything could be put back: {', '.join(failed)}",
                hint="what was there is beside it, with the ending `.before` or `.rpmsave`",
            )
        self._sync()

    def confirm(self) -> None:
        """Keep what was done, and forget what was there; the retired files stay."""
        for path in self._backups:
            path.unlink(missing_ok=True)
        self._backups.clear()
        self._undo.clear()
        self._sync()

    def _places(self) -> list[tuple[Path, bytes]]:
        # Where a file is a link, what it leads to is replaced, and the link stays.
        return [((self._directory / n).resolve(), text) for n, text in self._written.items()]

    def _prepare(self, path: Path, text: bytes) -> Path:
        """The new file under a name that no policy has, with the rights of the former one."""
        made = path.with_name(f".{path.name}.new")
        made.unlink(missing_ok=True)
        self._undo.append((made, partial(made.unlink, missing_ok=True)))
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - by descriptor
            file.write(text)
            file.flush()
            try:
                former = path.stat()
                os.fchown(descriptor, former.st_uid, former.st_gid)
                os.fchmod(descriptor, former.st_mode & 0o7777)
            except FileNotFoundError:
                os.fchmod(descriptor, NEW_MODE)
            os.fsync(descriptor)
        return made

    def _replace(self, path: Path, made: Path) -> None:
        # A step is noted before it is made, in case it is broken off: undoing none is none.
        backup = path.with_name(f".{path.name}.before")
        backup.unlink(missing_ok=True)
        self._undo.append((backup, partial(backup.unlink, missing_ok=True)))
        self._backups.append(backup)
        try:
            backup.hardlink_to(path)
        except FileNotFoundError:
            self._undo.append((path, partial(path.unlink, missing_ok=True)))
        else:
            self._undo.append((path, partial(backup.rename, path)))
        made.rename(path)

    def _retire(self, path: Path) -> None:
        saved = path.with_name(f"{path.name}{_RETIRED}")
        number = 0
        while True:
            try:
                os.link(path, saved, follow_symlinks=False)  # a rename would overwrite
                break
            except FileExistsError:
                number += 1
                saved = path.with_name(f"{path.name}.{number}{_RETIRED}")
        self._undo.append((saved, saved.unlink))
        self._undo.append((path, partial(_link_again, saved, path)))
        path.unlink()

    def _sync(self) -> None:
        for directory in {self._directory, self._old, *(p.parent for p, _ in self._places())}:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _link_again(saved: Path, path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.link(saved, path, follow_symlinks=False)
