"""Work on the trees of layers, apart from the daemon: erase one, or merge a stack into one.

Run as a program of its own (`python -I -S apart.py …`), never imported by the daemon.
It enters a private mount namespace first, so that no mount of it can leak or stay behind,
and dies with the thread that started it.

A tree that a qube wrote is walked here, by `rm` and `cp` and nothing else:
neither follows a link, and mounts that others put into a tree are not in its view.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_PR_SET_PDEATHSIG = 1
_BACKGROUND = 10
_C_LOCALE = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        sys.exit(f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    arguments = (
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _checked(_libc.mount(*arguments), f"mount {kind or 'bind'}")


def _apart() -> None:
    """Tie our life to our parent's and take a mount namespace of our own."""
    parent = os.getppid()
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.nice(_BACKGROUND)
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE, None)


def erase(directory: str) -> None:
    """Remove everything in `directory`, and nothing that is only mounted there."""
    _mount(directory, directory, None, _MS_BIND, None)
    os.chdir(directory)
    names = os.listdir(".")  # noqa: PTH208  # names, not paths
    if names:
        program = ["rm", "-rf", "--one-file-system", "--", *names]
        os.execvpe(program[0], program, _C_LOCALE)  # noqa: S606  # a shell is what we do not want


def merge(new: str, lower: list[str]) -> None:
    """Copy what an overlay of `lower` (newest first, relative to here) shows into `new`/d."""
    view = f"{new}/m"
    Path(view).mkdir(0o700)
    options = f"lowerdir={':'.join(lower)},redirect_dir=on,metacopy=off,xino=off"
    _mount("caisson", view, "overlay", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    program = [
        "cp",
        "--recursive",
        "--no-dereference",
        "--preserve=mode,ownership,timestamps,links,xattr",
        "--reflink=auto",
        "--sparse=auto",
        "--",
        f"{view}/.",
        f"{new}/d",
    ]
    os.execvpe(program[0], program, _C_LOCALE)  # noqa: S606  # a shell is what we do not want


def main() -> None:
    """Do what the arguments say: `erase DIR`, or `merge POOL NEW LOWER…`."""
    match sys.argv[1:]:
        case ["erase", directory]:
            _apart()
            erase(directory)
        case ["merge", pool, new, *lower]:
            _apart()
            os.chdir(pool)
            merge(new, lower)
        case _:
            sys.exit("usage: apart.py erase DIR | merge POOL NEW LOWER…")


if __name__ == "__main__":
    main()
