"""Whether there is a service, and whether only root could have put it there.

The directories and the order are those of the sheet `qrexec`, sections 2.3 and 2.4. The program
that starts the service looks it up by itself: so every file that it might take is examined.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from caisson.errors import CaissonError
from caisson.names import ServiceArgument, ServiceName
from caisson.paths import Paths
from caisson.qrexec.admin_messages import of_qubesd
from caisson.qrexec.saying import harmless

LONGEST_FILE_NAME = 255
LONGEST_SHOWN = 1000
_MOST_LINKS = 40
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_TCP = "/dev/tcp"


class UntrustedError(CaissonError):
    """Somebody else than root could change what would run."""


@dataclass(frozen=True)
class Places:
    """Where services and their settings are, the directory that is looked at first in front.

    Args:
        services: directories of services.
        settings: directories of their settings, `rpc-config`.
    """

    services: tuple[Path, ...]
    settings: tuple[Path, ...]

    @classmethod
    def of(cls, paths: Paths) -> Places:
        """Those of an instance."""
        below = ("run", "usr/local/etc", "etc")
        return cls(
            tuple(
                paths.root / each / name
                for each, name in zip(below, ("qubes-rpc",) * 3, strict=True)
            ),
            tuple(paths.root / each / "qubes/rpc-config" for each in below),
        )

    def environment(self) -> dict[str, str]:
        """What tells the program that starts services of them."""
        return {
            "QREXEC_SERVICE_PATH": ":".join(map(str, self.services)),
            "QUBES_RPC_CONFIG_PATH": ":".join(map(str, self.settings)),
        }


def examine(places: Places, service: ServiceName, argument: ServiceArgument) -> bool:
    """Whether there is something to run.

    Raises:
        UntrustedError: a file of the service or of its settings, or a directory on the way, is
            not root's alone, or the file is of a kind that cannot be served.
    """
    names = [n for n in (f"{service}+{argument}", service) if len(n) <= LONGEST_FILE_NAME]
    # Also when it was found: the rest would be looked at if the first went away.
    found = [_is_service(each / name) for name in names for each in _trusted(places.services)]
    for directory in _trusted(places.settings):
        for name in names:
            _walk(directory / name)
    return any(found)


def examine_all(places: Places) -> int:
    """How many files of services there are, all of which may be served.

    Raises:
        UntrustedError: one may not.
    """
    files = [file for each in _trusted(places.services) for file in sorted(each.iterdir())]
    # Directories, as that of the old policy format, are no services; nor is what others of the
    # machine find there that qubesd serves itself.
    services = [f for f in files if not (f.is_dir() or of_qubesd(f.name))]
    for file in services:
        _is_service(file)
    for directory in _trusted(places.settings):
        for file in directory.iterdir():
            _walk(file)
    return len(services)


def _trusted(directories: tuple[Path, ...]) -> list[Path]:
    """Those of the directories that are there.

    Raises:
        UntrustedError: somebody else than root can put files there.
    """
    there = []
    for directory in directories:
        status = _walk(directory)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            raise UntrustedError(f"`{directory}` is not a directory")
        if status.st_mode & _WRITABLE:
            raise _writable(str(directory))
        there.append(directory)
    return there


def _is_service(path: Path) -> bool:
    try:
        if os.readlink(path).startswith(_TCP):  # noqa: PTH115 - the text itself
            return True
    except OSError:
        pass  # nothing, or no link
    status = _walk(path)
    if status is None:
        return False
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        raise UntrustedError(f"`{path}` is neither a program nor a socket")
    return True


def _walk(path: Path) -> os.stat_result | None:
    """What is at the end of a path whose every step only root can change; None: nothing.

    Raises:
        UntrustedError: somebody else can change a step, or it cannot be looked at.
    """
    rest = deque(path.parts[1:])
    here, status, links = "/", os.lstat("/"), 0
    _require(here, status)
    while rest:
        part = rest.popleft()
        there = os.path.normpath(f"{here.rstrip('/')}/{part}")  # `here` has no link in it
        try:
            status = os.lstat(there)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise UntrustedError(f"cannot look at `{_shown(there)}`: {e.strerror}") from None
        _require(there, status)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise UntrustedError(f"`{path}` leads through too many links")
            target = Path(os.readlink(there))  # noqa: PTH115 - the text itself
            if target.is_absolute():
                here = "/"
            rest.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        else:
            here = there
    return status


def _require(path: str, status: os.stat_result) -> None:
    """Make sure that only root can change what is at a path.

    Raises:
        UntrustedError: somebody else can.
    """
    if stat.S_ISSOCK(status.st_mode):
        return  # whoever listens there was put there by who owns the directory
    if status.st_uid != 0:
        raise UntrustedError(
            f"`{_shown(path)}` does not belong to root", hint=f"chown root {_shown(path)}"
        )
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & _WRITABLE:
        return
    # With the sticky bit nobody but root can replace what is root's in it.
    if not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        raise _writable(path)


def _shown(path: str) -> str:
    return harmless(os.fsencode(path), LONGEST_SHOWN)


def _writable(path: str) -> UntrustedError:
    return UntrustedError(
        f"others than root can write to `{_shown(path)}`", hint=f"chmod go-w {_shown(path)}"
    )
