"""Calls of qubes to the admin qube: judged by the broker, served by qubesd, over real pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping

import pytest
from admin_rig import AdminRig, Daemon, daemon_rig, exception, served_by
from broker_rig import PATIENCE, prompt_agent, until

from caisson.admin import pipes
from caisson.admin.bounds import MOST_AT_ONCE, MOST_STREAMS
from caisson.lifecycle import DomainInfo
from caisson.model import AddTag, Change, System
from caisson.qrexec import AdminCall
from caisson.qrexec.admin_messages import MOST_OF_ONE

pytestmark = pytest.mark.root

POLICY = """\
admin.vm.CurrentState   *     mgmt  work       allow  target=dom0
admin.vm.List           *     mgmt  @adminvm   allow
admin.vm.List           *     mgmt  @default   allow  target=dom0
admin.vm.List           *     mgmt  @anyvm     allow  target=dom0
admin.vm.property.Get   *     mgmt  work       allow  target=@adminvm
admin.vm.notes.Set      *     mgmt  work       allow  target=dom0
admin.vm.tag.Set        +good mgmt  work       allow  target=dom0
admin.vm.tag.List       *     mgmt  work       ask    target=dom0
admin.vm.NoSuchMethod   *     mgmt  work       allow  target=dom0
admin.Events            *     mgmt  dom0       allow
admin.Events            *     mgmt  work       allow  target=dom0
qubes.NotifyTools       *     mgmt  dom0       allow
*                       *     mgmt  work       deny
"""
ADMIN = "* * * dom0 allow\n"


def uuid_of(daemon: Daemon, name: str) -> str:
    """The `uuid:` form of a qube."""
    return f"uuid:{daemon.qubes.system.qube(name).uuid}"


async def passes_again(admin: AdminRig) -> None:
    """Call until there is room: qubesd, another process, gives it back in its own time."""
    async with asyncio.timeout(PATIENCE):
        while (await admin.call("mgmt", "dom0", "admin.vm.List")).verdict != b"X0":  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_an_allowed_call_gets_the_very_frame_that_the_admin_qube_gets():
    """By name, keyword and uuid, with argument and payload; a redirect keeps the destination."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        for target, service, destination in (
            ("dom0", "admin.vm.List", "dom0"),
            ("@adminvm", "admin.vm.List", "dom0"),
            ("work", "admin.vm.CurrentState", "work"),
            ("work", "admin.vm.property.Get+label", "work"),
            (uuid_of(daemon, "work"), "admin.vm.property.Get+name", "work"),
        ):
            method = service if "+" in service else f"{service}+"
            expected = await daemon.ask(method, destination)
            assert expected.startswith(b"0\0")
            answer = await daemon.call("mgmt", target, service)
            assert (answer.out, answer.err, answer.code) == (expected, b"", 0), target
        payload = bytes(range(32, 127)) * 600
        assert (await daemon.call("mgmt", "work", "admin.vm.notes.Set", payload)).out == b"0\0"
        assert await daemon.ask("admin.vm.notes.Get+", "work") == b"0\0" + payload


@pytest.mark.parametrize(
    ("target", "service", "payload"),
    [
        ("work", "admin.vm.NoSuchMethod", b""),
        ("work", "admin.vm.CurrentState", b"surplus"),
        ("", "admin.vm.List", b""),
        ("nowhere", "admin.vm.List", b""),
    ],
)
async def test_what_qubesd_refuses_is_told_in_an_exception_frame(
    target: str, service: str, payload: bytes
):
    """No method, no such payload, no destination: exit code 0, as qrexec knows the call served."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        answer = await daemon.call("mgmt", target, service, payload)
        assert exception(answer.out) == "ProtocolError"
        assert answer.code == 0


async def test_a_payload_longer_than_a_request_may_be_is_refused():
    """The bound of the socket holds for pipes."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        session = await daemon.begin("mgmt", "work", "admin.vm.notes.Set")
        await pipes.write_all(session.stdin, b"x" * 60_000, 10)
        session.end_input()
        assert (await session.finish()).out == b"0\0"
        session = await daemon.begin("mgmt", "work", "admin.vm.notes.Set")
        writing = asyncio.create_task(asyncio.to_thread(_write_much, session.stdin))
        answer = await session.finish()
        assert exception(answer.out) == "ProtocolError"
        await writing


def _write_much(descriptor: int) -> None:
    with contextlib.suppress(OSError), os.fdopen(os.dup(descriptor), "wb", 0) as file:
        file.write(b"x" * 70_000)


