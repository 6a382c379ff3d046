"""What a person notes about a qube: free text, safe to show (sheet `admin-api`, section 2.8)."""

from __future__ import annotations

import unicodedata
from typing import Final

from caisson.errors import ProtocolError

LONGEST: Final = 256_000
"""Bytes of UTF-8."""

_KEPT: Final = frozenset("\t\n")
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories: control, format (among them what turns text around), surrogate, private,
unassigned, and separators that a line-based reader does not see."""


def parse(untrusted: bytes) -> str:
    """Return notes with every unsafe code point replaced by `_`; nothing means no notes.

    Raises:
        ProtocolError: they are too long, or not UTF-8.
    """
    if len(untrusted) > LONGEST:
        raise ProtocolError(
            f"notes are {len(untrusted)} bytes long", hint=f"use at most {LONGEST} bytes"
        )
    try:
        untrusted_text = untrusted.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(
            f"notes are not UTF-8 at byte {error.start}", hint="use UTF-8"
        ) from None
    return "".join(c if _is_safe(c) else "_" for c in untrusted_text)


def _is_safe(untrusted: str) -> bool:
    return untrusted in _KEPT or unicodedata.category(untrusted) not in _UNSAFE
