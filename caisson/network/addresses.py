"""Names and addresses of the ends of a link. Pure arithmetic; nothing is allocated or remembered.

A qube's own address comes from the model (`caisson.model.addresses`).
This module adds what only the links know: interface names, link-layer addresses and the small
network between the last qube of a chain and the machine.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address

from caisson.model.addresses import DNS, ipv4_of, ipv4_of_disposable

__all__ = [
    "CLIENT_INTERFACE",
    "CLIENT_MAC",
    "DNS",
    "OUTER_ADDRESS",
    "OUTER_MAC",
    "PROVIDER_MAC",
    "inner_addresses",
    "ipv4_of",
    "ipv4_of_disposable",
    "outer_interface",
    "outer_prefix",
    "provider_interface",
]

CLIENT_INTERFACE = "eth0"
PROVIDER_PREFIX = "vif"
CLIENT_MAC = "00:16:3e:5e:6c:00"
PROVIDER_MAC = "fe:ff:ff:ff:ff:ff"
OUTER_MAC = "fe:ff:ff:ff:ff:fe"
OUTER_ADDRESS = IPv4Address("10.139.2.1")
_INNER = int(IPv4Address("10.139.128.0"))
_INNER_COUNT = 1 << 15
_ATTEMPTS = 16


def provider_interface(qid: int) -> str:
    """The interface, in its network qube, of the qube with this qid."""
    return f"{PROVIDER_PREFIX}{qid}"


def outer_prefix(instance: str) -> str:
    """What the names of this instance's interfaces outside of all qubes start with.

    Args:
        instance: `Paths.instance`: empty, or eight hexadecimal digits.
    """
    return f"q{instance}-"


def outer_interface(instance: str, qid: int) -> str:
    """The outer end of the uplink of the qube with this qid; at most 15 bytes, as Linux asks."""
    return f"{outer_prefix(instance)}{qid}"


def inner_addresses(instance: str, qid: int) -> tuple[IPv4Address, ...]:
    """Addresses for the inner end of an uplink, the preferred one first.

    Several instances can share the namespace of the outer ends, so the first may be taken.
    """
    return tuple(
        IPv4Address(_INNER + int.from_bytes(digest[:4], "big") % _INNER_COUNT)
        for digest in (
            hashlib.sha256(f"{instance}/{qid}/{attempt}".encode()).digest()
            for attempt in range(_ATTEMPTS)
        )
    )
