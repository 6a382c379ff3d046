"""What becomes of qubes and calls when the broker, qubesd or a qube ends and comes back."""

from __future__ import annotations

import os

import pytest
from broker_rig import ALLOW, broker_rig, outcome

from caisson.names import QubeName

pytestmark = pytest.mark.root


async def test_killed_broker_comes_back_to_running_qubes():
    """Kill -9 at any time: sessions end, agents come back, and calls pass again."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Old")
        old = await agent.next_call()
        await rig.kill_broker()
        assert (await agent.peer.receive())[0] == b""
        assert await outcome(client) == b""
        rig.start_broker()
        await rig.ready()
        agent = await rig.agent("vault")
        assert (await rig.audited(service="my.Old"))["ended"] == "broker-gone"
        # The exit code of a call of the former broker means nothing to this one.
        await agent.peer.send(b"X%d\x007" % old.id)
        client = await rig.call("work", "vault", "my.New")
        await (await agent.next_call()).end(0)
        assert await outcome(client) == b"X0"
        assert rig.hellos.count(("vault", os.getpid())) == 2
        old.close()


async def test_calls_in_flight_outlive_qubesd():
    """Qubesd is killed and comes back: agents stay admitted, running calls go on."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Old")
        old = await agent.next_call()
        await rig.link.close()
        waiting = await rig.call("work", "vault", "my.Waiting")
        await old.end(1)
        assert await outcome(client) == b"X1"
        rig.hellos.clear()
        await rig.start_daemon("work", "vault")
        await (await agent.next_call()).end(2)
        assert await outcome(waiting) == b"X2"
        assert sorted(rig.hellos) == [("vault", os.getpid()), ("work", os.getpid())]


async def test_nothing_is_decided_without_qubesd():
    """Nobody knows what exists any more: calls wait a little, and then are refused."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.run("vault")
        await rig.link.close()
        message = await outcome(await rig.call("work", "vault", "my.Service"))
        assert message.startswith(b"E125\0")


async def test_nothing_is_decided_while_qubesd_starts():
    """A link that is taken, but not served yet, is as good as none; then it tells everything."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.link.close()
        rig.link = rig.make_link()
        rig.link.bind()
        message = await outcome(await rig.call("work", "vault", "my.Early"))
        assert message.startswith(b"E125\0")
        await rig.link.replace(rig.domains)
        for name in ("work", "vault"):
            await rig.link.open_qube(QubeName(name))
        await rig.link.start()
        await rig.ready()
        client = await rig.call("work", "vault", "my.Late")
        await (await agent.next_call()).end(0)
        assert await outcome(client) == b"X0"


async def test_qubes_that_ended_while_the_broker_was_away_are_closed():
    """After it comes back, the broker serves the qubes that run, and no others."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.run("vault")
        await rig.kill_broker()
        await rig.link.close_qube(QubeName("vault"))
        rig.start_broker()
        await rig.ready()
        assert not rig.socket("vault").parent.exists()
        assert rig.socket("work").exists()


async def test_end_of_the_target_ends_its_calls():
    """The caller is not left waiting: 255, and words that tell it from a service's own 255."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        (await agent.next_call()).close()
        await rig.link.close_qube(QubeName("vault"))
        assert await outcome(client) == b"E255\0the connection to the other qube was lost"
        await rig.audited(service="my.Service", ended="target-gone")
