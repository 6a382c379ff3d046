"""Calls that a relay makes for its RemoteVM, as the broker judges and tells of them."""

from __future__ import annotations

import pytest
from admin_rig import served_by
from broker_rig import Agent, Peer, Rig, broker_rig, outcome, prompt_agent

from caisson.qrexec import AdminCall

pytestmark = pytest.mark.root

POLICY = """\
my.Private  *  far     work        allow
my.Asked    *  far     @default    ask     target=work
my.Own      *  relay   work        allow
my.Own      *  far     work        deny
my.Home     *  far     relay       allow
my.Desk     *  far     @adminvm    allow
"""
REMOTE = {"type": "RemoteVM", "relayvm": "relay", "transport_rpc": "my.Ssh"}


async def call_for(rig: Rig, caller: str, source: str, service: str, target: str = "work") -> Peer:
    """Begin a call for another qube than the one that speaks."""
    peer = rig.client(caller)
    await peer.send(f"C{target}\0{service}\0\0{source}".encode())
    return peer


async def prepare(rig: Rig) -> Agent:
    """`far` and `farther` lie behind `relay`, whose agent it gives; `other` behind `mallory`."""
    await rig.run("mallory")
    relay = await rig.run("relay")
    await rig.add("far", **REMOTE)
    await rig.add("farther", **REMOTE)
    await rig.add("other", **REMOTE | {"relayvm": "mallory"})
    return relay


async def test_a_relay_calls_in_the_name_of_its_remote_qube():
    """By name and by uuid the rules of the remote qube hold; audit and service tell both."""
    async with broker_rig(POLICY) as rig:
        await prepare(rig)
        work = await rig.run("work")
        for source in ("far", f"uuid:{rig.domains['far']['uuid']}"):
            client = await call_for(rig, "relay", source, "my.Private+a")
            call = await work.next_call()
            assert (call.descriptor, call.source) == ("my.Private+a", "far")
            await call.end(3)
            assert await outcome(client) == b"X3"
            record = await rig.audited(requested_source=source)
            assert (record["source"], record["decision"]) == ("relay", "allow")
            assert record["rule"] == "30-user.policy:1"


FORGED = [
    ("mallory", "far"),
    ("mallory", "relay"),
    ("mallory", "work"),
    ("mallory", "dom0"),
    ("mallory", "mallory"),
    ("mallory", "nobody"),
    ("mallory", "@adminvm"),
    ("mallory", "far\nsource=relay"),
    ("mallory", ""),
    ("relay", "other"),
    ("relay", "relay"),
    ("relay", "dom0"),
    ("work", "far"),
]


async def test_nobody_calls_for_a_qube_that_it_is_no_relay_of():
    """Not as a remote qube of others, as its own relay, as dom0, or as what is no name."""
    async with broker_rig("* * @anyvm @anyvm allow\n* * @anyvm @adminvm allow\n") as rig:
        await prepare(rig)
        await rig.run("work")
        for caller, source in FORGED:
            target = "relay" if caller == "work" else "work"
            client = await call_for(rig, caller, source, "my.Own", target)
            assert await outcome(client) == b"R", (caller, source)
        for caller in ("mallory", "relay", "work"):
            assert (await rig.audited(source=caller))["decision"] in {"deny", "refuse"}
        assert not [r for r in rig.audit() if r["decision"] == "allow"]


async def test_what_the_relay_may_itself_its_remote_qube_may_not():
    """The remote qube replaces the source: no rule of the relay holds for it, nor the reverse."""
    async with broker_rig(POLICY) as rig:
        await prepare(rig)
        await rig.run("work")
        assert await outcome(await call_for(rig, "relay", "far", "my.Own")) == b"R"
        assert await outcome(await call_for(rig, "relay", "farther", "my.Private")) == b"R"
        assert await outcome(await rig.call("relay", "work", "my.Private")) == b"R"


async def test_a_remote_qube_may_call_its_relay():
    """Two qubes, though one process speaks for both; the relay itself still cannot."""
    async with broker_rig(POLICY + "my.Home * relay relay allow\n") as rig:
        relay = await prepare(rig)
        client = await call_for(rig, "relay", "far", "my.Home", "relay")
        call = await relay.next_call()
        assert call.source == "far"
        await call.end()
        assert await outcome(client) == b"X0"
        assert await outcome(await rig.call("relay", "relay", "my.Home")) == b"R"


async def test_a_person_is_asked_about_the_remote_qube():
    """The question names the qube that the rule is about, not the one that carries its calls."""
    async with broker_rig(POLICY) as rig:
        await prepare(rig)
        work = await rig.run("work")
        async with prompt_agent(rig, lambda _: b"allow:work") as questions:
            client = await call_for(rig, "relay", "far", "my.Asked", "@default")
            call = await work.next_call()
            assert call.source == "far"
            await call.end()
            assert await outcome(client) == b"X0"
        assert [question["source"] for question in questions] == ["far"]


async def test_the_admin_qube_is_told_of_the_remote_qube():
    """It judges again by the same name."""
    told: list[AdminCall] = []

    async def serve(call: AdminCall) -> int:
        told.append(call)
        return 0

    async with served_by(serve, POLICY) as admin:
        await prepare(admin.rig)
        client = await call_for(admin.rig, "relay", "far", "my.Desk", "@adminvm")
        assert await outcome(client) == b"X0"
        assert [(call.source, call.service) for call in told] == [("far", "my.Desk")]