async def test_a_call_that_the_policy_denies_never_reaches_qubesd():
    """126 and `Request refused`, by name and by argument; the record names the rule."""
    reached: list[AdminCall] = []

    async def serve(call: AdminCall) -> int:
        reached.append(call)
        return 0

    async with served_by(serve, POLICY) as admin:
        await admin.rig.run("mgmt")
        await admin.rig.run("work")
        for service in ("admin.vm.Remove", "admin.vm.tag.Set+evil", "internal.GetSystemInfo"):
            assert (await admin.call("mgmt", "work", service)).verdict == b"R"
            assert (await admin.call("work", "dom0", service)).verdict == b"R"
        assert (await admin.call("mgmt", "work", "admin.vm.tag.Set+good")).code == 0
        assert [call.service for call in reached] == ["admin.vm.tag.Set"]
        record = await admin.rig.audited(service="admin.vm.Remove", source="mgmt")
        assert (record["decision"], record["code"]) == ("deny", 126)
        assert record["rule"] == "30-user.policy:13"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("dom0", ("name", "dom0")),
        ("@adminvm", ("keyword", "adminvm")),
        ("work", ("name", "work")),
        ("", ("keyword", "default")),
        ("nowhere", ("keyword", "default")),
        ("@dispvm", ("keyword", "dispvm")),
        ("@dispvm:work", ("keyword", "dispvm:work")),
    ],
)
async def test_qubesd_is_told_what_the_caller_asked_for(asked: str, told: tuple[str, str]):
    """In the normal form of the sheet; every service of qubesd, and the argument's own bytes."""
    seen: list[AdminCall] = []

    async def serve(call: AdminCall) -> int:
        seen.append(call)
        return 7

    async with served_by(serve, "* * mgmt * allow target=dom0\n") as admin:
        await admin.rig.run("mgmt")
        await admin.rig.add("work", template_for_dispvms=True)
        for service in ("admin.X+a+b", "qubes.FeaturesRequest", "qubes.NotifyUpdates"):
            assert (await admin.call("mgmt", asked, service)).code == 7
        assert {(call.target_type, call.requested) for call in seen} == {told}
        assert [(call.service, call.argument) for call in seen] == [
            ("admin.X", "a+b"),
            ("qubes.FeaturesRequest", ""),
            ("qubes.NotifyUpdates", ""),
        ]
        record = await admin.rig.audited(service="admin.X")
        wanted = {"source": "mgmt", "requested": asked, "target": "dom0", "argument": "+a+b"}
        assert {key: record[key] for key in wanted} == wanted
        assert (record["decision"], record["ended"], record["code"]) == ("allow", "exited", 7)
        assert record["rule"] == "30-user.policy:1"


async def test_a_stream_ends_when_its_caller_leaves():
    """Nobody listens any more in qubesd, though no event ever came."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        session = await daemon.begin("mgmt", "dom0", "admin.Events")
        session.end_input()
        first = b"1\0\0connection-established\0\0"
        assert await session.read(len(first)) == first
        assert daemon.listeners() == 1
        assert await daemon.ask("admin.vm.tag.Set+t", "work") == b"0\0"
        event = b"1\0work\0domain-tag-add:t\0tag\0t\0\0"
        assert await session.read(len(event)) == event
        session.client.close()
        await until(lambda: daemon.listeners() == 0)
        record = await daemon.rig.audited(service="admin.Events")
        assert record["ended"] == "caller-gone"
        session.leave()


async def test_a_stream_ends_with_qubesd_and_the_next_one_works_again():
    """The caller learns it at once: 255, as for any service that is lost."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        session = await daemon.begin("mgmt", "dom0", "admin.Events")
        session.end_input()
        await session.read(10)
        await daemon.end_qubesd()
        assert (await session.finish()).verdict[:5] == b"E255\0"
        record = await daemon.rig.audited(service="admin.Events")
        assert record["ended"] == "target-gone"
        assert (await daemon.call("mgmt", "dom0", "admin.vm.List")).verdict[:4] == b"E125"
        daemon.calls.bind()
        daemon.serving = asyncio.create_task(daemon.calls.run())
        assert (await daemon.call("mgmt", "dom0", "admin.vm.List")).code == 0


