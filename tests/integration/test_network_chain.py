"""The network of qubes, with real namespaces, links, rules and packets."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from network_lab import PATIENCE, RESOLVER, SERVER, Box, Lab, laboratory

from caisson.errors import InternalError, NetworkError
from caisson.network import Network, Uplink, nft
from caisson.network.addresses import OUTER_ADDRESS, inner_addresses, outer_interface
from caisson.network.namespaces import Namespace


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A fresh laboratory."""
    async with laboratory() as made:
        yield made


async def exchange(client: Box, server: Box, address: IPv4Address, port: int) -> bytes:
    """Connect from one box to another over TCP; the server answers with whom it saw."""
    listener = await server.server(port)
    connection = await client.call(socket.socket)
    connection.settimeout(PATIENCE)
    client.lab.sockets.append(connection)
    await asyncio.to_thread(connection.connect, (str(address), port))
    accepted, peer = await asyncio.to_thread(listener.accept)
    with accepted:
        accepted.sendall(f"you are {peer[0]}".encode())
    return await asyncio.to_thread(connection.recv, 100)


async def test_app_speaks_tcp_through_two_network_qubes_to_the_world_outside(lab: Lab):
    """The world sees the address of the last qube only."""
    chain = await lab.chain()
    answer = await exchange(chain.app, lab.outside, SERVER, 8000)
    assert answer.startswith(b"you are 10.139.")


async def test_the_outer_end_has_the_gateway_address(lab: Lab):
    """A server on the outer end's address is reached, as the demonstration does."""
    chain = await lab.chain()
    answer = await exchange(chain.app, lab.outside, OUTER_ADDRESS, 8000)
    assert answer.startswith(b"you are 10.139.")


async def test_network_qubes_use_the_network_themselves(lab: Lab):
    """A firewall qube can reach the outside, for its own updates."""
    chain = await lab.chain()
    assert (await exchange(chain.firewall, lab.outside, SERVER, 8000)).startswith(b"you are")
    assert (await exchange(chain.net, lab.outside, SERVER, 8001)).startswith(b"you are")


@pytest.mark.parametrize("asker", ["app", "firewall", "net"])
async def test_dns_queries_reach_the_real_resolver(lab: Lab, asker: str):
    """Both stand-ins lead there, from every qube of the chain."""
    chain = await lab.chain()
    resolver = await lab.outside.listener(53, str(RESOLVER))
    client = await getattr(chain, asker).listener(5353)
    for stand_in in ("10.139.1.1", "10.139.1.2"):
        client.sendto(b"query", (stand_in, 53))
        query, peer = await asyncio.to_thread(resolver.recvfrom, 100)
        resolver.sendto(b"answer", peer)
        answer, source = await asyncio.to_thread(client.recvfrom, 100)
        assert (query, answer, source) == (b"query", b"answer", (stand_in, 53))


async def test_a_qube_has_one_interface_with_its_own_address_and_no_ipv6(lab: Lab):
    """A link has exactly the addresses and routes that the model says."""
    chain = await lab.chain()
    assert await chain.app.interfaces() == {"lo", "eth0"}
    assert "00:16:3e:5e:6c:00" in chain.app.sh("ip link show eth0")
    assert chain.app.sh("ip -6 address show dev eth0") == ""
    assert chain.firewall.sh("ip -6 address show dev vif3") == ""
    routes = [line.split(" proto")[0] for line in chain.app.sh("ip route").splitlines()]
    assert routes == ["default via 10.137.0.2 dev eth0", "10.137.0.2 dev eth0"]


async def test_no_interface_of_a_qube_is_seen_in_the_machine(lab: Lab):
    """Links between qubes appear directly inside; of the uplink only the outer end is outside."""
    own = set(socket.if_nameindex())
    await lab.chain()
    assert set(socket.if_nameindex()) == own
    assert await lab.outside.interfaces() == {"lo", outer_interface(lab.instance, 1)}


async def test_doing_everything_again_changes_nothing(lab: Lab):
    """A restarted daemon adopts: the same interfaces, and an open connection goes on."""
    chain = await lab.chain()
    listener = await lab.outside.server(8000)
    connection = await chain.app.call(socket.socket)
    lab.sockets.append(connection)
    connection.settimeout(PATIENCE)
    await asyncio.to_thread(connection.connect, (str(SERVER), 8000))
    accepted, _ = await asyncio.to_thread(listener.accept)
    boxes = (chain.app, chain.firewall, chain.net, lab.outside)
    before = [await box.call(socket.if_nameindex) for box in boxes]
    again = lab.network()
    clients = [chain.app.endpoint, chain.neighbour.endpoint]
    await again.prepare(chain.net.endpoint, [chain.firewall.endpoint], chain.uplink)
    await again.prepare(chain.firewall.endpoint, clients)
    await again.plug(chain.firewall.endpoint, chain.net.endpoint)
    for client in clients:
        await again.plug(client, chain.firewall.endpoint)
    assert [await box.call(socket.if_nameindex) for box in boxes] == before
    with accepted:
        accepted.sendall(b"still here")
        assert await asyncio.to_thread(connection.recv, 100) == b"still here"


