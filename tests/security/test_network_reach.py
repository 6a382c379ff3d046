"""Attacks on network qubes, neighbours and resolvers by a client of the same network qube.

The attacker writes whole Ethernet frames on its end of a link, past all rules of its own.
Each attack is followed by a control packet on the same way, which must arrive:
frames on a link stay in order, so an attack packet that has not been seen by then never comes.
"""

from __future__ import annotations

import asyncio
import socket

import pytest
from network_attacker import APP, FIREWALL, NEIGHBOUR, NET, Attacker, chain, lab, passed
from network_lab import ATTACK, CONTROL, SERVER, Chain, Lab, frame, waiting

from caisson.network.addresses import outer_interface

__all__ = ["chain", "lab"]


@pytest.mark.parametrize("address", [FIREWALL, NET, "10.139.2.1"])
async def test_a_client_reaches_no_port_of_a_network_qube(chain: Chain, address: str) -> None:
    """Neither of its own network qube nor of those behind; the uplink's outer end is no qube."""
    attacker = await Attacker.at(chain.app, "eth0")
    services = [await box.listener(9999) for box in (chain.firewall, chain.net)]
    outside = await chain.lab.outside.listener(7777)
    attacker.wire.send(frame(APP, address))
    attacker.wire.send(frame(APP, SERVER, CONTROL, ports=(4444, 7777)))
    assert await asyncio.to_thread(outside.recv, 100) == CONTROL
    assert [waiting(service) for service in services] == [[], []]


async def test_what_is_no_lookup_does_not_leave_by_the_resolvers_stand_ins(chain: Chain) -> None:
    """Their addresses mean the resolver only; upstream they may be anybody's."""
    attacker = await Attacker.at(chain.app, "eth0")
    outside = await chain.lab.outside.wire(outer_interface(chain.lab.instance, 1))
    attack = [frame(APP, stand_in, ports=(4444, 80)) for stand_in in ("10.139.1.1", "10.139.1.2")]
    assert not await passed(attacker, attack, frame(APP, SERVER, CONTROL), outside)


async def test_a_qube_does_not_inherit_the_connections_of_another(chain: Chain) -> None:
    """The next disposable with the same address gets no answer to the one before."""
    client = await chain.app.listener(5000)
    outside = await chain.lab.outside.listener(8000, str(SERVER))
    client.sendto(b"question of the first", (str(SERVER), 8000))
    _, first = await asyncio.to_thread(outside.recvfrom, 100)
    await chain.network.unplug(chain.app.endpoint, chain.firewall.endpoint)
    second = chain.lab.box("second", 3)
    await chain.network.plug(second.endpoint, chain.firewall.endpoint)
    heir = await second.listener(5000)
    victim = await second.wire("eth0")
    heir.sendto(b"question of the second", ("10.200.0.1", 8000))
    other = await chain.neighbour.listener(5001)
    other.sendto(b"question", (str(SERVER), 8000))
    _, peer = await asyncio.to_thread(outside.recvfrom, 100)
    outside.sendto(ATTACK, first)
    outside.sendto(CONTROL, peer)
    assert await asyncio.to_thread(other.recv, 100) == CONTROL
    assert not any(ATTACK in one for one in waiting(victim))


async def test_a_client_cannot_connect_to_its_network_qube(chain: Chain) -> None:
    """No answer to the start of a TCP connection either: not even a refusal."""
    attacker = await Attacker.at(chain.app, "eth0")
    await chain.firewall.server(9999)
    outside = await chain.lab.outside.listener(7777)
    for port in (9999, 1):
        attacker.wire.send(frame(APP, FIREWALL, ports=(4444, port), protocol=socket.IPPROTO_TCP))
    attacker.wire.send(frame(APP, SERVER, CONTROL, ports=(4444, 7777)))
    assert await asyncio.to_thread(outside.recv, 100) == CONTROL
    answers = [one for one in waiting(attacker.wire) if one[12:14] == b"\x08\x00"]
    assert answers == []


async def test_a_client_reaches_no_other_client(chain: Chain) -> None:
    """Neighbours behind one network qube are strangers."""
    attacker = await Attacker.at(chain.app, "eth0")
    victim = await chain.neighbour.wire("eth0")
    outside = await chain.lab.outside.listener(7777)
    attack = [
        frame(APP, NEIGHBOUR),
        frame(APP, NEIGHBOUR, to_mac=b"\x00\x16\x3e\x5e\x6c\x00"),
        frame(APP, NEIGHBOUR, to_mac=b"\xff" * 6),
        frame(APP, "255.255.255.255", to_mac=b"\xff" * 6),
    ]
    for one in [*attack, frame(APP, SERVER, CONTROL, ports=(4444, 7777))]:
        attacker.wire.send(one)
    assert await asyncio.to_thread(outside.recv, 100) == CONTROL
    assert waiting(victim) == []


async def test_a_qube_without_network_has_nothing_but_loopback(lab: Lab) -> None:
    """No interface, no route: there is nothing to attack with."""
    await lab.chain()
    wallet = lab.box("wallet", 7)
    assert await wallet.interfaces() == {"lo"}
    assert wallet.sh("ip route; ip -6 route show table main") == ""
    sock = await wallet.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    lab.sockets.append(sock)
    with pytest.raises(OSError, match="unreachable"):
        sock.connect((str(SERVER), 53))


async def test_a_removed_client_is_cut_off_before_its_link_is(chain: Chain) -> None:
    """Taking the element out is enough: also running connections end, in both directions."""
    client = await chain.app.listener(5000)
    other = await chain.neighbour.listener(5001)
    outside = await chain.lab.outside.listener(8000, str(SERVER))
    peers = []
    for one in (client, other):
        one.sendto(b"before", (str(SERVER), 8000))
        peers.append((await asyncio.to_thread(outside.recvfrom, 100))[1])
    outside.sendto(b"answer", peers[0])
    assert await asyncio.to_thread(client.recv, 100) == b"answer"
    await chain.network.forget(chain.app.endpoint, chain.firewall.endpoint)
    client.sendto(ATTACK, (str(SERVER), 8000))
    other.sendto(CONTROL, (str(SERVER), 8000))
    assert await asyncio.to_thread(outside.recv, 100) == CONTROL
    outside.sendto(ATTACK, peers[0])
    outside.sendto(CONTROL, peers[1])
    assert await asyncio.to_thread(other.recv, 100) == CONTROL
    assert waiting(client) == []
