"""Attacks on the network by a qube, or a machine, that owns its namespace with full powers.

The attacker writes whole Ethernet frames on its end of a link, past all rules of its own.
Each attack is followed by a control packet on the same way, which must arrive:
frames on a link stay in order, so an attack packet that has not been seen by then never comes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from network_lab import (
    ATTACK,
    CONTROL,
    RESOLVER,
    SERVER,
    Box,
    Chain,
    Lab,
    frame,
    frame6,
    frames_until,
    laboratory,
    mac_of,
    waiting,
)

from caisson.errors import NetworkError
from caisson.network import Uplink
from caisson.network.addresses import outer_interface

APP, NEIGHBOUR, FIREWALL, NET = "10.137.0.3", "10.137.0.4", "10.137.0.2", "10.137.0.1"

NO_SOURCE_CHECK = "for i in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$i; done"


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A fresh laboratory."""
    async with laboratory() as made:
        yield made


@pytest.fixture
async def chain(lab: Lab) -> Chain:
    """App and neighbour → firewall → net → outside.

    The kernel's own check of sources is off: the rules must do without it.
    """
    chain = await lab.chain()
    chain.firewall.sh(NO_SOURCE_CHECK)
    chain.net.sh(NO_SOURCE_CHECK)
    return chain


@dataclass
class Attacker:
    """One end of a link in the hands of someone hostile."""

    wire: socket.socket
    mac: bytes

    @classmethod
    async def at(cls, box: Box, interface: str) -> Attacker:
        """Take over an interface."""
        wire = await box.wire(interface)
        return cls(wire, mac_of(wire))


async def passed(
    attacker: Attacker, attack: list[bytes], control: bytes, wire: socket.socket
) -> bool:
    """Send attack frames and the control; True when an attack packet was seen on the wire."""
    for one in [*attack, control]:
        attacker.wire.send(one)
    seen = await asyncio.to_thread(frames_until, wire, CONTROL)
    return any(ATTACK in one for one in seen)


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
async def test_a_forged_source_dies_at_the_first_hop(chain: Chain, source: str, protocol: int):
    """A client speaks with its own address only (QSB 004, QSB 056)."""
    attacker = await Attacker.at(chain.app, "eth0")
    behind = await chain.firewall.wire("eth0")
    real = frame(APP, SERVER, CONTROL, from_mac=attacker.mac)
    forged = frame(source, SERVER, from_mac=attacker.mac, protocol=protocol, ports=(4444, 4242))
    attacker.wire.send(forged)
    attacker.wire.send(real)
    seen = await asyncio.to_thread(frames_until, behind, CONTROL)
    assert len([one for one in seen if one[12:14] == b"\x08\x00"]) == 1


async def test_every_other_address_of_the_client_ranges_is_forged(chain: Chain):
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
):
    """A hostile net qube cannot speak as a client of the firewall qube, to any of them."""
    await _uplink_attack(chain, frame(source, target, to_mac=chain_mac(chain)))


@pytest.mark.parametrize("target", [APP, NEIGHBOUR, FIREWALL])
@pytest.mark.parametrize("protocol", [socket.IPPROTO_UDP, socket.IPPROTO_TCP])
async def test_unsolicited_packets_from_outside_reach_nobody(
    chain: Chain, target: str, protocol: int
):
    """Only answers come back, whatever the net qube routes this way."""
    attack = frame(SERVER, target, to_mac=chain_mac(chain), protocol=protocol)
    await _uplink_attack(chain, attack)


async def test_an_answer_that_was_not_asked_for_reaches_nobody(chain: Chain):
    """The right server and address with the wrong port is no answer."""
    attack = frame(SERVER, FIREWALL, to_mac=chain_mac(chain), ports=(8000, 50123))
    await _uplink_attack(chain, attack)


async def test_an_address_that_becomes_a_clients_is_not_believed_from_the_uplink(lab: Lab):
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


def chain_mac(chain: Chain) -> bytes:
    """The link-layer address of the firewall qube's uplink."""
    return bytes.fromhex(chain.firewall.endpoint.mac.replace(":", ""))


