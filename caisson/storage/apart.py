"""Work on the trees of layers, apart from the daemon: erase, merge a stack, build a system.

Run as a program of its own (`python -I -S apart.py PARENT …`), never imported by the daemon.
It enters a private mount namespace first, so that no mount of it can leak or stay behind,
and dies with the thread that started it.

A tree that a qube wrote is walked here, by `rm` and `cp` and nothing else:
neither follows a link, and mounts that others put into a tree are not in its view.
A system is built by a root that is nobody on the machine: in a user namespace of its own,
which writes through an id-mapped mount, so that the ids on disk start at 0.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import struct
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUTS, _CLONE_NEWIPC = 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # numbers of all architectures
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 1, 4, 0x100000
_IDS, _FIRST_ID = 65_536, 0x6FFF0000
_BUILD_TMP = "/tmp"  # noqa: S108  # a file system of its own
_BUILD_ROOT = f"{_BUILD_TMP}/template"
_MASKED = "/home", "/media", "/mnt", "/root", "/srv"
_KEPT_ENVIRONMENT = "CAISSON_", "http_", "https_", "HTTP_", "HTTPS_", "no_proxy", "NO_PROXY"
_BACKGROUND = 10
_C_LOCALE = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        sys.exit(f"{what}: {os.strerror(number)}")
    return result


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    arguments = (
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _checked(_libc.mount(*arguments), f"mount {kind or '/'}")


def _apart(parent: int) -> None:
    """Tie our life to our parent's and take a mount namespace of our own."""
    _die_with_parent()
    if os.getppid() != parent:  # it may have died before we could be tied to it
        sys.exit("the parent is gone")
    os.nice(_BACKGROUND)
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE, None)


def _die_with_parent() -> None:
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _unmount_below(directory: str) -> None:
    """Take mounts below `directory` out of our namespace: what they show is not in our way."""
    prefix = f"{os.path.realpath(directory)}/"
    for line in reversed(Path("/proc/self/mountinfo").read_bytes().splitlines()):
        place = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split()[4])
        if place.startswith(os.fsencode(prefix)):
            _checked(_libc.umount2(place, _MNT_DETACH | _UMOUNT_NOFOLLOW), "umount")


def erase(directory: str) -> None:
    """Remove everything in `directory`, and nothing that is only mounted there."""
    _unmount_below(directory)
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


def _user_namespace() -> int:
    """Make a user namespace whose ids 0 to 65,535 are nobody's on the machine."""
    child_ready, parent_told = os.pipe()
    parent_ready, child_told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(child_told)
        made = _libc.unshare(_CLONE_NEWUSER)
        os.write(parent_told, b"y" if made == 0 else b"n")
        os.read(parent_ready, 1)
        os._exit(0)
    if os.read(child_ready, 1) != b"y":
        sys.exit("unshare: a user namespace cannot be made")
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"0 {_FIRST_ID} {_IDS}\n")
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    os.close(child_told)
    os.waitpid(pid, 0)
    return namespace


def _mapped_clone(tree: str, namespace: int) -> int:
    """Take a view of `tree` through which the namespace's ids are those on disk."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    clone = _checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(tree), flags), "open_tree")
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
    _checked(
        _libc.syscall(_MOUNT_SETATTR, clone, b"", _AT_EMPTY_PATH, attributes, len(attributes)),
        "the file system of the pool has no id-mapped mounts",
    )
    return clone


def build(tree: str, command: list[str]) -> None:
    """Run `command` as the root of a user namespace, with `tree` as `/tmp/template`.

    What belongs to people is not in its view, and what it leaves in `/tmp` is gone with it.
    The network is the machine's, for packages have to come from somewhere.
    """
    namespace = _user_namespace()
    clone = _mapped_clone(tree, namespace)
    for directory in _MASKED:
        if Path(directory).is_dir():
            _mount("none", directory, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    _mount("none", _BUILD_TMP, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    Path(_BUILD_ROOT).mkdir()
    Path(f"{_BUILD_TMP}/no-keys").mkdir()
    target = os.fsencode(_BUILD_ROOT)
    _checked(
        _libc.syscall(_MOVE_MOUNT, clone, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH),
        "move_mount",
    )
    _checked(_libc.setns(namespace, _CLONE_NEWUSER), "setns")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWIPC | _CLONE_NEWUTS), "unshare")
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _die_with_parent()  # a change of ids made the kernel forget it
    os.chdir("/")
    pid = os.fork()
    if pid == 0:
        _die_with_parent()
        kept = {k: v for k, v in os.environ.items() if k.startswith(_KEPT_ENVIRONMENT)}
        environment = {**_C_LOCALE, "HOME": "/", "TMPDIR": _BUILD_TMP, **kept}
        os.execvpe(command[0], command, environment)  # noqa: S606  # a shell is what we do not want
    _, status = os.waitpid(pid, 0)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> None:
    """Do what the arguments say: `erase DIR`, `merge POOL NEW LOWER…`, `build TREE COMMAND…`.

    Before them stands the process id of whoever started us.
    """
    match sys.argv[1:]:
        case [parent, "erase", directory]:
            _apart(int(parent))
            erase(directory)
        case [parent, "merge", pool, new, *lower]:
            _apart(int(parent))
            os.chdir(pool)
            merge(new, lower)
        case [parent, "build", tree, *command]:
            _apart(int(parent))
            build(tree, command)
        case _:
            sys.exit(
                "usage: apart.py PARENT (erase DIR | merge POOL NEW LOWER… | build TREE COMMAND…)"
            )


if __name__ == "__main__":
    main()
