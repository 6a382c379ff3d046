"""A link: a veth between two namespaces, with addresses and routes.

The inner end belongs to the qube that uses the link, the outer end to whoever provides it.
Both ends appear directly where they belong: no third namespace ever sees them.
Nothing goes through a link before its provider's rules are in place; that is the caller's order.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from caisson.errors import NetworkError
from caisson.network import netlink, settings
from caisson.network.namespaces import Namespace
from caisson.network.netlink import Channel, RefusedError

INNER = {"ipv6/conf/{}/disable_ipv6": "1"}
# The outer end has one legitimate source; and it answers ARP for its own address only.
OUTER = {
    "ipv6/conf/{}/disable_ipv6": "1",
    "ipv4/conf/{}/accept_redirects": "0",
    "ipv4/conf/{}/send_redirects": "0",
    "ipv4/conf/{}/accept_source_route": "0",
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/arp_ignore": "1",
}


@dataclass(frozen=True)
class End:
    """One end of a link.

    Attributes:
        namespace: where it is.
        interface: its name there.
        mac: its link-layer address.
        address: its only address.
        settings: kernel settings below `/proc/sys/net`, `{}` standing for the interface;
            none where the namespace's defaults were set with `set_defaults`.
    """

    namespace: Namespace
    interface: str
    mac: str
    address: IPv4Address
    settings: Mapping[str, str]


def set_defaults(namespace: Namespace) -> None:
    """Let all interfaces to come be like outer ends.

    To find a setting by the name of an interface takes longer the more namespaces have one of
    that name, 0.5 ms at 1,000 of them.
    """
    namespace.run(_write, "default", OUTER)
    # The kernel sends redirects when either this or the interface's own setting says so.
    namespace.run(_write, "all", {"ipv4/conf/{}/send_redirects": "0"})


def connect(inner: End, outer: End) -> None:
    """Make the link, or find that it is there already.

    An old interface of the same name at either end that is not this link is deleted first.

    Raises:
        NetworkError: it cannot be made; nothing of it is left.
    """
    if inner.namespace.identity == outer.namespace.identity:
        raise NetworkError(
            f"{inner.namespace.what} and {outer.namespace.what} are the same",
            hint="a qube needs a network namespace of its own; restart the qube",
        )
    with Channel(inner.namespace) as inside, Channel(outer.namespace) as outside:
        if _clear(inner, inside, outer, outside):
            return
        try:
            _make(inner, inside, outer, outside)
        except BaseException:
            with suppress(NetworkError):
                _delete(outside, outer.interface)
            raise


def disconnect(namespace: Namespace, interface: str) -> None:
    """Delete a link by the end that is in `namespace`; does nothing where there is none."""
    with Channel(namespace) as channel:
        _delete(channel, interface)


def interfaces(namespace: Namespace) -> tuple[netlink.Interface, ...]:
    """Every interface in a namespace."""
    with Channel(namespace) as channel:
        (answer,) = channel.ask(netlink.all_links())
        return tuple(netlink.parse_interface(body) for body in answer.payloads)


def all_addresses(namespace: Namespace) -> frozenset[str]:
    """Every address in a namespace, of every family."""
    with Channel(namespace) as channel:
        (answer,) = channel.ask(netlink.all_addresses())
        return netlink.addresses_of(answer)


def address_of(namespace: Namespace, interface: str) -> IPv4Address | None:
    """The one IPv4 address of an interface; None where it has none or there is no such."""
    with Channel(namespace) as channel:
        found, addresses = channel.ask(netlink.get_link(interface), netlink.all_addresses())
        there = netlink.interface_of(found)
        if there is None:
            return None
        known = [a for a in netlink.addresses_of(addresses, there.index) if ":" not in a]
        return IPv4Address(known[0]) if len(known) == 1 else None


def _clear(inner: End, inside: Channel, outer: End, outside: Channel) -> bool:
    """True when the link is there and right; else what has its names is gone."""
    far_answer, number_answer = outside.ask(
        netlink.get_link(outer.interface), netlink.get_number(inner.namespace)
    )
    near_answer, addresses = inside.ask(netlink.get_link(inner.interface), netlink.all_addresses())
    far, near = netlink.interface_of(far_answer), netlink.interface_of(near_answer)
    if far is not None and near is not None:
        pair = (
            far.peer == near.index
            and near.peer == far.index
            and far.peer_namespace == netlink.number_of(number_answer)
        )
        right = netlink.addresses_of(addresses, near.index) == {str(inner.address)}
        if pair and right and far.up and near.up:
            return True
    if far is not None:
        _delete(outside, outer.interface)
    if near is not None:
        _delete(inside, inner.interface)
    return False


def _make(inner: End, inside: Channel, outer: End, outside: Channel) -> None:
    made, found = outside.ask(
        netlink.new_pair(outer.interface, outer.mac, inner.interface, inner.mac, inner.namespace),
        netlink.get_link(outer.interface),
    )
    if made.code:
        raise RefusedError(made, outside.where)
    far = netlink.interface_of(found)
    if far is None or far.peer is None:
        raise NetworkError(
            f"the interface `{outer.interface}` is gone as soon as it was made",
            hint="one of the two qubes has just ended; start it again",
        )
    for end in (outer, inner):
        end.namespace.run(_write, end.interface, end.settings)
    here, there = str(inner.address), str(outer.address)
    try:
        outside.change(
            netlink.add_address(far.index, there),
            netlink.set_up(far.index),
            netlink.add_route(far.index, here, None, there),
        )
    except RefusedError as error:
        if error.code == errno.EEXIST:
            raise TakenError(inner.address, outside.where) from error
        raise
    inside.change(
        netlink.add_address(far.peer, here),
        netlink.set_up(far.peer),
        netlink.add_route(far.peer, there, None, here),
        netlink.add_route(far.peer, None, there, here),
    )


class TakenError(NetworkError):
    """Another link of the same provider has the address."""

    def __init__(self, address: IPv4Address, where: str) -> None:
        super().__init__(
            f"address `{address}` is taken by another link in {where}",
            hint="give one of the two qubes another `ip`",
        )


def _delete(channel: Channel, interface: str) -> None:
    (answer,) = channel.ask(netlink.get_link(interface))
    found = netlink.interface_of(answer)
    if found is None:
        return
    (answer,) = channel.ask(netlink.delete_link(found.index))
    if answer.code not in (0, errno.ENODEV):
        raise RefusedError(answer, channel.where)


def _write(interface: str, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        settings.write(name.format(interface), value)
