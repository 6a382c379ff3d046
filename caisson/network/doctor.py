"""What the machine offers to the network room, and what it lacks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from caisson.errors import CaissonError
from caisson.findings import Finding
from caisson.network import addresses, links, nft, resolvers, rules
from caisson.network.links import End
from caisson.network.namespaces import Namespace

_PATIENCE = 10


def findings(machine: Path) -> Iterator[Finding]:
    """Look at everything; blocks, so it runs on the room's thread."""
    yield _rules_by()
    yield _probe()
    yield _resolvers(machine)
    yield _forwarding(machine)


def _rules_by() -> Finding:
    how = nft.available()
    return Finding(
        "network rules",
        how is not None,
        f"applied by {how}" if how else "neither libnftables nor nft is there",
        "" if how else "install the package `libnftables1` or `nftables`",
    )


def _probe() -> Finding:
    """Make a link between two namespaces of our own and load the rules of a network qube."""
    try:
        with Namespace.fresh("probe, inside") as inner, Namespace.fresh("probe, outside") as outer:
            outer.run(nft.run, rules.provider([], [addresses.OUTER_ADDRESS]))
            outer.run(nft.run, rules.machine("", ("q-0", addresses.OUTER_ADDRESS)))
            here, there = addresses.ipv4_of(2), addresses.ipv4_of(1)
            links.connect(
                End(inner, addresses.CLIENT_INTERFACE, addresses.CLIENT_MAC, here, links.INNER),
                End(outer, "vif2", addresses.PROVIDER_MAC, there, links.OUTER),
            )
    except (CaissonError, OSError) as error:
        return Finding(
            "network links",
            ok=False,
            detail=str(error).splitlines()[0],
            remedy="load the kernel modules `veth`, `nf_tables`, `nft_masq`, `nft_nat`, "
            "`nft_ct` and `nft_fib_inet`",
        )
    return Finding("network links", ok=True, detail="a link and its rules were made and removed")


def _resolvers(machine: Path) -> Finding:
    found = resolvers.of_machine()
    if not found:
        return Finding(
            "network resolvers",
            ok=False,
            detail="the machine has no IPv4 resolver but itself: qubes cannot look up names",
            remedy="name one in /etc/resolv.conf that is not on a loopback address",
        )
    own = {str(address) for address in found} & _addresses(machine)
    if own:
        return Finding(
            "network resolvers",
            ok=False,
            detail=f"{', '.join(sorted(own))} is the machine itself, which qubes may not reach",
            remedy="name a resolver in /etc/resolv.conf that is another machine",
        )
    return Finding("network resolvers", ok=True, detail=", ".join(map(str, found)))


def _addresses(machine: Path) -> frozenset[str]:
    with Namespace.of_path(machine, "the machine's network namespace") as namespace:
        return links.all_addresses(namespace)


def _forwarding(machine: Path) -> Finding:
    """Docker and some firewalls drop what the machine forwards, in tables that are not ours."""
    with Namespace.of_path(machine, "the machine's network namespace") as namespace:
        droppers = [*namespace.run(_dropping_chains), *namespace.run(_legacy_dropping)]
    if droppers:
        return Finding(
            "network forwarding",
            ok=False,
            detail=f"{', '.join(droppers)} drops forwarded packets: uplinks `nat` get no answer",
            remedy="accept what comes from and goes to interfaces `q*-*` there, for Docker: "
            "iptables -I DOCKER-USER -i q+ -j ACCEPT; iptables -I DOCKER-USER -o q+ -j ACCEPT",
        )
    return Finding("network forwarding", ok=True, detail="no other table drops it")


def _dropping_chains() -> list[str]:
    try:
        listed = nft.run([{"list": {"chains": None}}])
    except CaissonError:
        return []
    chains = [entry["chain"] for entry in listed if "chain" in entry]
    return [
        f"nftables chain `{chain['family']} {chain['table']} {chain['name']}`"
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop"
    ]


def _legacy_dropping() -> list[str]:
    tables = Path("/proc/thread-self/net/ip_tables_names")
    try:
        if "filter" not in tables.read_text().split():
            return []
        done = subprocess.run(
            ["iptables-legacy", "-S", "FORWARD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return ["iptables chain `FORWARD`"] if "-P FORWARD DROP" in done.stdout else []
