"""The links of running qubes follow the model, with real namespaces."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from model_world import World
from network_lab import Box, Lab, laboratory

from caisson.engines import Instance
from caisson.lifecycle.ledger import Ledger
from caisson.lifecycle.links import UPLINK, Links
from caisson.model import PowerState
from caisson.names import FeatureName
from caisson.network.addresses import outer_interface


class Running:
    """A model whose running qubes are boxes of a laboratory."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.world = World()
        self.world.network()
        self.uplink = lab.name_outside()
        self.let_out("sys-net")
        # Links read the model and the running instances; they enter nothing.
        self.ledger = Ledger(self.world.system, store=None, door=None)
        self.links = Links(self.ledger, lab.network())
        self.boxes: dict[str, Box] = {}

    def let_out(self, name: str) -> None:
        """Give a qube the laboratory's outside as its uplink."""
        qube = self.world.qube(name)
        value = f"netns:{self.uplink.namespace}"
        self.world.do(self.world.system.plan_feature(qube, FeatureName(UPLINK), value))

    async def start(self, name: str) -> Box:
        """Start a qube, as the lifecycle does."""
        qube = self.world.qube(name)
        box = self.lab.box(name, qube.qid)
        power = self.ledger.power(qube)
        power.instance = Instance(name, qube.name, box.process.pid, 0, time.time())
        power.state = PowerState.RUNNING
        await self.links.bring_up(qube, power.instance)
        self.boxes[name] = box
        return box

    async def end(self, name: str) -> None:
        """End a qube, as the lifecycle does."""
        qube = self.world.qube(name)
        self.boxes.pop(name).end()
        power = self.ledger.power(qube)
        power.instance, power.state = None, PowerState.HALTED
        await self.links.take_down(qube)

    async def move(self, name: str, netvm: str) -> None:
        """Give a running qube another network qube."""
        self.world.set(name, "netvm", netvm)
        qube = self.world.qube(name)
        instance = self.ledger.power(qube).instance
        assert instance is not None
        await self.links.move(qube, instance)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """sys-net, sys-firewall and work, all up."""
    async with laboratory() as lab:
        world = Running(lab)
        world.world.app("work")
        for name in ("sys-net", "sys-firewall", "work"):
            await world.start(name)
        yield world


def vif(running: Running, name: str) -> str:
    """The interface of a qube in its network qube."""
    return f"vif{running.world.qube(name).qid}"


async def test_the_chain_comes_up_as_the_model_says(running: Running):
    """One link each; the outer end belongs to the qube without a network qube."""
    assert await running.boxes["work"].interfaces() == {"lo", "eth0"}
    assert vif(running, "work") in await running.boxes["sys-firewall"].interfaces()
    qid = running.world.qube("sys-net").qid
    assert await running.lab.outside.interfaces() == {
        "lo",
        outer_interface(running.lab.instance, qid),
    }


async def test_a_network_qube_starts_though_a_client_is_ending(running: Running):
    """The client's process is gone, but nobody has been told yet."""
    await running.end("sys-firewall")
    running.boxes["work"].end()
    box = await running.start("sys-firewall")
    assert await box.interfaces() == {"lo", "eth0"}


async def test_the_end_of_a_chain_becomes_a_link_of_one_and_back(running: Running):
    """Its uplink goes and comes, with its rules; clients keep their links."""
    running.let_out("sys-firewall")
    firewall, outside = running.boxes["sys-firewall"], running.lab.outside
    qid = running.world.qube("sys-firewall").qid
    name = outer_interface(running.lab.instance, qid)
    await running.move("sys-firewall", "")
    assert name in await outside.interfaces()
    assert "dnat" in str(await firewall.ruleset())
    await running.move("sys-firewall", "sys-net")
    assert name not in await outside.interfaces()
    assert "dnat" not in str(await firewall.ruleset())
    assert {"eth0", vif(running, "work")} <= await firewall.interfaces()
    routes = running.boxes["work"].sh("ip route")
    assert routes.startswith("default via ")


async def test_ending_everything_leaves_nothing_outside(running: Running):
    """In any order: here the end of the chain goes first."""
    for name in ("sys-net", "work", "sys-firewall"):
        await running.end(name)
    assert await running.lab.outside.interfaces() == {"lo"}
