"""The system calls that Python lacks: one typed wrapper each, OSError with the call's name.

Numbers of the calls since Linux 5.2 are the same on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_OPEN_TREE = 428
_MOVE_MOUNT = 429
_OPENAT2 = 437
_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_CAPABILITY_VERSION = 0x2008_0522
_CLONE_NEWNS = 0x0002_0000
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08


class Mount(enum.IntFlag):
    """Flags of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    REC = 16384
    PRIVATE = 1 << 18
    SLAVE = 1 << 19


NO_FLAGS = Mount(0)


class Attr(enum.IntFlag):
    """Attributes of mount_setattr(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    IDMAP = 0x0010_0000


def _check(result: int, call: str, subject: str | bytes = "") -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}", os.fsdecode(subject) or None)


def unshare_mounts() -> None:
    """Give the calling thread, and those it starts later, a mount namespace of their own."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")


def mount(
    source: str, target: str, kind: str | None = None, flags: Mount = NO_FLAGS, data: str = ""
) -> None:
    """Attach a file system, or change a mount."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(int(flags)),
            os.fsencode(data) or None,
        ),
        "mount",
        target,
    )


def detach(target: str) -> None:
    """Take a mount, with all below it, out of the tree at once; in use it lives on unseen."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW), "umount2", target)


def clone_tree(path: str) -> int:
    """Return a descriptor of a detached copy of the mount that shows `path`."""
    return _check(
        _libc.syscall(
            _OPEN_TREE,
            _AT_FDCWD,
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC),
        ),
        "open_tree",
        path,
    )


def clone_tree_at(directory: int) -> int:
    """Return a detached copy of the mount that shows an open directory, rooted there."""
    return _check(
        _libc.syscall(
            _OPEN_TREE,
            directory,
            ctypes.c_char_p(b""),
            ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH),
        ),
        "open_tree",
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_attributes(tree: int, attributes: Attr, user_namespace: int | None = None) -> None:
    """Set attributes on a detached mount; with a user namespace, map its ids through that."""
    if user_namespace is not None:
        attributes |= Attr.IDMAP
    value = _MountAttr(int(attributes), 0, int(Mount.PRIVATE), user_namespace or 0)
    _check(
        _libc.syscall(
            _MOUNT_SETATTR,
            tree,
            ctypes.c_char_p(b""),
            ctypes.c_uint(_AT_EMPTY_PATH),
            ctypes.byref(value),
            ctypes.c_size_t(ctypes.sizeof(value)),
        ),
        "mount_setattr",
    )


def attach(tree: int, target: str) -> None:
    """Attach a detached mount at `target`."""
    _check(
        _libc.syscall(
            _MOVE_MOUNT,
            tree,
            ctypes.c_char_p(b""),
            _AT_FDCWD,
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        ),
        "move_mount",
        target,
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_directory_beneath(directory: int, path: str) -> int:
    """Open a directory below another one, without following a single link.

    Raises:
        OSError: ELOOP where a component is a link, ENOENT, ENOTDIR.
    """
    how = _OpenHow(
        os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC,
        0,
        _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
    )
    while True:
        try:
            return _check(
                _libc.syscall(
                    _OPENAT2,
                    directory,
                    ctypes.c_char_p(os.fsencode(path)),
                    ctypes.byref(how),
                    ctypes.c_size_t(ctypes.sizeof(how)),
                ),
                "openat2",
                path,
            )
        except OSError as error:
            # EAGAIN: something else on the machine was renamed or mounted meanwhile.
            if error.errno != errno.EAGAIN:
                raise


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextlib.contextmanager
def files_belong_to(owner: int) -> Iterator[None]:
    """Let what the calling thread makes on disk belong to a host id, user and group.

    An overlay also does its own work on disk as whoever mounted it, and through an id-mapped
    mount only ids of that range can be written.
    """
    header = _CapabilityHeader(_CAPABILITY_VERSION, 0)
    sets = (_CapabilitySets * 2)()
    _check(_libc.capget(ctypes.byref(header), sets), "capget")
    try:
        _libc.setfsgid(ctypes.c_uint(owner))
        _libc.setfsuid(ctypes.c_uint(owner))
        # The change of id took the capabilities over files away; take them back.
        _check(_libc.capset(ctypes.byref(header), sets), "capset")
        yield
    finally:
        _libc.setfsuid(ctypes.c_uint(0))
        _libc.setfsgid(ctypes.c_uint(0))
