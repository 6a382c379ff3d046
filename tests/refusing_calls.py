"""Run a program as on a kernel, or in a sandbox, that refuses some system calls.

`python refusing_calls.py ERRNO NUMBER,NUMBER,… PROGRAM [ARGUMENTS…]`
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def refuse(numbers: list[int], errno: int) -> None:
    """From now on these calls fail with `errno`, for this process and what it becomes."""
    steps = [(_LOAD, 0, 0, 0)]
    for at, number in enumerate(numbers):
        steps.append((_EQUAL, len(numbers) - at, 0, number))
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    words = [ctypes.c_ulong(value) for value in (1, 0, 0, 0)]
    assert prctl(_SET_NO_NEW_PRIVS, *words) == 0
    arguments = (ctypes.c_ulong(_FILTER), ctypes.byref(program), *words[1:3])
    assert prctl(_SET_SECCOMP, *arguments) == 0, ctypes.get_errno()


if __name__ == "__main__":
    refuse([int(number) for number in sys.argv[2].split(",")], int(sys.argv[1]))
    os.execvp(sys.argv[3], sys.argv[3:])
