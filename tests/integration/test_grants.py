"""Grants with a real broker: a call is denied, granted, allowed, and denied again."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from admin_rig import Daemon, daemon_rig, exception
from broker_rig import Agent, Rig, broker_rig, until
from granting import SECOND, granted

from caisson.names import QubeName
from caisson.policy.grants import Grant
from caisson.store.grants import GrantFile

pytestmark = pytest.mark.root

DENY = "my.Service * * * deny\n"
HOUR = 3_600 * SECOND
FIRST_TRY = SECOND // 4


async def passes(rig: Rig, agent: Agent, source: str = "work", target: str = "vault") -> bool:
    """Whether a call reaches the agent; it ends at once."""
    client = await rig.call(source, target, "my.Service")
    message, descriptors = await client.receive()
    for descriptor in descriptors:
        os.close(descriptor)
    if message == b"A":
        await (await agent.next_call()).end()
        message, _ = await client.receive()
        assert message == b"X0"
    else:
        assert message == b"R"
    client.close()
    return message == b"X0"


# --- through qubesd --------------------------------------------------------------------------


async def granting(daemon: Daemon, **wanted: Any) -> str:
    """Grant `my.Service` from `work` to `vault` for an hour; returns the id."""
    call = {"source": "work", "target": "vault", "service": "my.Service", "seconds": 3_600}
    payload = json.dumps(call | wanted).encode()
    reply = await daemon.ask("caisson.policy.Grant+", payload=payload)
    assert reply.startswith(b"0\0grant-"), reply
    return reply[2:].decode()


async def listed(daemon: Daemon) -> list[dict[str, Any]]:
    """What is granted."""
    found: list[dict[str, Any]] = json.loads((await daemon.ask("caisson.policy.Grants+"))[2:])
    return found


async def test_a_call_is_denied_granted_allowed_revoked_and_denied():
    """Each change counts for the very next call, and the audit log names the grant."""
    async with daemon_rig(DENY, "work", "vault") as daemon:
        agent = await daemon.rig.agent("vault")
        assert not await passes(daemon.rig, agent)
        for _ in range(3):
            name = await granting(daemon)
            assert await passes(daemon.rig, agent)
            record = await daemon.rig.audited(rule=name)
            assert (record["decision"], record["target"]) == ("allow", "vault")
            assert not await passes(daemon.rig, agent, target="dom0")
            assert await daemon.ask(f"caisson.policy.Revoke+{name}") == f"0\0{name}\n".encode()
            assert not await passes(daemon.rig, agent)
        assert exception(await daemon.ask(f"caisson.policy.Revoke+{name}")) == "QubesException"


async def test_no_service_of_the_admin_qube_is_granted():
    """All that it serves changes what it holds: `qubes.FeaturesRequest` is administration too."""
    async with daemon_rig("* * * * deny\n", "work") as daemon:
        wanted = {"source": "work", "service": "qubes.NotifyTools", "seconds": 60}
        for to in ({"target": "dom0"}, {"target": "@default", "redirect": "@adminvm"}):
            answer = await daemon.ask(
                "caisson.policy.Grant+", payload=json.dumps(wanted | to).encode()
            )
            assert exception(answer) == "QubesValueError"
        assert await listed(daemon) == []
        assert (await daemon.call("work", "dom0", "qubes.NotifyTools")).verdict == b"R"


@pytest.mark.parametrize("again", ["work", "vault"])
async def test_a_new_qube_with_an_old_name_gets_nothing(again: str):
    """A grant ends with its qube, on either side of the call (name reuse)."""
    async with daemon_rig(DENY, "work", "vault") as daemon:
        rig = daemon.rig
        name = await granting(daemon)
        assert await passes(rig, await rig.agent("vault"))
        await rig.link.close_qube(QubeName(again))
        assert await daemon.ask("admin.vm.Remove+", again) == b"0\0"
        (void,) = await listed(daemon)
        assert (void["id"], void[_side(again)], void["missing"]) == (name, again, [again])
        payload = f"name={again} label=red".encode()
        assert await daemon.ask("admin.vm.Create.AppVM+tpl", payload=payload) == b"0\0"
        await rig.link.open_qube(QubeName(again))
        agent = await rig.agent("vault") if again == "vault" else None
        client = await rig.call("work", "vault", "my.Service")
        assert (await client.receive())[0] == b"R"
        assert [each["missing"] for each in await listed(daemon)] == [[again]]
        fresh = await granting(daemon)
        assert [each["id"] for each in await listed(daemon)] == [fresh], "the void one is swept"
        if agent is not None:
            assert await passes(rig, agent)


def _side(qube: str) -> str:
    return "source" if qube == "work" else "target"


async def test_only_the_admin_qube_grants():
    """Not even a policy that allows everything lets a qube list, grant or revoke."""
    async with daemon_rig(
        "* * * * allow target=dom0\n* * * dom0 allow\n", "work", "vault"
    ) as daemon:
        name = await granting(daemon)
        for service in ("Grant", "Grants", f"Revoke+{name}", "Revoke+all"):
            answer = await daemon.call("work", "dom0", f"caisson.policy.{service}")
            assert answer.verdict == b"X127", service
        assert [each["id"] for each in await listed(daemon)] == [name]


# --- the broker alone ------------------------------------------------------------------------


class Grants:
    """The grants of a rig, written as qubesd writes them."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.file = GrantFile(rig.paths)

    def write(self, left: int, **changed: Any) -> Grant:
        """Grant `my.Service` from `work` to `vault`, and nothing else, for so many nanoseconds."""
        source, target = (f"uuid:{self._rig.domains[name]['uuid']}" for name in ("work", "vault"))
        expires = self.file.clock.now() + left
        grant = granted(**{"source": source, "target": target, "expires": expires} | changed)
        self.file.write([grant])
        return grant

    def over(self, grant: Grant) -> bool:
        """Whether its time is over."""
        return self.file.clock.now() >= grant.expires

    async def seen_and_short(self, agent: Agent) -> Grant:
        """A grant that the broker has let a call pass by, and that is over soon."""
        left = FIRST_TRY
        while True:
            grant = self.write(left)
            passed = await passes(self._rig, agent)
            if not self.over(grant):
                assert passed, "refused before its time was over"
                return grant
            left *= 2


