"""Kernels for virtual machines, as they lie on the machine: a directory for each version.

Each has a `vmlinuz`, and may have the command line that suits it in a file beside it.
"""

from __future__ import annotations

import stat
from pathlib import Path

IMAGE = "vmlinuz"
OPTIONS = "default-kernelopts-nopci.txt"
_LONGEST = 512


def has_kernel(directory: Path, version: str) -> bool:
    """Whether the machine has that version; `version` is a checked name, no path."""
    try:
        return stat.S_ISREG((directory / version / IMAGE).stat().st_mode)
    except OSError:
        return False


def kernel_options(directory: Path, version: str) -> str | None:
    """The command line that came with a version; None where none came that a kernel can take."""
    try:
        with (directory / version / OPTIONS).open("rb") as file:
            content = file.read(_LONGEST + 2)
    except OSError:
        return None
    text = content.decode("latin-1").strip()
    return text if len(text) <= _LONGEST and text.isascii() and text.isprintable() else None
