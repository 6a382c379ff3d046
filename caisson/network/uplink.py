"""The uplink: how the last qube of a chain reaches the world outside of all qubes.

The feature `net.uplink` of that qube says which kind:

| value | outer end |
|---|---|
| `nat` (also when it is not set) | the machine's own namespace, with a table that translates |
| `netns:NAME` | the namespace `/run/netns/NAME`; its owner routes and translates |
| `none` | there is none |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

import structlog

from caisson.errors import NetworkError
from caisson.names import shown
from caisson.network import addresses, links, nft, resolvers, rules, settings
from caisson.network.links import End, TakenError
from caisson.network.namespaces import Namespace, valid_name

_log = structlog.get_logger(__name__)


class UplinkKind(StrEnum):
    """Where the outer end of an uplink is."""

    NAT = "nat"
    NONE = "none"
    NAMESPACE = "netns"


@dataclass(frozen=True)
class Uplink:
    """A parsed value of the feature `net.uplink`; `namespace` is the NAME of `netns:NAME`."""

    kind: UplinkKind = UplinkKind.NAT
    namespace: str = ""

    @classmethod
    def parse(cls, untrusted: str | None) -> Self:
        """The uplink that a feature's value describes; None or empty text: the default, `nat`.

        Raises:
            NetworkError: the value is none of the three.
        """
        match (untrusted or UplinkKind.NAT).partition(":"):
            case ("nat", "", ""):
                return cls(UplinkKind.NAT)
            case ("none", "", ""):
                return cls(UplinkKind.NONE)
            case ("netns", ":", name):
                return cls(UplinkKind.NAMESPACE, valid_name(name))
            case _:
                raise NetworkError(
                    f"feature `net.uplink` is `{shown(untrusted or '')}`, which is no uplink",
                    hint="use `nat`, `none` or `netns:NAME`",
                )

    def resolvers(self) -> tuple[IPv4Address, ...]:
        """Where DNS queries of the chain end."""
        match self.kind:
            case UplinkKind.NONE:
                return ()
            case UplinkKind.NAMESPACE:
                return resolvers.of_namespace(self.namespace)
            case UplinkKind.NAT:
                return resolvers.of_machine()

    def open_outer(self, machine: Path) -> Namespace:
        """The namespace of the outer end."""
        if self.kind is UplinkKind.NAMESPACE:
            return Namespace.named(self.namespace)
        return Namespace.of_path(machine, "the machine's network namespace")


def bring_up(instance: str, qid: int, uplink: Uplink, qube: Namespace, machine: Path) -> None:
    """Make the uplink of a qube whose own rules are in place, or find it there already.

    Raises:
        NetworkError: it cannot be made; nothing of it is left.
    """
    if uplink.kind is UplinkKind.NONE:
        return
    with uplink.open_outer(machine) as outer:
        name = addresses.outer_interface(instance, qid)
        present = links.address_of(qube, addresses.CLIENT_INTERFACE)
        candidates = addresses.inner_addresses(instance, qid)
        if present in candidates:
            candidates = (present, *(address for address in candidates if address != present))
        try:
            _connect_any(instance, uplink, qube, outer, [(name, address) for address in candidates])
        except BaseException:
            with suppress(NetworkError):
                take_down(instance, qid, uplink, machine)
            raise


def take_down(instance: str, qid: int, uplink: Uplink, machine: Path) -> None:
    """Remove the uplink of a qube; does nothing where there is none."""
    if uplink.kind is UplinkKind.NONE:
        return
    name = addresses.outer_interface(instance, qid)
    try:
        outer = uplink.open_outer(machine)
    except NetworkError:
        return  # the namespace is gone, and every interface in it
    with outer:
        links.disconnect(outer, name)
        if uplink.kind is UplinkKind.NAT:
            outer.run(_forget, instance, lambda interface: interface == name)


def sweep(instance: str, running: Collection[int], machine: Path) -> None:
    """Remove what uplinks of qubes that no longer run left in the machine's namespace.

    Args:
        instance: whose uplinks.
        running: the qids of the qubes that hold an uplink of the kind `nat`.
        machine: the machine's namespace.
    """
    kept = {addresses.outer_interface(instance, qid) for qid in running}
    ours = re.compile(re.escape(addresses.outer_prefix(instance)) + r"[0-9]+")
    with Namespace.of_path(machine, "the machine's network namespace") as outer:
        for interface in links.interfaces(outer):
            if ours.fullmatch(interface.name) and interface.name not in kept:
                links.disconnect(outer, interface.name)
        outer.run(_forget, instance, lambda interface: interface not in kept)


def _connect_any(
    instance: str, uplink: Uplink, qube: Namespace, outer: Namespace, sources: list[rules.Source]
) -> None:
    for source in sources:
        if _connect(instance, uplink, qube, outer, source):
            return
    raise NetworkError(
        f"every address for the uplink `{sources[0][0]}` is taken in {outer.what}",
        hint="remove interfaces of instances that no longer run: ip link delete NAME",
    )


def _connect(
    instance: str, uplink: Uplink, qube: Namespace, outer: Namespace, source: rules.Source
) -> bool:
    """False when another link has the address."""
    name, address = source
    if uplink.kind is UplinkKind.NAT:
        outer.run(_admit, instance, source)
        outer.run(_enable_forwarding)
    try:
        links.connect(
            End(qube, addresses.CLIENT_INTERFACE, addresses.CLIENT_MAC, address, links.INNER),
            End(outer, name, addresses.OUTER_MAC, addresses.OUTER_ADDRESS, links.OUTER),
        )
    except TakenError:
        return False
    return True


def _known(instance: str) -> frozenset[rules.Source]:
    try:
        return rules.sources(nft.run(rules.list_uplinks(instance)))
    except nft.NftError:
        return frozenset()  # no table yet


def _admit(instance: str, source: rules.Source) -> None:
    """Write the machine's table with this address, and no other, for this interface."""
    stale = {known for known in _known(instance) if known[0] == source[0] and known != source}
    nft.run([*rules.machine(instance, source), *rules.remove_uplinks(instance, stale)])


def _forget(instance: str, gone: Callable[[str], bool]) -> None:
    """Take elements out of the machine's table; the last one takes the table with it."""
    known = _known(instance)
    leaving = {source for source in known if gone(source[0])}
    if leaving == known:
        nft.run(rules.remove_machine(instance))
    elif leaving:
        nft.run(rules.remove_uplinks(instance, leaving))


def _enable_forwarding() -> None:
    if settings.enable_forwarding():
        _log.warning(
            "the machine forwards IPv4 packets from now on",
            setting=settings.FORWARDING,
            reason="uplink of the kind `nat`",
        )
