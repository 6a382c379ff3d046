"""`qubes.GetDate`: the admin qube lets the qube of `clockvm` tell the time."""

from __future__ import annotations

import pytest
from admin_rig import AdminRig, served_by
from broker_rig import Agent, Peer, info, outcome, until

from caisson.qrexec import AdminCall

pytestmark = pytest.mark.root

POLICY = """\
qubes.GetDate  *  @tag:anon  @anyvm    deny
qubes.GetDate  *  @tag:anon  @adminvm  deny
qubes.GetDate  *  @anyvm     @default  allow  target=dom0
qubes.GetDate  *  @anyvm     @adminvm  allow  user=root
my.Other       *  @anyvm     @adminvm  allow
"""


async def name_clock(admin: AdminRig, clockvm: str | None) -> None:
    """Set the property, as qubesd tells of it."""
    await admin.rig.link.push({"dom0": info("dom0", clockvm=clockvm)})


class Dom0:
    """The admin qube, which only notes who called."""

    def __init__(self) -> None:
        self.calls: list[AdminCall] = []

    async def serve(self, call: AdminCall) -> int:
        """Serve a call."""
        self.calls.append(call)
        return 0


async def told_by(clock: Agent, client: Peer) -> tuple[str, str, str, str]:
    """Answer the call that must come to the clock; gives what it was told."""
    call = await clock.next_call()
    await call.end(5)
    assert await outcome(client) == b"X5"
    return call.descriptor, call.source, call.user, call.flags


async def test_the_clock_is_asked_in_the_admin_qube_s_name():
    """For `dom0`, `@adminvm` and `@default`; the record has both."""
    dom0 = Dom0()
    async with served_by(dom0.serve, POLICY) as admin:
        await admin.rig.run("work")
        clock = await admin.rig.run("clock", default_user="user")
        await name_clock(admin, "clock")
        for target in ("dom0", "@adminvm", "@default", ""):
            client = await admin.rig.call("work", target, "qubes.GetDate+nanoseconds")
            told = await told_by(clock, client)
            # `user=` of the rule is about the admin qube, not about this one.
            assert told == ("qubes.GetDate+nanoseconds", "dom0", "user", "")
            record = await admin.rig.audited(source="work", requested=target)
            assert (record["target"], record["redirected_from"]) == ("clock", "dom0")
            assert record["decision"] == "allow"
        assert dom0.calls == []


async def test_the_admin_qube_answers_where_no_clock_can():
    """Without one, for the clock itself, while it is halted, and for every other service.

    Also for an argument that a caller made up: none is handed on in the admin qube's name.
    """
    dom0 = Dom0()
    async with served_by(dom0.serve, POLICY) as admin:
        for name in ("work", "clock"):
            await admin.rig.run(name)
        await admin.rig.add("halted", state="Halted")
        for clockvm, source, service in (
            (None, "work", "qubes.GetDate"),
            ("clock", "clock", "qubes.GetDate"),
            ("halted", "work", "qubes.GetDate"),
            ("gone", "work", "qubes.GetDate"),
            ("dom0", "work", "qubes.GetDate"),
            ("clock", "work", "my.Other"),
            ("clock", "work", "qubes.GetDate+made-up"),
        ):
            await name_clock(admin, clockvm)
            assert await outcome(await admin.rig.call(source, "dom0", service)) == b"X0"
            call = dom0.calls.pop()
            assert (call.source, call.service) == (source, service.partition("+")[0])
            assert dom0.calls == []
        assert not [record for record in admin.rig.audit() if "redirected_from" in record]


async def test_the_policy_decides_before_the_clock_is_asked():
    """Who may not ask the admin qube reaches no clock through it; nor does the clock's own name."""
    dom0 = Dom0()
    async with served_by(dom0.serve, POLICY) as admin:
        await admin.rig.run("work")
        await admin.rig.run("hidden", tags=("anon",))
        await admin.rig.run("clock")
        await name_clock(admin, "clock")
        for source, target in (("hidden", "dom0"), ("hidden", "@default"), ("work", "clock")):
            assert await outcome(await admin.rig.call(source, target, "qubes.GetDate")) == b"R"
        assert dom0.calls == []
        assert not [record for record in admin.rig.audit() if record["target"] == "clock"]


async def test_a_clock_that_changes_counts_for_the_next_call():
    """Nobody is asked who is not named any more."""
    dom0 = Dom0()
    async with served_by(dom0.serve, POLICY) as admin:
        await admin.rig.run("work")
        clocks = {name: await admin.rig.run(name) for name in ("first", "second")}
        for name in ("first", "second", "first"):
            await name_clock(admin, name)
            await told_by(clocks[name], await admin.rig.call("work", "dom0", "qubes.GetDate"))
        await admin.rig.link.close_qube("first")  # type: ignore[arg-type]
        await until(lambda: not admin.rig.socket("first").exists())
        assert await outcome(await admin.rig.call("work", "dom0", "qubes.GetDate")) == b"X0"
        assert len(dom0.calls) == 1
