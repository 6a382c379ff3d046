"""The broker as a process: calls, prompts, restarts, with real sockets and pipes."""

from __future__ import annotations

import os

import pytest
from broker_rig import broker_rig

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the broker starts as root")

ALLOW = "* * @anyvm @anyvm allow\n"


async def test_allowed_call_runs_over_pipes_and_gives_the_exit_code():
    """Both sides get their ends of three pipes, bytes pass, and the code comes back."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service+arg")
        service = await agent.next_call()
        assert (service.descriptor, service.source, service.user) == ("my.Service+arg", "work", "")
        accepted, (stdin, stdout, stderr) = await client.receive()
        assert accepted == b"A"
        os.write(stdin, b"question")
        assert os.read(service.stdin, 100) == b"question"
        os.write(service.stdout, b"answer")
        os.write(service.stderr, b"trouble")
        assert os.read(stdout, 100) == b"answer"
        assert os.read(stderr, 100) == b"trouble"
        await service.end(42)
        assert os.read(stdout, 100) == b""
        assert (await client.receive())[0] == b"X42"
        assert (await client.receive())[0] == b""
        record = await rig.audited(service="my.Service")
        assert record["decision"] == "allow"
        assert record["rule"] == "30-user.policy:1"
        assert record["target"] == "vault"
        assert record["code"] == 42
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)


async def test_denied_call_is_refused_and_audited():
    """Without a rule the answer is no, and it is written down."""
    async with broker_rig("") as rig:
        await rig.run("work")
        await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        assert (await client.receive())[0] == b"R"
        assert (await client.receive())[0] == b""
        record = await rig.audited(service="my.Service")
        assert (record["decision"], record["code"]) == ("deny", 126)