async def _uplink_attack(chain: Chain, attack: bytes) -> None:
    """Attack the firewall qube from the net qube; the control is an answer to the app."""
    client = await chain.app.listener(5000)
    own = await chain.firewall.listener(9999)
    victims = [await chain.app.wire("eth0"), await chain.neighbour.wire("eth0")]
    spy = await chain.net.wire("vif2")
    client.sendto(b"question", (str(SERVER), 8000))
    question = (await asyncio.to_thread(frames_until, spy, b"question"))[-1]
    (port,) = struct.unpack("!H", question[34:36])
    attacker = await Attacker.at(chain.net, "vif2")
    attacker.wire.send(attack)
    answer = frame(SERVER, FIREWALL, CONTROL, to_mac=chain_mac(chain), ports=(8000, port))
    attacker.wire.send(answer)
    assert await asyncio.to_thread(client.recv, 100) == CONTROL
    for victim in victims:
        frames = [one for one in waiting(victim) if one[12:14] == b"\x08\x00"]
        assert all(b"question" in one or CONTROL in one for one in frames)
    assert waiting(own) == []


@pytest.mark.parametrize("address", [FIREWALL, NET, "10.139.2.1"])
async def test_a_client_reaches_no_port_of_a_network_qube(chain: Chain, address: str):
    """Neither of its own network qube nor of those behind; the uplink's outer end is no qube."""
    attacker = await Attacker.at(chain.app, "eth0")
    services = [await box.listener(9999) for box in (chain.firewall, chain.net)]
    outside = await chain.lab.outside.listener(7777)
    attacker.wire.send(frame(APP, address))
    attacker.wire.send(frame(APP, SERVER, CONTROL, ports=(4444, 7777)))
    assert await asyncio.to_thread(outside.recv, 100) == CONTROL
    assert [waiting(service) for service in services] == [[], []]


async def test_what_is_no_lookup_does_not_leave_by_the_resolvers_stand_ins(chain: Chain):
    """Their addresses mean the resolver only; upstream they may be anybody's."""
    attacker = await Attacker.at(chain.app, "eth0")
    outside = await chain.lab.outside.wire(outer_interface(chain.lab.instance, 1))
    attack = [frame(APP, stand_in, ports=(4444, 80)) for stand_in in ("10.139.1.1", "10.139.1.2")]
    assert not await passed(attacker, attack, frame(APP, SERVER, CONTROL), outside)


async def test_a_qube_does_not_inherit_the_connections_of_another(chain: Chain):
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


async def test_a_client_cannot_connect_to_its_network_qube(chain: Chain):
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


async def test_a_client_reaches_no_other_client(chain: Chain):
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


async def test_ipv6_passes_in_neither_direction(chain: Chain):
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
    await _uplink_attack(chain, frame(SERVER, APP, to_mac=mac))
    assert not any(ATTACK in one for one in waiting(app.wire))
    assert waiting(neighbour) == []
    assert waiting(service) == []


async def test_without_its_rules_a_network_qube_would_pass_ipv6(chain: Chain):
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


async def test_without_its_rules_a_network_qube_would_pass_a_forged_source(chain: Chain):
    """The tests above can fail: with the rules gone, the same frame passes."""
    chain.firewall.sh(
        "nft flush ruleset;for i in all vif3; do echo 0 >/proc/sys/net/ipv4/conf/$i/rp_filter; done"
    )
    attacker = await Attacker.at(chain.app, "eth0")
    behind = await chain.firewall.wire("eth0")
    attack = [frame("192.168.1.1", SERVER)]
    assert await passed(attacker, attack, frame(APP, SERVER, CONTROL), behind)


async def test_a_qube_without_network_has_nothing_but_loopback(lab: Lab):
    """No interface, no route: there is nothing to attack with."""
    await lab.chain()
    wallet = lab.box("wallet", 7)
    assert await wallet.interfaces() == {"lo"}
    assert wallet.sh("ip route; ip -6 route show table main") == ""
    sock = await wallet.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    lab.sockets.append(sock)
    with pytest.raises(OSError, match="unreachable"):
        sock.connect((str(SERVER), 53))


async def test_a_network_qube_has_rules_before_it_has_a_link(lab: Lab):
    """A client that floods its end from the first moment never gets a forged packet through.

    The network qube restarts again and again; its rules are rewritten while the flood goes on.
    """
    uplink = lab.name_outside()
    network = lab.network()
    app = lab.box("app", 3)
    stop = threading.Event()
    wire = await app.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    lab.sockets.append(wire)
    sent = threading.Event()

    def flood() -> None:
        attack = frame(NEIGHBOUR, SERVER)
        while not stop.is_set():
            try:
                wire.sendto(attack, ("eth0", 0x0800))
                sent.set()
            except OSError:
                continue  # there is no link right now

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for _ in range(8):
            net = lab.box("sys-net", 1)
            await network.prepare(net.endpoint, [], uplink)
            behind = await net.wire("eth0")
            await network.plug(app.endpoint, net.endpoint)
            for _ in range(5):
                await network.prepare(net.endpoint, [app.endpoint], uplink)
            sent.clear()
            assert await asyncio.to_thread(sent.wait, 5)
            real = await app.listener(5000)
            real.sendto(CONTROL, (str(SERVER), 8000))
            seen = await asyncio.to_thread(frames_until, behind, CONTROL)
            real.close()
            assert not any(ATTACK in one for one in seen)
            net.end()
    finally:
        stop.set()
        await asyncio.to_thread(flooding.join)


