"""Disposables that a daemon of the wire protocol has made for calls."""

from __future__ import annotations

import asyncio

import pytest
from fake_agent import CONNECT, IDENT, PATIENCE, REFUSED, TERMINATED, params, trigger
from wire_rig import UUIDS, VAULT, WORK, allow, wire

from caisson.qrexec.vchan import peers


@pytest.mark.parametrize("ends", ["call", "caller", "daemon"])
async def test_disposable_lives_as_long_as_its_call(ends: str):
    """It is made, started, called by its uuid, and killed at the end, whoever tells of that."""
    base = "00000000-0000-4000-8000-000000000009"
    async with wire(lambda _: allow("@dispvm:base", target_uuid=f"@dispvm:uuid:{base}")) as rig:
        work = await rig.qube("work", WORK)
        ended = asyncio.Event()
        made = f"uuid:{UUIDS['vault']}"

        async def act(method: str, _name: str, _payload: bytes) -> bytes:
            match method:
                case "admin.vm.CreateDisposable":
                    return made.encode()
                case "admin.vm.Start":
                    await rig.qube("vault", VAULT)
                case _:
                    ended.set()
            return b""

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        connect = await work.next()
        assert (connect.kind, connect.params) == (CONNECT, (VAULT, 513))
        assert [act[0] for act in rig.acts] == ["admin.vm.CreateDisposable", "admin.vm.Start"]
        assert rig.acts[0] == ("admin.vm.CreateDisposable", f"uuid:{base}", b"uuid")
        if ends == "call":
            rig.agents[1].send(params(TERMINATED, WORK, 513))
        elif ends == "caller":
            # The disposable does not say so: it would outlive its caller, as long as it likes.
            work.send(params(TERMINATED, VAULT, 513))
        else:
            rig.running["work"].cancel()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert rig.acts[2] == ("admin.vm.Kill", made, b"")


async def test_disposable_that_is_made_while_its_daemon_ends_is_killed():
    """Its name is waited for."""
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        asked, go = asyncio.Event(), asyncio.Event()

        async def act(_method: str, _name: str, _payload: bytes) -> bytes:
            asked.set()
            await go.wait()
            return b"disp7"

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        rig.running["work"].cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(rig.running["work"], return_exceptions=True)
        assert rig.acts[-1] == ("admin.vm.Kill", "disp7", b"")


async def test_disposable_of_a_caller_that_left_is_killed():
    """Nobody else would know of it."""
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        left, ended = asyncio.Event(), asyncio.Event()

        async def act(method: str, _name: str, _payload: bytes) -> bytes:
            if method == "admin.vm.CreateDisposable":
                work.link.close()
                await work.ready()
                left.set()
                return b"disp7"
            ended.set()
            return b""

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        async with asyncio.timeout(PATIENCE):
            await left.wait()
            await ended.wait()
        assert [act[:2] for act in rig.acts] == [
            ("admin.vm.CreateDisposable", "base"),
            ("admin.vm.Kill", "disp7"),
        ]


class Maker:
    """Makes disposables when it is told to, and tells of those that are begun and killed."""

    def __init__(self) -> None:
        self.making: asyncio.Queue[str] = asyncio.Queue()
        self.killed: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Event()

    async def __call__(self, method: str, name: str, _payload: bytes) -> bytes:
        """Act in qubesd's place."""
        if method == "admin.vm.CreateDisposable":
            await self.making.put(name)
            await self.go.wait()
        else:
            await self.killed.put(name)
        return b"disp7"


async def test_disposables_of_one_qube_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """Also where the agent uses one ident for all, so that no request stays pending."""
    monkeypatch.setattr(peers, "MOST_DISPOSABLES", 2)
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        maker = rig.on_act = Maker()
        async with asyncio.timeout(PATIENCE):
            for _ in range(2):
                work.send(trigger(b"@dispvm", b"my.Service\0"))
                await maker.making.get()
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await work.next() == (REFUSED, IDENT)
            maker.go.set()
            assert [await maker.killed.get() for _ in range(2)] == ["disp7"] * 2
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await maker.making.get() == "base"


async def test_disposables_of_an_agent_that_left_count_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
):
    """One that hangs up, or says hello again, would else have any number of them."""
    monkeypatch.setattr(peers, "MOST_DISPOSABLES", 2)
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        maker = rig.on_act = Maker()
        async with asyncio.timeout(PATIENCE):
            for number in range(2):
                work.send(trigger(b"@dispvm", b"my.Service\0", b"SOCKET%d" % number))
                await maker.making.get()
            work.link.close()
            await work.ready()
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await work.next() == (REFUSED, IDENT)
            maker.go.set()
            assert [await maker.killed.get() for _ in range(2)] == ["disp7"] * 2
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await maker.making.get() == "base"


async def test_disposable_whose_caller_left_while_it_started_serves_nobody():
    """Its service is not begun: it would wait for a caller that never comes."""
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        ended = asyncio.Event()

        async def act(method: str, _name: str, _payload: bytes) -> bytes:
            match method:
                case "admin.vm.CreateDisposable":
                    return b"vault"
                case "admin.vm.Start":
                    await rig.qube("vault", VAULT)
                    work.link.close()
                    await work.ready()
                case _:
                    ended.set()
            return b""

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert rig.acts[-1] == ("admin.vm.Kill", "vault", b"")
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 513)
        assert (await rig.agents[1].next()).rest == b"user:true\0"
