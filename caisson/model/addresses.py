"""Which addresses a qube has (sheet `admin-api`, section 5.1).

Pure arithmetic: `qid` and `dispid` give the address, nothing is allocated or remembered.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

QUBES = "10.137"
DISPOSABLES = "10.138"
DNS = (IPv4Address("10.139.1.1"), IPv4Address("10.139.1.2"))
PRIVATE: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),
    IPv6Network("fc00::/7"),
)
"""What nobody on the Internet has: RFC 1918, RFC 6598 (shared), RFC 4193 (unique local)."""
_QUBES6 = int(IPv6Address("fd09:24ef:4179::a89:0"))
_DISPOSABLES6 = int(IPv6Address("fd09:24ef:4179::a8a:0"))
_OCTET = 255
_MOST = 0xFFFF


def _ipv4(prefix: str, number: int) -> IPv4Address:
    if number < _OCTET:
        return IPv4Address(f"{prefix}.{number >> 8}.{number & 255}")
    before = number - 1
    return IPv4Address(f"{prefix}.{before // 254}.{before % 254 + 1}")


def is_for_qubes(address: IPv4Address | IPv6Address) -> bool:
    """Whether a qube may be given this address.

    Its network qube sends all that goes there to the qube: with a public address, one qube could
    cut the others off from that place, or answer in its stead.
    """
    return address not in DNS and any(address in network for network in PRIVATE)


def ipv4_of(qid: int) -> IPv4Address:
    """The IPv4 address of the qube with this qid."""
    return _ipv4(QUBES, qid)


def ipv4_of_disposable(dispid: int) -> IPv4Address:
    """The IPv4 address of the disposable with this dispid."""
    return _ipv4(DISPOSABLES, dispid)


def qid_at(address: IPv4Address | IPv6Address) -> int | None:
    """The qid that gives this address; None where none does."""
    return _number(address, QUBES, _QUBES6)


def dispid_at(address: IPv4Address | IPv6Address) -> int | None:
    """The dispid that gives this address; None where none does."""
    return _number(address, DISPOSABLES, _DISPOSABLES6)


def _number(address: IPv4Address | IPv6Address, prefix: str, base6: int) -> int | None:
    if isinstance(address, IPv6Address):
        number = int(address) - base6
        return number if 0 <= number <= _MOST else None
    first, second, high, low = address.packed
    if f"{first}.{second}" != prefix:
        return None
    if high == 0:
        return low if low < _OCTET else None
    return high * 254 + low if 0 < low < _OCTET else None


def ipv6_of(qid: int) -> IPv6Address:
    """The IPv6 address of the qube with this qid."""
    return IPv6Address(_QUBES6 + qid)


def ipv6_of_disposable(dispid: int) -> IPv6Address:
    """The IPv6 address of the disposable with this dispid."""
    return IPv6Address(_DISPOSABLES6 + dispid)
