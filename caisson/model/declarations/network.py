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

NETVM_HELP = (
    "Qube that gives this one its network; empty: it has none. A running qube is moved at once."
)

NETWORK: Table = table(
    following("netvm", NETVM_HELP, "default_netvm", check=checks.netvm),
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
        "IPv4 address of the qube, a private one. It follows from its number unless it is set.",
        default=defaults.ip,
        normalise=parsing.ipv4,
        check=checks.address,
        decode=IPv4Address,
        cloned=False,
    ),
    prop(
        "ip6",
        STR,
        "IPv6 address of the qube, a unique local one (fc00::/7), where the feature ipv6 is on "
        "along its chain of network qubes. It follows from its number unless it is set.",
        default=defaults.ip6,
        normalise=parsing.ipv6,
        check=checks.address,
        decode=IPv6Address,
        cloned=False,
    ),
    computed(
        "gateway", STR, "IPv4 gateway of the qubes behind this one.", default=defaults.gateway
    ),
    computed(
        "gateway6", STR, "IPv6 gateway of the qubes behind this one.", default=defaults.gateway6
    ),
    computed(
        "visible_ip",
        STR,
        "IPv4 address that the qube sees as its own: the feature net.fake-ip, or ip.",
        default=defaults.visible_ip,
    ),
    computed(
        "visible_gateway",
        STR,
        "IPv4 gateway that the qube sees: the feature net.fake-gateway, or that of its netvm.",
        default=defaults.visible_gateway,
    ),
    computed(
        "visible_netmask",
        STR,
        "IPv4 netmask that the qube sees: the feature net.fake-netmask, or one of a single host.",
        default=defaults.visible_netmask,
    ),
    computed(
        "visible_ip6",
        STR,
        "IPv6 address that the qube sees as its own.",
        default=defaults.visible_ip6,
    ),
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
        "Hardware address of the network interface, six pairs of hexadecimal digits.",
        default=constant("00:16:3e:5e:6c:00"),
        normalise=parsing.mac,
        cloned=False,
    ),
)
