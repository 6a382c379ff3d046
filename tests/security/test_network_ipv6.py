"""Attacks on the network over IPv6, which passes nowhere.

The attacker writes whole Ethernet frames on its end of a link, past all rules of its own.
Each attack is followed by a control packet on the same way, which must arrive:
frames on a link stay in order, so an attack packet that has not been seen by then never comes.
"""

from __future__ import annotations

import socket

from network_attacker import APP, Attacker, chain, chain_mac, lab, passed, uplink_attack
from network_lab import ATTACK, CONTROL, SERVER, Chain, frame, frame6, waiting

__all__ = ["chain", "lab"]


async def test_ipv6_passes_in_neither_direction(chain: Chain) -> None:
    """Even where the network qube was made to forward IPv6 (QSB 004)."""
    chain.firewall.sh(
        "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6;"
        "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding;"
        "for i in eth0 vif3 vif4; do echo 0 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done;"
        "ip -6 addr add fd00::2/128 dev eth0 nodad; ip -6 route add default dev eth0;"
        "ip -6 route add fd00::3 dev vif3; ip -6 route add fd00::4 dev vif4;"
        "ip -6 neigh add fd00::3 lladdr 00:16:3e:5e:6c:00 dev vif3 nud permanent;"
        "ip -6 neigh add fd00::4 lladdr 00:16:3e:5e:6c:00 dev vif4 nud permanent;"
        "ip -6 neigh add 2001:db8::1 lladdr fe:ff:ff:ff:ff:ff dev eth0 nud permanent"
    )
    service = await chain.firewall.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
    chain.lab.sockets.append(service)
    service.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    service.bind(("::", 9999))
    app, net = await Attacker.at(chain.app, "eth0"), await Attacker.at(chain.net, "vif2")
    neighbour = await chain.neighbour.wire("eth0")
    outward = [frame6("fd00::3", "2001:db8::1"), frame6("fd00::3", "fd00::2")]
    outward += [frame6("fd00::3", "fd00::4"), frame6("fd00::3", "ff02::1")]
    behind = await chain.firewall.wire("eth0")
    assert not await passed(app, outward, frame(APP, SERVER, CONTROL), behind)
    mac = chain_mac(chain)
    inward = [frame6("2001:db8::1", f"fd00::{host}", to_mac=mac) for host in (2, 3, 4)]
    for one in inward:
        net.wire.send(one)
    await uplink_attack(chain, frame(SERVER, APP, to_mac=mac))
    assert not any(ATTACK in one for one in waiting(app.wire))
    assert waiting(neighbour) == []
    assert waiting(service) == []


async def test_without_its_rules_a_network_qube_would_pass_ipv6(chain: Chain) -> None:
    """The test above can fail: with the rules gone, the same frame passes."""
    chain.firewall.sh(
        "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding;"
        "for i in eth0 vif3; do echo 0 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done;"
        "ip -6 addr add fd00::2/128 dev eth0 nodad; ip -6 route add default dev eth0;"
        "ip -6 route add fd00::3 dev vif3;"
        "ip -6 neigh add 2001:db8::1 lladdr fe:ff:ff:ff:ff:ff dev eth0 nud permanent;"
        "nft flush ruleset"
    )
    attacker = await Attacker.at(chain.app, "eth0")
    behind = await chain.firewall.wire("eth0")
    attack = [frame6("fd00::3", "2001:db8::1")]
    assert await passed(attacker, attack, frame(APP, SERVER, CONTROL), behind)