async def test_preparing_again_puts_out_clients_that_are_not_named(lab: Lab):
    """What ended while the daemon was away is no longer let in."""
    chain = await lab.chain()
    await chain.network.prepare(chain.firewall.endpoint, [chain.app.endpoint])
    elements = (
        await chain.firewall.nft(
            {"list": {"set": {"family": "inet", "table": "caisson", "name": "clients"}}}
        )
    )[0]["set"]["elem"]
    assert elements == [{"concat": ["vif3", "10.137.0.3"]}]


async def test_a_running_qube_moves_to_another_network_qube(lab: Lab):
    """Nothing of the old link is left, and the new one works."""
    chain = await lab.chain()
    network = chain.network
    await network.unplug(chain.app.endpoint, chain.firewall.endpoint)
    assert await chain.app.interfaces() == {"lo"}
    assert await chain.firewall.interfaces() == {"lo", "eth0", "vif4"}
    await network.plug(chain.app.endpoint, chain.net.endpoint)
    assert (await exchange(chain.app, lab.outside, SERVER, 8000)).startswith(b"you are")


async def test_plugging_replaces_a_link_that_leads_elsewhere(lab: Lab):
    """Without an unplug before: the old link must not survive beside the new one."""
    chain = await lab.chain()
    await chain.network.plug(chain.app.endpoint, chain.net.endpoint)
    assert "vif3" not in await chain.firewall.interfaces()
    assert (await exchange(chain.app, lab.outside, SERVER, 8000)).startswith(b"you are")


async def test_plugging_with_another_address_replaces_the_link(lab: Lab):
    """The property `ip` was changed while the qube runs."""
    chain = await lab.chain()
    await chain.network.unplug(chain.app.endpoint, chain.firewall.endpoint)
    await chain.network.plug(chain.app.endpoint, chain.firewall.endpoint)
    moved = replace(chain.app.endpoint, address=IPv4Address("10.137.0.33"))
    await chain.network.plug(moved, chain.firewall.endpoint)
    assert "10.137.0.33/32" in chain.app.sh("ip -4 -o addr show dev eth0")
    assert (await exchange(chain.app, lab.outside, SERVER, 8000)).startswith(b"you are")


async def test_two_links_with_the_same_numbers_are_told_apart(lab: Lab):
    """The kernel numbers interfaces by namespace: equal numbers prove nothing."""
    network = lab.network()
    first, second = lab.box("sys-net", 1), lab.box("sys-net-2", 2)
    app, other = lab.box("app", 3), lab.box("other", 3)
    for provider, client in ((first, app), (second, other)):
        await network.prepare(provider.endpoint)
        await network.plug(client.endpoint, provider.endpoint)
    await network.plug(other.endpoint, first.endpoint)
    assert await app.interfaces() == {"lo"}
    assert await second.interfaces() == {"lo"}
    assert "10.137.0.1" in other.sh("ip route")


async def test_the_kernel_checks_sources_too(lab: Lab):
    """A second wall behind the rules, on the ends that clients are plugged to."""
    chain = await lab.chain()
    assert chain.firewall.sh("cat /proc/sys/net/ipv4/conf/vif3/rp_filter") == "1\n"
    name = outer_interface(lab.instance, 1)
    assert lab.outside.sh(f"cat /proc/sys/net/ipv4/conf/{name}/rp_filter") == "1\n"


async def test_the_program_nft_does_where_the_library_is_missing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    """The same rules, from a child process in the right namespace."""
    with_library = await (await lab.chain()).firewall.ruleset()
    monkeypatch.setattr(nft, "_library", lambda: None)
    network = lab.network()
    firewall = lab.box("sys-firewall", 2)
    neighbour, app = lab.box("neighbour", 4), lab.box("app", 3)
    await network.prepare(firewall.endpoint, [app.endpoint])
    await network.plug(neighbour.endpoint, firewall.endpoint)
    monkeypatch.undo()
    assert await firewall.ruleset() == with_library


async def test_a_network_qube_that_restarts_gets_its_clients_back(lab: Lab):
    """The clients keep running; their links are made anew."""
    chain = await lab.chain()
    chain.firewall.end()
    fresh = lab.box("sys-firewall", 2)
    await chain.network.prepare(fresh.endpoint, [chain.app.endpoint])
    await chain.network.plug(fresh.endpoint, chain.net.endpoint)
    await chain.network.plug(chain.app.endpoint, fresh.endpoint)
    assert (await exchange(chain.app, lab.outside, SERVER, 8000)).startswith(b"you are")


