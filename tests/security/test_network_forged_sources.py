"""Attacks on the network with sources that are not the attacker's own, and answers to no question.

The attacker writes whole Ethernet frames on its end of a link, past all rules of its own.
Each attack is followed by a control packet on the same way, which must arrive:
frames on a link stay in order, so an attack packet that has not been seen by then never comes.
"""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from network_attacker import (
    APP,
    FIREWALL,
    NEIGHBOUR,
    NET,
    NO_SOURCE_CHECK,
    Attacker,
    chain,
    chain_mac,
    lab,
    passed,
    uplink_attack,
)
from network_lab import ATTACK, CONTROL, RESOLVER, SERVER, Chain, Lab, frame, frames_until

from caisson.network.addresses import outer_interface

__all__ = ["chain", "lab"]

FORGED = [
    NEIGHBOUR,
    FIREWALL,
    NET,
    "10.137.0.99",
    "10.138.0.3",
    "10.139.1.1",
    str(SERVER),
    str(RESOLVER),
    "127.0.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "192.168.1.1",
]


@pytest.mark.parametrize("source", FORGED)
@pytest.mark.parametrize("protocol", [socket.IPPROTO_UDP, socket.IPPROTO_TCP])
async def test_a_forged_source_dies_at_the_first_hop(
    chain: Chain, source: str, protocol: int
) -> None:
    """A client speaks with its own address only (QSB 004, QSB 056)."""
    attacker = await Attacker.at(chain.app, "eth0")
    behind = await chain.firewall.wire("eth0")
    real = frame(APP, SERVER, CONTROL, from_mac=attacker.mac)
    forged = frame(source, SERVER, from_mac=attacker.mac, protocol=protocol, ports=(4444, 4242))
    attacker.wire.send(forged)
    attacker.wire.send(real)
    seen = await asyncio.to_thread(frames_until, behind, CONTROL)
    assert len([one for one in seen if one[12:14] == b"\x08\x00"]) == 1


async def test_every_other_address_of_the_client_ranges_is_forged(chain: Chain) -> None:
    """The whole neighbourhood, with link-layer addresses of others too."""
    attacker = await Attacker.at(chain.app, "eth0")
    behind = await chain.firewall.wire("eth0")
    attack = [
        frame(f"10.{net}.0.{host}", SERVER, from_mac=mac)
        for net in (137, 138, 139)
        for host in range(256)
        for mac in (attacker.mac, b"\xfe" + b"\xff" * 5)
        if (net, host) != (137, 3)
    ]
    assert not await passed(attacker, attack, frame(APP, SERVER, CONTROL), behind)


@pytest.mark.parametrize("source", [APP, NEIGHBOUR, FIREWALL, "127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("target", [APP, NEIGHBOUR, FIREWALL])
async def test_a_forged_source_from_the_uplink_side_is_dropped(
    chain: Chain, source: str, target: str
) -> None:
    """A hostile net qube cannot speak as a client of the firewall qube, to any of them."""
    await uplink_attack(chain, frame(source, target, to_mac=chain_mac(chain)))


@pytest.mark.parametrize("target", [APP, NEIGHBOUR, FIREWALL])
@pytest.mark.parametrize("protocol", [socket.IPPROTO_UDP, socket.IPPROTO_TCP])
async def test_unsolicited_packets_from_outside_reach_nobody(
    chain: Chain, target: str, protocol: int
) -> None:
    """Only answers come back, whatever the net qube routes this way."""
    attack = frame(SERVER, target, to_mac=chain_mac(chain), protocol=protocol)
    await uplink_attack(chain, attack)


async def test_an_answer_that_was_not_asked_for_reaches_nobody(chain: Chain) -> None:
    """The right server and address with the wrong port is no answer."""
    attack = frame(SERVER, FIREWALL, to_mac=chain_mac(chain), ports=(8000, 50123))
    await uplink_attack(chain, attack)


async def test_an_address_that_becomes_a_clients_is_not_believed_from_the_uplink(lab: Lab) -> None:
    """Also in the middle of a connection: its answers come from the wrong side now."""
    uplink = lab.name_outside()
    network = lab.network()
    net, app, neighbour = lab.box("sys-net", 1), lab.box("app", 3), lab.box("neighbour", 4)
    await network.prepare(net.endpoint, [], uplink)
    await network.plug(app.endpoint, net.endpoint)
    client = await app.listener(5000)
    outside = await lab.outside.wire(outer_interface(lab.instance, 1))
    questions = []
    for target in (NEIGHBOUR, str(SERVER)):
        asked = f"question to {target}".encode()
        client.sendto(asked, (target, 8000))
        questions.append((await asyncio.to_thread(frames_until, outside, asked))[-1])
    await network.plug(neighbour.endpoint, net.endpoint)
    net.sh(NO_SOURCE_CHECK)
    for question, payload in zip(questions, (ATTACK, CONTROL), strict=True):
        source, target = (".".join(map(str, question[at : at + 4])) for at in (30, 26))
        (port,) = struct.unpack("!H", question[34:36])
        mac = question[6:12]
        outside.send(frame(source, target, payload, to_mac=mac, ports=(8000, port)))
    assert await asyncio.to_thread(client.recv, 100) == CONTROL


async def test_without_its_rules_a_network_qube_would_pass_a_forged_source(chain: Chain) -> None:
    """The tests above can fail: with the rules gone, the same frame passes."""
    chain.firewall.sh(
        "nft flush ruleset;for i in all vif3; do echo 0 >/proc/sys/net/ipv4/conf/$i/rp_filter; done"
    )
    attacker = await Attacker.at(chain.app, "eth0")
    behind = await chain.firewall.wire("eth0")
    attack = [frame("192.168.1.1", SERVER)]
    assert await passed(attacker, attack, frame(APP, SERVER, CONTROL), behind)
