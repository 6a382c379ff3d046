"""nftables: one list of commands, one atomic transaction, in the namespace of the calling thread.

The library libnftables does it in 0.1 ms; where it is missing, the program `nft` in 15 ms.
"""

from __future__ import annotations

import ctypes
import functools
import json
import subprocess
from collections.abc import Sequence
from typing import Any

from caisson.errors import NetworkError

Command = dict[str, Any]

_JSON_OUTPUT = 1 << 4
_HINT = "load the kernel module `nf_tables` and install the package `libnftables1` or `nftables`"
_PATIENCE = 20
_parked: list[ctypes.c_void_p] = []


class NftError(NetworkError):
    """nftables refused a transaction; nothing of it was done."""


def run(commands: Sequence[Command]) -> list[Command]:
    """Do all commands or none.

    Args:
        commands: as `libnftables-json(5)` describes them.

    Returns:
        What they printed: the objects that a `list` command asked for.

    Raises:
        NftError: the kernel or nftables refused; nothing changed.
    """
    text = json.dumps({"nftables": list(commands)})
    library = _library()
    output = _check(*(_by_program(text) if library is None else _by_library(library, text)))
    objects = json.loads(output)["nftables"] if output.strip() else []
    return [entry for entry in objects if "metainfo" not in entry]


def remove(commands: Sequence[Command]) -> None:
    """Like `run`, for commands that remove something; `release` has to follow, later.

    Closing the socket of a removal waits until the kernel has freed what was removed, 5 to 20 ms.
    Whoever calls `release` after other work of that length does not wait.
    """
    text = json.dumps({"nftables": list(commands)})
    library = _library()
    if library is None:
        run(commands)
        return
    context = _open(library)
    _parked.append(context)
    _check(*_by_context(library, context, text))


def release() -> None:
    """Close what `remove` left open; on the same thread."""
    library = _library()
    while library is not None and _parked:
        library.nft_ctx_free(_parked.pop())


def available() -> str | None:
    """How rules are applied on this machine: `libnftables`, `nft`, or None."""
    if _library() is not None:
        return "libnftables"
    try:
        subprocess.run(["nft", "--version"], capture_output=True, check=True, timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return None
    return "nft"


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    context = ctypes.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "nft_ctx_new": (context, [ctypes.c_uint32]),
        "nft_ctx_free": (None, [context]),
        "nft_ctx_buffer_output": (ctypes.c_int, [context]),
        "nft_ctx_buffer_error": (ctypes.c_int, [context]),
        "nft_ctx_output_set_flags": (None, [context, ctypes.c_uint]),
        "nft_run_cmd_from_buffer": (ctypes.c_int, [context, ctypes.c_char_p]),
        "nft_ctx_get_output_buffer": (ctypes.c_char_p, [context]),
        "nft_ctx_get_error_buffer": (ctypes.c_char_p, [context]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _open(library: ctypes.CDLL) -> ctypes.c_void_p:
    # A context is bound to the namespace that it was made in; it costs less than remembering it.
    context = library.nft_ctx_new(0)
    if not context:
        raise NftError("libnftables cannot open its netlink socket", hint=_HINT)
    library.nft_ctx_buffer_output(context)
    library.nft_ctx_buffer_error(context)
    library.nft_ctx_output_set_flags(context, _JSON_OUTPUT)
    return ctypes.c_void_p(context)


def _by_context(library: ctypes.CDLL, context: ctypes.c_void_p, text: str) -> tuple[int, str, str]:
    code = library.nft_run_cmd_from_buffer(context, text.encode())
    output = library.nft_ctx_get_output_buffer(context) or b""
    errors = library.nft_ctx_get_error_buffer(context) or b""
    return code, output.decode(errors="replace"), errors.decode(errors="replace")


def _by_library(library: ctypes.CDLL, text: str) -> tuple[int, str, str]:
    context = _open(library)
    try:
        return _by_context(library, context, text)
    finally:
        library.nft_ctx_free(context)


def _by_program(text: str) -> tuple[int, str, str]:
    # A child starts in the namespace of the thread that made it.
    try:
        done = subprocess.run(
            ["nft", "-j", "-f", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return 1, "", f"cannot run `nft`: {error}"
    return done.returncode, done.stdout, done.stderr


def _check(code: int, output: str, errors: str) -> str:
    """The output of a transaction that was done."""
    if code != 0:
        raise NftError(f"nftables refused the rules: {_first_line(errors)}", hint=_HINT)
    return output


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
