"""Attacks on the machine by the qube that holds its uplink.

The attacker writes whole Ethernet frames on its end of a link, past all rules of its own.
Each attack is followed by a control packet on the same way, which must arrive:
frames on a link stay in order, so an attack packet that has not been seen by then never comes.
"""

from __future__ import annotations

import asyncio
import struct

import pytest
from network_attacker import APP, NO_SOURCE_CHECK, Attacker, lab, passed
from network_lab import ATTACK, CONTROL, SERVER, Box, Lab, frame, frame6, frames_until, waiting

from caisson.network import Uplink
from caisson.network.addresses import outer_interface

__all__ = ["lab"]


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

    async def test_the_metadata_service_of_a_cloud_is_out_of_reach(
        self, lab: Lab, net: Box
    ) -> None:
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
    ) -> None:
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

    async def test_a_redirection_by_another_table_leads_to_no_service(
        self, lab: Lab, net: Box
    ) -> None:
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

    async def test_programs_of_the_machine_do_not_speak_to_a_net_qube(
        self, lab: Lab, net: Box
    ) -> None:
        """Not even by mistake: the way back into a qube is for answers."""
        victim = await net.wire("eth0")
        sock = await lab.outside.listener(5000)
        with pytest.raises(PermissionError):
            sock.sendto(ATTACK, (self.own(net), 9999))
        assert not any(ATTACK in one for one in waiting(victim))

    async def test_a_service_that_the_machine_redirects_is_out_of_reach(
        self, lab: Lab, net: Box
    ) -> None:
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
    async def test_a_forged_source_never_leaves_the_machine(
        self, lab: Lab, net: Box, source: str
    ) -> None:
        """The net qube itself is not believed either."""
        spy = await lab.outside.wire("up0")
        attacker = await Attacker.at(net, "eth0")
        mac = b"\xfe" + b"\xff" * 4 + b"\xfe"
        control = frame(self.own(net), SERVER, CONTROL, to_mac=mac)
        assert not await passed(attacker, [frame(source, SERVER, to_mac=mac)], control, spy)

    async def test_the_world_reaches_no_net_qube(self, lab: Lab, net: Box) -> None:
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

    async def test_two_net_qubes_do_not_reach_each_other(self, lab: Lab, net: Box) -> None:
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

    async def test_ipv6_does_not_leave_the_machine(self, lab: Lab, net: Box) -> None:
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
