"""Which addresses a qube has (sheet `admin-api`, section 5.1).

Pure arithmetic: `qid` and `dispid` give the address, nothing is allocated or remembered.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

QUBES = "10.137"
DISPOSABLES = "10.138"
DNS = (IPv4Address("10.139.1.1"), IPv4Address("10.139.1.2"))
_QUBES6 = int(IPv6Address("fd09:24ef:4179::a89:0"))
_DISPOSABLES6 = int(IPv6Address("fd09:24ef:4179::a8a:0"))
_OCTET = 255


def _ipv4(prefix: str, number: int) -> IPv4Address:
    if number < _OCTET:
        return IPv4Address(f"{prefix}.{number >> 8}.{number & 255}")
    before = number - 1
    return IPv4Address(f"{prefix}.{before // 254}.{before % 254 + 1}")


def ipv4_of(qid: int) -> IPv4Address:
    """The IPv4 address of the qube with this qid."""
    return _ipv4(QUBES, qid)


def ipv4_of_disposable(dispid: int) -> IPv4Address:
    """The IPv4 address of the disposable with this dispid."""
    return _ipv4(DISPOSABLES, dispid)


def ipv6_of(qid: int) -> IPv6Address:
    """The IPv6 address of the qube with this qid."""
    return IPv6Address(_QUBES6 + qid)


def ipv6_of_disposable(dispid: int) -> IPv6Address:
    """The IPv6 address of the disposable with this dispid."""
    return IPv6Address(_DISPOSABLES6 + dispid)
