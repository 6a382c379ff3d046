"""`qubes.GetDate`: the admin qube lets the qube of `clockvm` tell the time."""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from admin_rig import AdminRig, served_by
from broker_rig import Agent, Peer, Service, info, outcome, until

from caisson.qrexec import AdminCall
from caisson.qrexec.dates import MOST_OF_ONE

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


DATE = b"2026-11-27T14:00:00+00:00\n"
PRECISE = b"2026-11-27T14:00:00,123456789+00:00\n"


async def told_by(clock: Agent, client: Peer) -> tuple[str, str, str, str]:
    """Answer the call that must come to the clock; gives what it was told."""
    call = await clock.next_call()
    os.write(call.stdout, PRECISE if call.descriptor.endswith("+nanoseconds") else DATE)
    await call.end(0)
    assert await outcome(client) == b"X0"
    return call.descriptor, call.source, call.user, call.flags


@dataclass
class Between:
    """A call for the date: its caller's ends, and the clock's."""

    client: Peer
    to: int
    out: int
    err: int
    service: Service

    async def end(self, code: int = 0) -> tuple[bytes, bytes, bytes]:
        """End the service; gives the broker's last word, and all that the caller can read."""
        await self.service.end(code)
        word = (await self.client.receive())[0]
        found = [os.read(descriptor, 1 << 20) for descriptor in (self.out, self.err)]
        for descriptor in (self.to, self.out, self.err):
            os.close(descriptor)
        return word, found[0], found[1]


@asynccontextmanager
async def asking_clock() -> AsyncIterator[tuple[AdminRig, Callable[..., Awaitable[Between]]]]:
    """An instance with a clock, and what begins a call for the date."""
    async with served_by(Dom0().serve, POLICY) as admin:
        await admin.rig.run("work")
        await admin.rig.run("other")
        clock = await admin.rig.run("clock")
        await name_clock(admin, "clock")

        async def ask(argument: str = "", source: str = "work", flags: str = "") -> Between:
            client = await admin.rig.call(source, "dom0", f"qubes.GetDate{argument}", flags)
            service = await clock.next_call()
            word, descriptors = await client.receive()
            assert word == b"A"
            return Between(client, *descriptors, service)

        yield admin, ask


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


def is_unread(pipe: int) -> bool:
    """Whether nobody has the other end of a pipe any more, to read from it."""
    poll = select.poll()
    poll.register(pipe, 0)
    return poll.poll(0) == [(pipe, select.POLLERR)]


async def test_a_caller_and_the_clock_are_no_way_for_data_between_them():
    """A rule about the admin qube's clock gives a qube no pipe to the one that tells the time."""
    async with asking_clock() as (_, ask):
        asked = await ask()
        # The broker lets go of the other end after it has answered the caller.
        await until(lambda: is_unread(asked.to))
        with pytest.raises(BrokenPipeError):
            os.write(asked.to, b"secret")
        assert os.read(asked.service.stdin, 100) == b""
        os.write(asked.service.stdout, DATE)
        os.write(asked.service.stderr, b"\x1b[2Jsecret")
        assert await asked.end() == (b"X0", DATE, b"")
        asked = await ask("+nanoseconds")
        os.write(asked.service.stdout, PRECISE)
        assert await asked.end() == (b"X0", PRECISE, b"")
        asked = await ask(flags="e")
        assert await asked.end() == (b"X0", b"", b"")


@pytest.mark.parametrize(
    "untrusted",
    [
        b"",
        b"secret\n",
        DATE + b"secret",
        DATE.rstrip(),
        DATE + DATE,
        PRECISE,
        b"x" * 60_000,
        DATE.replace(b"+00:00", b"+01:00"),
        DATE.replace(b"2026", "٢٠٢٦".encode()),
        b"\x1b" + DATE[1:],
        DATE.replace(b"\n", b"\r"),
    ],
)
async def test_what_is_no_date_is_not_handed_on(untrusted: bytes):
    """Nor is its code: the caller learns that there was none, in all cases alike."""
    async with asking_clock() as (_, ask):
        asked = await ask()
        os.write(asked.service.stdout, untrusted)
        assert await asked.end() == (b"X125", b"", b"")
        asked = await ask("+nanoseconds")
        os.write(asked.service.stdout, DATE)
        assert await asked.end() == (b"X125", b"", b"")
        asked = await ask()
        os.write(asked.service.stdout, DATE)
        assert await asked.end(5) == (b"X125", b"", b"")


async def test_a_caller_that_fills_its_own_pipe_keeps_nobody_waiting():
    """The other end of a pipe can be opened anew, and written to: the broker goes on all the same.

    The caller loses its date, and nobody else anything.
    """
    async with asking_clock() as (_, ask):
        asked = await ask()
        anew = os.open(f"/proc/self/fd/{asked.out}", os.O_WRONLY | os.O_NONBLOCK)
        filled = 0
        with suppress(BlockingIOError):
            while True:
                filled += os.write(anew, bytes(4096))
        os.close(anew)
        assert filled
        os.write(asked.service.stdout, DATE)
        word, out, _ = await asked.end()
        assert (word, out.strip(b"\0")) == (b"X0", b"")


async def test_no_qube_asks_for_all_dates_at_once():
    """A clock that never ends holds up a few calls of each qube; the others are told so at once."""
    async with asking_clock() as (admin, ask):
        held = [await ask() for _ in range(MOST_OF_ONE)]
        more = await admin.rig.call("work", "dom0", "qubes.GetDate")
        assert (await more.receive())[0] == b"E125\0the target could not be reached"
        asked = await ask(source="other")
        os.write(asked.service.stdout, DATE)
        assert (await asked.end())[0] == b"X0"
        for each in held:
            os.write(each.service.stdout, DATE)
            assert (await each.end())[0] == b"X0"
        asked = await ask()
        os.write(asked.service.stdout, DATE)
        assert await asked.end() == (b"X0", DATE, b"")