async def test_a_qube_that_restarts_gets_a_link_at_once(lab: Lab):
    """The interface of its former life may still be there."""
    chain = await lab.chain()
    chain.app.end()
    fresh = lab.box("app", 3)
    await chain.network.plug(fresh.endpoint, chain.firewall.endpoint)
    assert (await exchange(fresh, lab.outside, SERVER, 8000)).startswith(b"you are")


async def test_qubes_in_user_namespaces_of_their_own_are_linked(lab: Lab):
    """The network namespace of a container belongs to its user namespace."""
    uplink = lab.name_outside()
    network = lab.network()
    net, app = lab.box("sys-net", 1, user=True), lab.box("app", 3, user=True)
    await network.prepare(net.endpoint, [app.endpoint], uplink)
    await network.plug(app.endpoint, net.endpoint)
    assert (await exchange(app, lab.outside, SERVER, 8000)).startswith(b"you are")


async def test_plugging_to_an_unprepared_network_qube_is_refused(lab: Lab):
    """No link without rules; nothing is left of the attempt."""
    network = lab.network()
    net, app = lab.box("sys-net", 1), lab.box("app", 3)
    with pytest.raises(NetworkError):
        await network.plug(app.endpoint, net.endpoint)
    assert await app.interfaces() == {"lo"}
    assert await net.interfaces() == {"lo"}


async def test_a_taken_address_is_refused_and_leaves_nothing(lab: Lab):
    """The first qube with the address keeps its link and its rule."""
    chain = await lab.chain()
    thief = lab.box("thief", 5)
    endpoint = replace(thief.endpoint, address=chain.app.endpoint.address)
    with pytest.raises(NetworkError, match=r"`10\.137\.0\.3` is taken"):
        await chain.network.plug(endpoint, chain.firewall.endpoint)
    assert await thief.interfaces() == {"lo"}
    assert "vif5" not in await chain.firewall.interfaces()
    assert "vif5" not in str(await chain.firewall.ruleset())
    assert (await exchange(chain.app, lab.outside, SERVER, 8000)).startswith(b"you are")


async def test_a_process_that_is_gone_is_named_with_a_hint(lab: Lab):
    """A qube can end at any moment."""
    chain = await lab.chain()
    chain.app.end()
    with pytest.raises(NetworkError, match="is gone") as refused:
        await chain.network.plug(chain.app.endpoint, chain.firewall.endpoint)
    assert refused.value.hint


async def test_a_process_of_another_user_is_not_taken_for_the_qube(lab: Lab):
    """A process id that was given to another process must not plug that one."""
    chain = await lab.chain()
    stranger = replace(chain.app.endpoint, uid_base=0x7000_0000)
    with pytest.raises(NetworkError, match="not of the qube"):
        await chain.network.plug(stranger, chain.firewall.endpoint)


async def test_the_machine_itself_is_never_plugged(lab: Lab):
    """A process in the machine's namespace is no qube."""
    chain = await lab.chain()
    machine = replace(chain.app.endpoint, pid=os.getpid())
    with pytest.raises(NetworkError, match="shares the machine's network"):
        await chain.network.plug(machine, chain.firewall.endpoint)


