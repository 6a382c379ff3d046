"""Calls to qubes on other machines, as the broker hands them to relays."""

from __future__ import annotations

import pytest
from broker_rig import Agent, Rig, broker_rig, outcome, until

from caisson.names import QubeName

pytestmark = pytest.mark.root

POLICY = """\
my.Lazy     *  @anyvm  far      allow  autostart=no
my.Default  *  @anyvm  @default allow  target=far
*           *  @anyvm  far      allow
"""


async def add_remote(rig: Rig, **more: object) -> None:
    """The record of a qube on another machine."""
    await rig.add(
        "far", **{"type": "RemoteVM", "relayvm": "relay", "transport_rpc": "my.Ssh"} | more
    )


@pytest.mark.parametrize(
    ("target", "service", "told"),
    [
        ("far", "my.Service+arg", "my.Ssh+far+my.Service+arg"),
        ("far", "my.Service", "my.Ssh+far+my.Service"),
        ("far", "my.Service+", "my.Ssh+far+my.Service"),
        ("@default", "my.Default+x", "my.Ssh+far+my.Default+x"),
        ("nowhere", "my.Default", "my.Ssh+far+my.Default"),
    ],
)
async def test_the_relay_runs_its_transport(target: str, service: str, told: str):
    """It is told the remote qube, the service and the caller; the record has both legs."""
    async with broker_rig(POLICY) as rig:
        await rig.run("work")
        relay = await rig.run("relay", default_user="user")
        await add_remote(rig)
        client = await rig.call("work", target, service)
        call = await relay.next_call()
        assert (call.descriptor, call.source, call.user) == (told, "work", "user")
        await call.end(7)
        assert await outcome(client) == b"X7"
        record = await rig.audited(target="relay")
        assert (record["remote"], record["relayed"], record["code"]) == ("far", told, 7)
        assert record["requested"] == target
        assert record["service"] == service.partition("+")[0]


async def test_a_halted_relay_is_started_if_the_rule_lets_it():
    """With `autostart=no` the call is refused, and nothing starts."""
    async with broker_rig(POLICY) as rig:
        await rig.run("work")
        await rig.add("relay", state="Halted")
        await add_remote(rig)
        assert await outcome(await rig.call("work", "far", "my.Lazy")) == b"R"
        assert rig.requests == []

        async def start(_operation: str, name: str, _source: str) -> str:
            await rig.add("relay")
            await rig.link.open_qube(QubeName("relay"))
            return name

        rig.on_request = start
        client = await rig.call("work", "far", "my.Service")
        relay = await rig_agent(rig, "relay")
        await (await relay.next_call()).end()
        assert await outcome(client) == b"X0"
        assert rig.requests == [("start", "relay", "work")]


async def rig_agent(rig: Rig, name: str) -> Agent:
    """The agent of a qube that is started by a call."""
    await until(rig.socket(name).is_socket)
    return await rig.agent(name)


@pytest.mark.parametrize(
    "change",
    [{"relayvm": "other"}, {"transport_rpc": "my.Tls"}, {"transport_rpc": None}, {"uuid": None}],
)
async def test_a_remote_qube_that_changes_while_its_relay_starts_is_not_called(change: dict):
    """The decision was about another way: nobody is told of the call."""
    async with broker_rig(POLICY) as rig:
        await rig.run("work")
        await rig.add("other")
        await rig.add("relay", state="Halted")
        await add_remote(rig)

        async def start(_operation: str, name: str, _source: str) -> str:
            await rig.add("relay")
            await rig.link.open_qube(QubeName("relay"))
            await add_remote(rig, **change)
            return name

        rig.on_request = start
        client = await rig.call("work", "far", "my.Service")
        await rig_agent(rig, "relay")
        assert await outcome(client) == b"R"
        record = await rig.audited(source="work")
        assert "changed while the target started" in record["reason"]


async def test_a_relay_may_call_through_itself():
    """The transport runs beside the caller, in the same qube."""
    async with broker_rig(POLICY) as rig:
        relay = await rig.run("relay")
        await add_remote(rig)
        client = await rig.call("relay", "far", "my.Service+a")
        call = await relay.next_call()
        assert (call.descriptor, call.source) == ("my.Ssh+far+my.Service+a", "relay")
        await call.end()
        assert await outcome(client) == b"X0"


@pytest.mark.parametrize(
    "facts",
    [
        {"transport_rpc": "my Ssh"},
        {"transport_rpc": "\x1b]0;owned\x07"},
        {"transport_rpc": "my.Ssh\0user"},
        {"relayvm": "dom0", "transport_rpc": "admin.vm.List"},
        {"relayvm": None},
        {"relayvm": "far"},
    ],
)
async def test_a_way_that_is_none_is_refused(facts: dict):
    """Free text in a property reaches no agent and no terminal; the admin qube relays nothing."""
    async with broker_rig(POLICY) as rig:
        await rig.run("work")
        await rig.run("relay")
        await add_remote(rig, **facts)
        assert await outcome(await rig.call("work", "far", "my.Service")) == b"R"
        assert (await rig.audited(source="work"))["ended"] == "denied"
        assert b"\x1b" not in rig.log.read_bytes() + rig.paths.audit.read_bytes()
