"""From the untrusted text of a property to the form that is stored.

By type first (sheet `admin-api`, section 2.2), then by what the one property allows (5.1).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from caisson.errors import PropertyValueError, ValueRefusedError
from caisson.model import limits
from caisson.model.volumes import fitting
from caisson.names import UserName, VolumeName, shown

_TRUE = frozenset({"1", "yes", "true", "on"})
_FALSE = frozenset({"0", "no", "false", "off"})
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_PRINTABLE = frozenset(string.printable)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_KEYBOARD = re.compile(r"[A-Za-z]+\+[A-Za-z0-9_-]*\+[A-Za-z0-9_:,-]*")
_KERNEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~-]*")
_INTERFACE = re.compile(r"[bump*][0-9a-f*]{6}")
_INTERFACE_LENGTH = 7
_KERNELOPTS_LONGEST = 512


def boolean(untrusted: str) -> bool:
    """Parse a boolean literal, in any case."""
    word = untrusted.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueRefusedError(f"`{shown(untrusted)}` is not a boolean", hint="use `True` or `False`")


def number(untrusted: str) -> int:
    """Parse a decimal number."""
    if not _NUMBER.fullmatch(untrusted):
        raise ValueRefusedError(f"`{shown(untrusted)}` is not a number", hint="use decimal digits")
    return int(untrusted)


def text(untrusted: str) -> str:
    """Accept printable ASCII, spaces and line breaks."""
    if not _PRINTABLE.issuperset(untrusted):
        raise ValueRefusedError(
            f"`{shown(untrusted)}` contains a character that is not printable ASCII",
            hint="use printable ASCII",
        )
    return untrusted


def user_name(value: str) -> str:
    """A user inside a qube."""
    try:
        return UserName.parse(value)
    except ValueRefusedError as error:
        raise PropertyValueError(error.message, error.hint) from error


def mac(value: str) -> str:
    """A hardware address, stored in lower case."""
    lower = value.lower()
    if not _MAC.fullmatch(lower):
        raise PropertyValueError(
            f"`{shown(value)}` is not a MAC address", hint="use six pairs of hexadecimal digits"
        )
    return lower


def ipv4(value: str) -> str:
    """An IPv4 address."""
    try:
        return str(IPv4Address(value))
    except AddressValueError as error:
        raise ValueRefusedError(
            f"`{shown(value)}` is not an IPv4 address", hint="use the form `10.137.0.7`"
        ) from error


def ipv6(value: str) -> str:
    """An IPv6 address, without a zone."""
    try:
        address = IPv6Address(value)
    except AddressValueError as error:
        raise ValueRefusedError(
            f"`{shown(value)}` is not an IPv6 address", hint="use the form `fd09::7`"
        ) from error
    if address.scope_id is not None:
        raise ValueRefusedError(f"`{shown(value)}` names a zone", hint="leave out `%` and the zone")
    return str(address)


def keyboard_layout(value: str) -> str:
    """`layout+variant+options`."""
    if not _KEYBOARD.fullmatch(value):
        raise PropertyValueError(
            f"`{shown(value)}` is not a keyboard layout", hint="use `layout+variant+options`"
        )
    return value


def virt_mode(value: str) -> str:
    """The kind of wall around the qube."""
    lower = value.lower()
    if lower not in {"container", "pvh", "hvm", "pv"}:
        raise PropertyValueError(
            f"virt_mode `{shown(value)}` does not exist",
            hint="use `container`, `pvh`, `hvm` or `pv`",
        )
    return lower


def kernel(value: str) -> str:
    """The version of a kernel: it becomes part of a path. Empty: boot from the volume."""
    if value and not _KERNEL.fullmatch(value):
        raise PropertyValueError(
            f"kernel `{shown(value)}` is not a version",
            hint="use letters, digits, `.`, `_`, `+`, `~` and `-`, starting with a letter or digit",
        )
    return value


def kernel_options(value: str) -> str:
    """What a kernel takes as its command line."""
    if len(value) > _KERNELOPTS_LONGEST:
        raise PropertyValueError(
            f"kernel options are {len(value)} characters long",
            hint=f"use at most {_KERNELOPTS_LONGEST}",
        )
    return value


def denied_interfaces(value: str) -> str:
    """Codes of device interfaces, seven characters each; stored sorted, each once."""
    limits.check_denied(-(-len(value) // _INTERFACE_LENGTH))
    codes = [value[at : at + _INTERFACE_LENGTH] for at in range(0, len(value), _INTERFACE_LENGTH)]
    for code in codes:
        if not _INTERFACE.fullmatch(code):
            raise PropertyValueError(
                f"`{shown(code)}` is not the code of a device interface",
                hint="use one of `b`, `u`, `m`, `p`, `*` and six hexadecimal digits or `*`",
            )
    return "".join(sorted(set(codes)))


def pool_for(volume: VolumeName) -> Callable[[str], str]:
    """The name of a pool that exists and can hold the volume."""

    def pool(value: str) -> str:
        if value not in fitting(volume):
            raise PropertyValueError(
                f"no pool `{shown(value)}` for volumes `{volume}`",
                hint="use one of: " + ", ".join(fitting(volume)),
            )
        return value

    return pool