def test_the_main_thread_never_leaves_its_namespace():
    """Every socket of the daemon would follow it."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    with Namespace(own, "our own") as namespace, pytest.raises(InternalError):
        namespace.run(os.getpid)


async def test_forgetting_a_client_takes_its_element_out(lab: Lab):
    """Also when the network qube is gone: then there is nothing to do."""
    chain = await lab.chain()
    chain.app.end()
    await chain.network.forget(chain.app.endpoint, chain.firewall.endpoint)
    assert "10.137.0.3" not in str(
        await chain.firewall.nft(
            {"list": {"set": {"family": "inet", "table": "caisson", "name": "clients"}}}
        )
    )
    chain.firewall.end()
    await chain.network.forget(chain.neighbour.endpoint, chain.firewall.endpoint)
    await chain.network.unplug(chain.neighbour.endpoint, chain.firewall.endpoint)


class TestUplink:
    """The end of the chain."""

    async def world(self, lab: Lab) -> tuple[Network, Box, Box]:
        """A machine with an interface to the world: the world answers no private address."""
        world = lab.box("world", 9000)
        pid = world.process.pid
        lab.outside.sh(
            f"ip link add up0 type veth peer name up1 netns {pid};"
            "ip addr add 203.0.113.2/24 dev up0; ip link set up0 up;"
            "ip route add default via 203.0.113.1"
        )
        world.sh(
            f"ip addr add 203.0.113.1/24 dev up1; ip link set up1 up; ip addr add {SERVER} dev lo"
        )
        return lab.network(), lab.outside, world

    async def test_nat_reaches_the_world_with_the_machines_address(self, lab: Lab):
        """The world sees the machine, and nothing else has to be set up."""
        network, _, world = await self.world(lab)
        net, app = lab.box("sys-net", 1), lab.box("app", 3)
        await network.prepare(net.endpoint, [app.endpoint], Uplink())
        await network.plug(app.endpoint, net.endpoint)
        assert await exchange(app, world, SERVER, 8000) == b"you are 203.0.113.2"

    async def test_taking_it_down_leaves_nothing_and_touches_nothing_else(self, lab: Lab):
        """The tables of others stay as they are."""
        network, machine, _ = await self.world(lab)
        await machine.nft({"add": {"table": {"family": "inet", "name": "of_another"}}})
        net = lab.box("sys-net", 1)
        before = await machine.ruleset(), machine.sh("ip route"), await machine.interfaces()
        await network.prepare(net.endpoint, [], Uplink())
        assert await machine.interfaces() == before[2] | {outer_interface(lab.instance, 1)}
        await network.drop_uplink(1, Uplink())
        assert before == (
            await machine.ruleset(),
            machine.sh("ip route"),
            await machine.interfaces(),
        )
        await network.drop_uplink(1, Uplink())

    async def test_two_instances_share_a_machine(self, lab: Lab):
        """Taking one down leaves the other at work."""
        first, machine, world = await self.world(lab)
        second = lab.network(instance="")
        one, two = lab.box("sys-net", 1), lab.box("sys-net", 1)
        await first.prepare(one.endpoint, [], Uplink())
        await second.prepare(two.endpoint, [], Uplink())
        assert await exchange(one, world, SERVER, 8000) == b"you are 203.0.113.2"
        await first.drop_uplink(1, Uplink())
        assert await exchange(two, world, SERVER, 8001) == b"you are 203.0.113.2"
        assert lab.instance not in str(await machine.ruleset())

    async def test_sweeping_removes_what_ended_qubes_left(self, lab: Lab):
        """A daemon that was away while a qube ended cleans up after it."""
        network, machine, world = await self.world(lab)
        stays, ends = lab.box("sys-net", 1), lab.box("sys-net-2", 2)
        await network.prepare(stays.endpoint, [], Uplink())
        await network.prepare(ends.endpoint, [], Uplink())
        await network.sweep({1})
        assert await machine.interfaces() == {"lo", "up0", outer_interface(lab.instance, 1)}
        assert outer_interface(lab.instance, 2) not in str(await machine.ruleset())
        assert await exchange(stays, world, SERVER, 8000) == b"you are 203.0.113.2"
        await network.sweep(())
        assert await machine.interfaces() == {"lo", "up0"}
        assert lab.instance not in str(await machine.ruleset())

    async def test_none_is_no_uplink(self, lab: Lab):
        """A chain may end in nothing."""
        network = lab.network()
        net = lab.box("sys-net", 1)
        await network.prepare(net.endpoint, [], Uplink.parse("none"))
        assert await net.interfaces() == {"lo"}
        assert await lab.outside.interfaces() == {"lo"}

    async def test_a_missing_namespace_is_named_with_a_hint(self, lab: Lab):
        """The error says how to make it."""
        net = lab.box("sys-net", 1)
        with pytest.raises(NetworkError, match="does not exist") as refused:
            await lab.network().prepare(net.endpoint, [], Uplink.parse("netns:nowhere-at-all"))
        assert "ip netns add nowhere-at-all" in str(refused.value)
        assert await net.interfaces() == {"lo"}

    async def test_a_failure_leaves_neither_interface_nor_table(self, lab: Lab):
        """Here the machine already routes every address that the uplink could have."""
        net = lab.box("sys-net", 1)
        for address in inner_addresses(lab.instance, 1):
            lab.outside.sh(f"ip route replace unreachable {address}/32")
        with pytest.raises(NetworkError, match="is taken"):
            await lab.network().prepare(net.endpoint, [], Uplink())
        assert await lab.outside.interfaces() == {"lo"}
        assert await lab.outside.ruleset() == await lab.box("empty", 9).ruleset()
        assert await net.interfaces() == {"lo"}


async def test_the_doctor_finds_a_firewall_that_drops_forwarded_packets(lab: Lab):
    """Docker's policy is the usual one; its remedy is named."""
    network = lab.network()
    assert {f.name: f.ok for f in await network.doctor()}["network links"]
    lab.outside.sh(
        "nft add table ip filter;"
        "nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'"
    )
    (finding,) = [f for f in await network.doctor() if f.name == "network forwarding"]
    assert not finding.ok
    assert "DOCKER-USER" in finding.remedy


def test_nothing_of_the_laboratory_is_left():
    """Runs last in this file: no named namespace of a test outlives it."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert Lab.names.isdisjoint(listed.stdout.split())