async def test_a_removed_client_is_cut_off_before_its_link_is(chain: Chain):
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


class TestMachine:
    """Attacks on the machine by the qube that holds the uplink of the kind `nat`."""

    @pytest.fixture
    async def net(self, lab: Lab) -> Box:
        """A net qube whose machine is the laboratory's outside, with a world behind it."""
        world = lab.box("world", 9000)
        lab.outside.sh(
            f"ip link add up0 type veth peer name up1 netns {world.process.pid};"
            "ip addr add 203.0.113.2/24 dev up0; ip link set up0 up;"
            "ip route add default via 203.0.113.1"
        )
        world.sh(
            f"ip addr add 203.0.113.1/24 dev up1; ip link set up1 up; ip addr add {SERVER} dev lo"
        )
        net = lab.box("sys-net", 1)
        await lab.network().prepare(net.endpoint, [], Uplink())
        lab.outside.sh(NO_SOURCE_CHECK)
        return net

    def own(self, net: Box) -> str:
        """The net qube's address on its uplink."""
        return net.sh("ip -4 -o addr show dev eth0").split()[3].removesuffix("/32")

    async def test_the_metadata_service_of_a_cloud_is_out_of_reach(self, lab: Lab, net: Box):
        """It hands the machine's keys to whoever speaks with the machine's address.

        Class: confused deputy (server-side request forgery to a link-local address).
        """
        world = lab.boxes[1]
        world.sh("ip addr add 169.254.169.254/32 dev lo")
        metadata = await world.listener(9999)
        outside = await world.listener(7777)
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        own = self.own(net)
        attacker.wire.send(frame(own, "169.254.169.254", to_mac=mac))
        attacker.wire.send(frame(own, SERVER, CONTROL, to_mac=mac, ports=(4444, 7777)))
        assert await asyncio.to_thread(outside.recv, 100) == CONTROL
        assert waiting(metadata) == []

    @pytest.mark.parametrize("address", ["10.139.2.1", "203.0.113.2", "127.0.0.1"])
    async def test_the_machines_own_services_are_out_of_reach(
        self, lab: Lab, net: Box, address: str
    ):
        """On whichever of its addresses they listen."""
        service = await lab.outside.listener(9999)
        outside = await lab.boxes[1].listener(7777)
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        own = self.own(net)
        attacker.wire.send(frame(own, address, to_mac=mac))
        attacker.wire.send(frame(own, SERVER, CONTROL, to_mac=mac, ports=(4444, 7777)))
        assert await asyncio.to_thread(outside.recv, 100) == CONTROL
        assert waiting(service) == []

    async def test_a_redirection_by_another_table_leads_to_no_service(self, lab: Lab, net: Box):
        """A transparent proxy of the machine is a service of the machine."""
        lab.outside.sh(
            "nft add table ip of_another;"
            "nft add chain ip of_another pre '{ type nat hook prerouting priority -100; }';"
            "nft add rule ip of_another pre udp dport 80 redirect to :9999"
        )
        service = await lab.outside.listener(9999)
        outside = await lab.boxes[1].listener(7777)
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        own = self.own(net)
        attacker.wire.send(frame(own, SERVER, to_mac=mac, ports=(4444, 80)))
        attacker.wire.send(frame(own, SERVER, CONTROL, to_mac=mac, ports=(4444, 7777)))
        assert await asyncio.to_thread(outside.recv, 100) == CONTROL
        assert waiting(service) == []

    async def test_programs_of_the_machine_do_not_speak_to_a_net_qube(self, lab: Lab, net: Box):
        """Not even by mistake: the way back into a qube is for answers."""
        victim = await net.wire("eth0")
        sock = await lab.outside.listener(5000)
        with pytest.raises(PermissionError):
            sock.sendto(ATTACK, (self.own(net), 9999))
        assert not any(ATTACK in one for one in waiting(victim))

    async def test_a_service_that_the_machine_redirects_is_out_of_reach(self, lab: Lab, net: Box):
        """A published port of another container engine is a service of the machine."""
        lab.outside.sh(
            "nft add table ip of_another;"
            "nft add chain ip of_another pre '{ type nat hook prerouting priority -100; }';"
            f"nft add rule ip of_another pre udp dport 9999 dnat to {SERVER}:7777"
        )
        outside = await lab.boxes[1].listener(7777)
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        attacker.wire.send(frame(self.own(net), "203.0.113.2", to_mac=mac))
        attacker.wire.send(frame(self.own(net), SERVER, CONTROL, to_mac=mac, ports=(4444, 7777)))
        assert await asyncio.to_thread(outside.recv, 100) == CONTROL

    @pytest.mark.parametrize("source", ["10.139.2.1", "203.0.113.2", "203.0.113.9", APP])
    async def test_a_forged_source_never_leaves_the_machine(self, lab: Lab, net: Box, source: str):
        """The net qube itself is not believed either."""
        spy = await lab.outside.wire("up0")
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        control = frame(self.own(net), SERVER, CONTROL, to_mac=mac)
        assert not await passed(attacker, [frame(source, SERVER, to_mac=mac)], control, spy)

    async def test_the_world_reaches_no_net_qube(self, lab: Lab, net: Box):
        """A neighbour on the machine's network routes packets to the qube's address in vain."""
        world = await Attacker.at(lab.boxes[1], "up1")
        victim = await net.wire("eth0")
        client = await net.listener(5000)
        client.sendto(b"question", (str(SERVER), 8000))
        question = (await asyncio.to_thread(frames_until, world.wire, b"question"))[-1]
        (port,) = struct.unpack("!H", question[34:36])
        mac = question[6:12]
        world.wire.send(frame(SERVER, self.own(net), to_mac=mac))
        world.wire.send(frame(SERVER, "203.0.113.2", CONTROL, to_mac=mac, ports=(8000, port)))
        assert await asyncio.to_thread(client.recv, 100) == CONTROL
        assert not any(ATTACK in one for one in waiting(victim))

    async def test_two_net_qubes_do_not_reach_each_other(self, lab: Lab, net: Box):
        """The machine is no switch for them."""
        other = lab.box("sys-net-2", 2)
        await lab.network().prepare(other.endpoint, [], Uplink())
        outside = await lab.boxes[1].listener(7777)
        victim = await other.wire("eth0")
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        attacker.wire.send(frame(self.own(net), self.own(other), to_mac=mac))
        attacker.wire.send(frame(self.own(net), SERVER, CONTROL, to_mac=mac, ports=(4444, 7777)))
        assert await asyncio.to_thread(outside.recv, 100) == CONTROL
        assert waiting(victim) == []

    async def test_ipv6_does_not_leave_the_machine(self, lab: Lab, net: Box):
        """Even where the machine forwards IPv6."""
        name = outer_interface(lab.instance, 1)
        lab.outside.sh(
            "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding;"
            f"echo 0 >/proc/sys/net/ipv6/conf/{name}/disable_ipv6;"
            "ip -6 addr add fd00::2/128 dev up0 nodad; ip -6 route add default dev up0;"
            "ip -6 neigh add 2001:db8::1 lladdr fe:ff:ff:ff:ff:ff dev up0 nud permanent"
        )
        spy = await lab.outside.wire("up0")
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        control = frame(self.own(net), SERVER, CONTROL, to_mac=mac)
        attack = [frame6("fd00::3", "2001:db8::1", to_mac=mac)]
        assert not await passed(attacker, attack, control, spy)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/proc/1/ns/net", "a/b", "a\0b", "a b", "-x", "é", "a" * 65, "a\n"],
)
def test_a_namespace_name_cannot_leave_its_folder(name: str):
    """The feature is text that a delegated administrator may set."""
    with pytest.raises(NetworkError):
        Uplink.parse(f"netns:{name}")


async def test_a_namespace_name_that_is_a_plain_file_is_refused(lab: Lab):
    """Only a network namespace is entered; here the name is a mount point left empty."""
    lab.name_outside()
    net = lab.box("sys-net", 1)
    path = Path("/run/netns") / f"{lab.outside_name}-file"
    path.write_text("")
    try:
        with pytest.raises(NetworkError, match="does not exist"):
            await lab.network().prepare(net.endpoint, [], Uplink.parse(f"netns:{path.name}"))
    finally:
        path.unlink()