async def test_a_call_is_served_though_its_caller_waits_for_nothing():
    """As with any service: whoever does not wait for the end has it begun all the same."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        session = await daemon.begin("mgmt", "work", "admin.vm.tag.Set+good", "e")
        session.leave()
        work = daemon.qubes.system.qube("work")
        await until(lambda: "good" in work.tags)


async def test_streams_of_one_qube_do_not_exceed_its_share_and_stop_no_calls():
    """One more than its share is refused by name; when one ends there is room again."""
    async with daemon_rig(ADMIN, "mgmt", "work") as daemon:
        methods = ("admin.Events", "admin.vm.Stats")
        streams = [
            await daemon.begin("mgmt", "dom0", methods[number % 2])
            for number in range(MOST_STREAMS)
        ]
        for stream in streams:
            stream.end_input()
            await stream.read(1)
        for method in methods:
            refusal = await daemon.call("mgmt", "dom0", method)
            assert exception(refusal.out) == "QubesException"
            assert b"has too many streams" in refusal.out
        for source in ("mgmt", "work"):
            assert (await daemon.call(source, "dom0", "admin.vm.List")).code == 0
        streams.pop(0).leave()
        await until(lambda: daemon.listeners() == MOST_STREAMS // 2 - 1)
        streams.append(await daemon.begin("mgmt", "dom0", "admin.Events"))
        streams[-1].end_input()
        assert await streams[-1].read(1) == b"1"
        for stream in streams:
            stream.leave()


async def test_a_flood_of_calls_is_worked_on_two_at_a_time_and_delays_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
):
    """The others wait; another qube's call, and a call that may wait for a qube, do not."""
    many = 12
    async with daemon_rig(ADMIN + "* * mgmt @anyvm allow target=dom0\n", "mgmt", "work") as daemon:
        begun: list[str] = []
        gate = asyncio.Event()
        push = daemon.rig.link.push

        async def held(changed: Mapping[str, DomainInfo], removed: Iterable[str] = ()) -> None:
            await gate.wait()
            await push(changed, removed)

        def noted(system: System, change: Change) -> Change:
            begun.extend(op.tag for op in change.ops if isinstance(op, AddTag))
            return change

        monkeypatch.setattr(daemon.rig.link, "push", held)
        monkeypatch.setattr(daemon.qubes._ledger, "rule", noted)
        flood = []
        for number in range(many):
            flood.append(await daemon.begin("mgmt", "work", f"admin.vm.tag.Set+t{number:02}"))
            flood[-1].end_input()
        assert (await daemon.call("work", "dom0", "admin.vm.List")).code == 0
        killed = await daemon.call("mgmt", "work", "admin.vm.Kill")
        assert exception(killed.out) == "QubesVMNotStartedError"
        lines = daemon.piped._responder._turns._lines
        await until(lambda: lines["mgmt"].calls == many)
        assert len(begun) == MOST_AT_ONCE
        gate.set()
        for session in flood:
            assert (await session.finish()).out == b"0\0"
        assert sorted(begun) == [f"t{number:02}" for number in range(many)]
        assert lines == {}


async def test_callers_that_leave_keep_their_share_until_qubesd_is_done():
    """Else whoever calls and leaves, over and over, would make more work than its share."""
    begun: list[AdminCall] = []
    gate = asyncio.Event()

    async def serve(call: AdminCall) -> int:
        if call.source == "mgmt":
            begun.append(call)
            await gate.wait()
        return 0

    async with served_by(serve, ADMIN) as admin:
        await admin.rig.run("mgmt")
        await admin.rig.run("work")
        for _ in range(MOST_OF_ONE):
            (await admin.begin("mgmt", "dom0", "admin.vm.List")).leave()
        await until(lambda: len(begun) == MOST_OF_ONE and all(c.gone.is_set() for c in begun))
        assert (await admin.call("mgmt", "dom0", "admin.vm.List")).verdict[:4] == b"E125"
        assert (await admin.call("work", "dom0", "admin.vm.List")).code == 0
        gate.set()
        await passes_again(admin)


async def test_a_reply_that_nobody_reads_delays_nobody_and_loses_nothing():
    """A pipe that is full is waited for aside."""
    reply = bytes(1 << 20)

    async def serve(call: AdminCall) -> int:
        if call.argument == "long":
            await pipes.write_all(call.stdout, reply, 60)
        return 0

    async with served_by(serve, ADMIN) as admin:
        await admin.rig.run("mgmt")
        await admin.rig.run("work")
        slow = await admin.begin("mgmt", "dom0", "admin.X+long")
        for _ in range(20):
            assert (await admin.call("work", "dom0", "admin.X")).code == 0
            assert (await admin.call("mgmt", "dom0", "admin.X")).code == 0
        answer = await slow.finish()
        assert (len(answer.out), answer.code) == (len(reply), 0)


async def test_a_withdrawn_right_counts_for_the_very_next_call():
    """Both the broker and qubesd read the changed file."""
    async with daemon_rig(ADMIN, "mgmt") as daemon:
        for _ in range(5):
            daemon.rig.policy(ADMIN)
            assert (await daemon.call("mgmt", "dom0", "admin.vm.List")).code == 0
            daemon.rig.policy("")
            assert (await daemon.call("mgmt", "dom0", "admin.vm.List")).verdict == b"R"


async def test_a_person_may_be_asked_and_the_question_names_the_admin_qube():
    """After `ask` the call is served as after `allow`, on the qube that the caller asked for."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        async with prompt_agent(daemon.rig, lambda _: b"allow:dom0") as questions:
            answer = await daemon.call("mgmt", "work", "admin.vm.tag.List")
        assert answer.out == await daemon.ask("admin.vm.tag.List+", "work")
        assert [q["targets"] for q in questions] == [["dom0"]]
        async with prompt_agent(daemon.rig, lambda _: b"deny"):
            assert (await daemon.call("mgmt", "work", "admin.vm.tag.List")).verdict == b"R"


async def test_a_right_that_is_withdrawn_before_the_payload_is_complete_is_gone():
    """Qubesd judges when it is about to act, not when the broker did."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        session = await daemon.begin("mgmt", "work", "admin.vm.tag.Set+good")
        daemon.rig.policy("")
        session.end_input()
        answer = await session.finish()
        assert exception(answer.out) == "PermissionDenied"
        assert await daemon.ask("admin.vm.tag.Get+good", "work") == b"0\x000"
