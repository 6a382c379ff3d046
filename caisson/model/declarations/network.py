"""What a qube has of a network (sheet `admin-api`, section 5.1)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from caisson.model import checks, defaults, parsing
from caisson.model.declarations.declare import (
    BOOL,
    STR,
    Table,
    computed,
    following,
    prop,
    table,
)
from caisson.model.property import constant

NETWORK: Table = table(
    following(
        "netvm",
        "Qube that gives this one its network. Empty: it has none.",
        "default_netvm",
        check=checks.netvm,
    ),
    prop(
        "provides_network",
        BOOL,
        "Whether other qubes can get their network through this one.",
        default=constant(False),
        check=checks.still_provides_network,
    ),
    prop(
        "ip",
        STR,
        "IPv4 address of the qube.",
        default=defaults.ip,
        normalise=parsing.ipv4,
        check=checks.address,
        decode=IPv4Address,
        cloned=False,
    ),
    prop(
        "ip6",
        STR,
        "IPv6 address of the qube, where its network has IPv6.",
        default=defaults.ip6,
        normalise=parsing.ipv6,
        check=checks.address,
        decode=IPv6Address,
        cloned=False,
    ),
    computed("gateway", STR, "IPv4 gateway for its clients.", default=defaults.gateway),
    computed("gateway6", STR, "IPv6 gateway for its clients.", default=defaults.gateway6),
    computed("visible_ip", STR, "IPv4 address that the qube sees.", default=defaults.visible_ip),
    computed(
        "visible_gateway",
        STR,
        "IPv4 gateway that the qube sees.",
        default=defaults.visible_gateway,
    ),
    computed(
        "visible_netmask",
        STR,
        "IPv4 netmask that the qube sees.",
        default=defaults.visible_netmask,
    ),
    computed("visible_ip6", STR, "IPv6 address that the qube sees.", default=defaults.visible_ip6),
    computed(
        "visible_gateway6",
        STR,
        "IPv6 gateway that the qube sees.",
        default=defaults.visible_gateway6,
    ),
    computed("dns", STR, "Name servers of the qube, separated by a space.", default=defaults.dns),
    prop(
        "mac",
        STR,
        "Hardware address of the network interface.",
        default=constant("00:16:3e:5e:6c:00"),
        normalise=parsing.mac,
        cloned=False,
    ),
)
