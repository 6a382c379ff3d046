"""Calls through the broker: pipes and codes, refusals, and what decides the very next one."""

from __future__ import annotations

import os
import stat

import pytest
from broker_rig import ALLOW, broker_rig, close_all, outcome

pytestmark = pytest.mark.root


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
        assert os.read(stdout, 100) == b"", "the broker kept an end of the pipe"
        assert (await client.receive())[0] == b"X42"
        assert (await client.receive())[0] == b""
        record = await rig.audited(service="my.Service")
        assert record["decision"] == "allow"
        assert record["rule"] == "30-user.policy:1"
        assert record["target"] == "vault"
        assert record["code"] == 42
        close_all([stdin, stdout, stderr])


async def test_both_sides_get_pipes_and_never_a_socket():
    """A socket between two qubes would let them pass each other descriptors."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        service = await agent.next_call()
        _, descriptors = await client.receive()
        for descriptor in (*descriptors, service.stdin, service.stdout, service.stderr):
            assert stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        service.close()
        close_all(descriptors)


async def test_denied_call_is_refused_and_audited():
    """Without a rule the answer is no, and it is written down."""
    async with broker_rig("") as rig:
        await rig.run("work")
        await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        assert await outcome(client) == b"R"
        assert (await client.receive())[0] == b""
        record = await rig.audited(service="my.Service")
        assert (record["decision"], record["code"]) == ("deny", 126)


@pytest.mark.parametrize("target", ["work", "uuid"])
async def test_qube_cannot_call_itself(target: str):
    """By name or by uuid: a loop through the broker is refused."""
    async with broker_rig("* * * * allow\n") as rig:
        await rig.run("work")
        if target == "uuid":
            target = f"uuid:{rig.domains['work']['uuid']}"
        assert await outcome(await rig.call("work", target, "my.Service")) == b"R"


async def test_call_to_the_admin_qube_fails_without_qubesd_s_door():
    """Allowed by policy, but the broker itself runs nothing: 125, and not a word why."""
    async with broker_rig("* * @anyvm @adminvm allow\n") as rig:
        await rig.run("work")
        answer = await outcome(await rig.call("work", "dom0", "my.Service"))
        assert answer == b"E125\0the target could not be reached"


async def test_edited_policy_decides_the_very_next_call():
    """Whoever has written a policy file need not wait for it to be read."""
    async with broker_rig("") as rig:
        await rig.run("work")
        await rig.run("vault")
        for number in range(10):
            rig.policy(f"my.Service * work @anyvm allow target=dom0\n# {number}\n")
            assert (await outcome(await rig.call("work", "vault", "my.Service")))[:1] == b"E"
            rig.policy(f"my.Service * work @anyvm deny\n# {number}\n")
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_broken_policy_denies_everything_and_says_where():
    """One wrong line anywhere: no call passes, and the audit log names the file."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        rig.policy("this is no rule\n", "40-broken.policy")
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
        record = await rig.audited(service="my.Service")
        assert "40-broken.policy" in record["reason"]
        assert "40-broken.policy" in rig.log.read_text()
        (rig.paths.etc / "policy.d/40-broken.policy").unlink()
        await rig.call("work", "vault", "my.Service")
        (await agent.next_call()).close()


async def test_no_call_is_decided_on_a_state_that_was_told_gone():
    """When `push` has returned, the next decision knows of the change."""
    async with broker_rig("* * @anyvm @tag:open allow target=dom0\n") as rig:
        await rig.run("work")
        for _ in range(30):
            await rig.add("vault", tags=("open",))
            assert (await outcome(await rig.call("work", "vault", "my.Service")))[:1] == b"E"
            await rig.add("vault")
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_removed_qube_is_no_target():
    """A name that went is a name that never was."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.add("vault")
        await rig.link.push({}, ["vault"])
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_malformed_information_leaves_out_one_qube_not_all():
    """A qube whose information is malformed does not take the others with it."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.link.push({"odd": {"tags": 7}, "fine": rig.domains["vault"]})
        assert await outcome(await rig.call("work", "odd", "my.Service")) == b"R"
        await rig.call("work", "vault", "my.Service")
        (await agent.next_call()).close()


async def test_default_user_of_the_target_is_used():
    """A call without `user=` runs as the qube's default user."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault", default_user="alice")
        await rig.call("work", "vault", "my.Service")
        service = await agent.next_call()
        assert service.user == "alice"
        service.close()
