"""Numbers and booleans in payloads (specification sheet, section 2)."""

from __future__ import annotations

import re

from caisson.admin.registry import Call
from caisson.errors import ProtocolError, ValueRefusedError
from caisson.model import parsing
from caisson.names import shown

_DIGITS = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNED = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LARGEST = (1 << 63) - 1


def natural(call: Call) -> int:
    """The payload as a number without a sign.

    Raises:
        ProtocolError: it is none.
    """
    return _number(call, _DIGITS)


def integer(call: Call) -> int:
    """The payload as a number, which may be negative.

    Raises:
        ProtocolError: it is none.
    """
    return _number(call, _SIGNED)


def boolean(call: Call) -> bool:
    """The payload as a boolean.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return parsing.boolean(call.untrusted_text)
    except ValueRefusedError as error:
        raise ProtocolError(error.message, error.hint) from None


def _number(call: Call, pattern: re.Pattern[str]) -> int:
    untrusted = call.untrusted_text
    if not pattern.fullmatch(untrusted) or abs(int(untrusted)) > _LARGEST:
        raise ProtocolError(
            f"payload `{shown(untrusted)}` of `{call.method.name}` is not a number",
            hint="use decimal digits, without leading zeros",
        )
    return int(untrusted)
