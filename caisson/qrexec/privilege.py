"""Giving up every privilege, for good, before the first byte of a qube is read."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
from pathlib import Path

from caisson.errors import CaissonError, InternalError

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAP_VERSION_3 = 0x20080522
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def give_up(account: pwd.struct_passwd) -> None:
    """Become `account`, without groups, capabilities or a way back.

    Started as that user already, it gives up the rest.

    Raises:
        CaissonError: started as somebody else.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        for capability in range(int(_LAST_CAP.read_text()) + 1):
            _prctl(libc, _PR_CAPBSET_DROP, capability)
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    elif os.geteuid() != account.pw_uid:
        raise CaissonError(
            f"the broker must be started by root or by `{account.pw_name}`",
            hint="start it with: caisson up",
        )
    nothing = (_CapData * 2)()
    if libc.capset(ctypes.byref(_CapHeader(_CAP_VERSION_3, 0)), ctypes.byref(nothing)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _verify(account)
    # Last: it hides /proc/self from this user. No debugger, no core, no /proc/PID/mem.
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    os.umask(0o027)


def _prctl(libc: ctypes.CDLL, option: int, argument: int) -> None:
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _verify(account: pwd.struct_passwd) -> None:
    """Read back from the kernel what should be gone."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    held = [name for name in ("CapEff", "CapPrm", "CapInh", "CapAmb") if int(status[name], 16)]
    if held or status["NoNewPrivs"] != "1":
        raise InternalError(f"the broker still holds privileges: {held}")
    if os.getresuid() != (account.pw_uid,) * 3 or os.getresgid() != (account.pw_gid,) * 3:
        raise InternalError("the broker did not become its user")
