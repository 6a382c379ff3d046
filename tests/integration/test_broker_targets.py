"""Targets that the broker has started or made for a call, and how they go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from broker_rig import ALLOW, Rig, broker_rig, outcome, until

from caisson.names import QubeName

pytestmark = pytest.mark.root


async def test_halted_target_is_started_once_for_all_callers():
    """Callers that come together share one start."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.add("vault", state="Halted")
        gate = asyncio.Event()

        async def start(op: str, name: str, source: str) -> str:
            await gate.wait()
            await rig.link.open_qube(QubeName(name))
            return name

        rig.on_request = start
        clients = [await rig.call("work", "vault", f"my.S{n}") for n in range(5)]
        await until(lambda: bool(rig.requests))
        gate.set()
        await until(lambda: rig.socket("vault").exists())
        agent = await rig.agent("vault")
        for _ in clients:
            await (await agent.next_call()).end(0)
        assert [await outcome(c) for c in clients] == [b"X0"] * 5
        assert rig.requests == [("start", "vault", "work")]


async def test_failed_start_tells_the_caller_no_more_than_that():
    """125 for the caller; the reason stands in the audit log only."""
    async with broker_rig("* * work @default allow target=secret-vault\n") as rig:
        await rig.run("work")
        await rig.add("secret-vault", state="Halted")
        message = await outcome(await rig.call("work", "", "my.Service"))
        assert message.startswith(b"E125\0")
        assert b"secret" not in message
        record = await rig.audited(service="my.Service")
        assert "nothing starts in this test" in record["reason"]


async def test_autostart_no_denies_a_halted_target():
    """The rule may forbid the start."""
    async with broker_rig("* * work vault allow autostart=no\n") as rig:
        await rig.run("work")
        await rig.add("vault", state="Halted")
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
        assert rig.requests == []


@asynccontextmanager
async def disposables(policy: str) -> AsyncIterator[Rig]:
    """An instance whose qubesd makes disposables."""
    async with broker_rig(policy) as rig:
        await rig.run("work", default_dispvm="dvm")
        await rig.add("dvm", state="Halted", template_for_dispvms=True)

        async def make(op: str, name: str, source: str) -> str:
            if op == "disposable":
                await rig.add("disp1", type="DispVM")
                await rig.link.open_qube(QubeName("disp1"))
                return "disp1"
            if op == "discard":
                await rig.link.close_qube(QubeName(name))
                await rig.link.push({}, [name])
            return name

        rig.on_request = make
        yield rig


async def test_disposable_serves_one_call_and_is_discarded():
    """`@dispvm` gives a qube of its own, which ends with the call."""
    async with disposables("* * work @dispvm allow\n") as rig:
        client = await rig.call("work", "@dispvm", "my.Service")
        await until(lambda: rig.socket("disp1").exists())
        agent = await rig.agent("disp1")
        await (await agent.next_call()).end(3)
        assert await outcome(client) == b"X3"
        await until(lambda: len(rig.requests) >= 2)
        assert rig.requests == [("disposable", "dvm", "work"), ("discard", "disp1", "dom0")]
        assert (await rig.audited(service="my.Service"))["target"] == "disp1"


async def test_disposable_is_discarded_when_the_caller_goes():
    """Nobody waits for the answer: the qube is not kept, however far it had come."""
    async with disposables("* * work @dispvm allow\n") as rig:
        client = await rig.call("work", "@dispvm", "my.Service")
        await until(lambda: bool(rig.requests))
        client.close()
        await until(lambda: ("discard", "disp1", "dom0") in rig.requests)
        await rig.audited(service="my.Service", ended="caller-gone")


async def test_disposable_is_discarded_when_the_broker_dies():
    """Nobody is left who would know when its call ends: qubesd discards it."""
    async with disposables("* * work @dispvm allow\n") as rig:
        await rig.call("work", "@dispvm", "my.Service")
        await until(lambda: rig.socket("disp1").exists())
        agent = await rig.agent("disp1")
        (await agent.next_call()).close()
        await rig.kill_broker()
        await until(lambda: ("discard", "disp1", "dom0") in rig.requests)
        rig.start_broker()
        await rig.ready()