async def test_a_grant_ends_though_nobody_touches_its_file():
    """The broker looks at the clock itself: qubesd has nothing to do with it."""
    async with broker_rig(DENY) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        grants = Grants(rig)
        assert not await passes(rig, agent)
        grant = await grants.seen_and_short(agent)
        written = grants.file.path.stat()
        await until(lambda: grants.over(grant))
        assert not await passes(rig, agent)
        assert grants.file.path.stat() == written
        await rig.audited(decision="deny", rule="30-user.policy:1")


async def test_a_grant_ends_while_qubesd_is_away():
    """And is over when it comes back: neither a crash nor a restart extends it."""
    async with broker_rig(DENY) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        grants = Grants(rig)
        grant = await grants.seen_and_short(agent)
        await rig.link.close()
        await until(lambda: grants.over(grant))
        await rig.start_daemon("work", "vault")
        assert not await passes(rig, agent)


async def test_a_grant_outlives_a_broker_that_is_killed():
    """It is neither lost nor begun anew."""
    async with broker_rig(DENY) as rig:
        await rig.run("work")
        await rig.run("vault")
        Grants(rig).write(HOUR)
        await rig.kill_broker()
        rig.start_broker()
        await rig.ready()
        assert await passes(rig, await rig.agent("vault"))


async def test_a_call_that_waits_when_its_grant_ends_is_refused():
    """It is judged again once its target has started: what was granted is over by then."""
    async with broker_rig(DENY) as rig:
        await rig.run("work")
        await rig.add("vault", state="Halted")
        grants = Grants(rig)
        grants.write(HOUR)

        async def start(_op: str, name: str, _source: str) -> str:
            await rig.link.open_qube(QubeName(name))
            await rig.agent(name)
            grants.write(0)
            return name

        rig.on_request = start
        client = await rig.call("work", "vault", "my.Service")
        assert (await client.receive())[0] == b"R"
        assert rig.requests == [("start", "vault", "work")]


async def test_a_broken_policy_denies_what_is_granted():
    """And a malformed file of grants denies, but takes the rest of the policy not with it."""
    async with broker_rig(DENY + "my.Other * work vault allow\n") as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        grants = Grants(rig)
        grants.write(HOUR)
        assert await passes(rig, agent)
        rig.policy("this is no rule\n", "40-broken.policy")
        assert not await passes(rig, agent)
        (rig.paths.etc / "policy.d/40-broken.policy").unlink()
        assert await passes(rig, agent)
        grants.file.path.write_text("nonsense")
        assert not await passes(rig, agent)
        assert "nothing is granted" in rig.log.read_text()
        client = await rig.call("work", "vault", "my.Other")
        assert (await client.receive())[0] == b"A"
