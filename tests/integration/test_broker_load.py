"""The broker under load: many calls, agents that stall, an audit log that cannot be written."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from broker_rig import ALLOW, Peer, broker_account, broker_rig, outcome

pytestmark = pytest.mark.root


def mount_small(directory: Path) -> None:
    """A file system that is soon full, owned by the broker."""
    options = f"size=128k,mode=0755,uid={broker_account().pw_uid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)


def unmount(directory: Path) -> None:
    """Undo `mount_small`."""
    subprocess.run(["umount", "-l", directory], check=True)


async def test_a_thousand_calls_are_in_flight_without_loss():
    """All of them run at once, and each gets its own exit code."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")

        async def one(number: int) -> tuple[int, Peer]:
            return number, await rig.call("work", "vault", f"my.Service+{number}")

        calls = [await one(n) for n in range(1000)]
        services = [await agent.next_call() for _ in calls]
        assert len({s.id for s in services}) == 1000
        for service in services:
            await service.end(int(service.descriptor.partition("+")[2]) % 256)
        for number, client in calls:
            assert await outcome(client) == b"X%d" % (number % 256)
            client.close()
        assert len(rig.audit()) == 1000


async def test_stalled_agent_delays_no_other_qube_and_loses_no_call():
    """An agent that is far behind: its calls wait without descriptors; other calls pass."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        stuck = await rig.run("stuck")
        vault = await rig.run("vault")
        calls = [await rig.call("work", "stuck", f"my.Service+{n}") for n in range(700)]
        for number in range(20):
            client = await rig.call("work", "vault", f"my.Service+{number}")
            await (await vault.next_call()).end(0)
            assert await outcome(client) == b"X0"
        for _ in calls:
            service = await stuck.next_call()
            await service.end(int(service.descriptor.partition("+")[2]) % 256)
        for number, client in enumerate(calls):
            assert await outcome(client) == b"X%d" % (number % 256)


async def test_flood_for_a_stalled_agent_lets_another_caller_take_its_turn():
    """Callers take turns, however many calls one of them has waiting."""
    async with broker_rig(ALLOW) as rig:
        for name in ("evil", "work"):
            await rig.run(name)
        agent = await rig.run("vault")
        for number in range(600):
            await rig.call("evil", "vault", f"my.Flood+{number}")
        await rig.call("work", "vault", "my.Honest")
        before = 0
        while (service := await agent.next_call()).descriptor != "my.Honest+":
            await service.end(0)
            before += 1
        service.close()
        assert before < 400


async def test_call_that_waited_is_judged_again():
    """The policy changed while the target's agent was behind: the new one counts."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        calls = [await rig.call("work", "vault", "my.Service") for _ in range(400)]
        rig.policy("* * * * deny\n")
        answers = set()
        served = 0
        with contextlib.suppress(TimeoutError):
            while True:
                await (await agent.next_call(1.0)).end(0)
                served += 1
        for client in calls:
            answers.add(await outcome(client))
        assert answers == {b"X0", b"R"}
        assert 0 < served < 400


async def test_audit_that_cannot_be_written_stops_calls_until_it_can():
    """A full disk: calls are refused, not lost; afterwards they pass, and nothing is missing."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.kill_broker()
        directory = rig.paths.audit.parent
        mount_small(directory)
        try:
            rig.start_broker()
            await rig.ready()
            agent = await rig.agent("vault")
            ballast = directory / "ballast"
            with contextlib.suppress(OSError):
                ballast.write_bytes(b"x" * 1_000_000)
            answers = []
            for _ in range(60):
                client = await rig.call("work", "dom0", "my.Service")
                answers.append((await outcome(client))[:1])
            assert answers[-1] == b"R"
            ballast.unlink()
            client = await rig.call("work", "vault", "my.Service")
            await (await agent.next_call()).end(0)
            assert await outcome(client) == b"X0"
            assert len(rig.audit()) == 61
            rig.process.terminate()
            rig.process.wait()
        finally:
            unmount(directory)
