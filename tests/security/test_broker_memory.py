"""What hostile calls leave behind in the broker's memory: nothing, also before a collector runs."""

from __future__ import annotations

import asyncio
import gc
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from broker_rig import REPORT, Rig, broker_rig, exchange, policy_query, prompt_agent, until

from caisson.qrexec import AdminCall
from caisson.qrexec.admin_calls import AdminCalls
from caisson.qrexec.asking import QUESTIONS_AT_ONCE
from caisson.qrexec.broker import Broker
from caisson.qrexec.broker_link import BrokerLink
from caisson.qrexec.calls import Call
from caisson.qrexec.channel import Channel
from caisson.qrexec.policy_messages import Query

pytestmark = pytest.mark.root

CALLS = 50
LONG = "x" * 60_000
POLICY = """\
my.Allowed     * work vault    allow
my.Asked       * work vault    ask
my.Started     * work halted   allow
my.Started     * work @dispvm  allow
admin.vm.List  * work dom0     allow
"""
UNIT = Path(__file__).parents[2] / "systemd/qubes-broker.service"


class Serving:
    """A task that a rig ends."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def close(self) -> None:
        """End it."""
        self._task.cancel()


class InsideRig(Rig):
    """The broker runs in the test's own process, where its objects can be counted."""

    def make_link(self) -> BrokerLink:
        """As root, like the broker here."""
        return BrokerLink(
            self.paths,
            os.getuid(),
            os.getgid(),
            on_hello=self._hello,
            on_gone=self.gone.append,
            on_set_up=lambda *told: self.set_up.append(told),
            on_request=self._asked,
        )

    def start_broker(self, *, limit: int | None = None) -> None:
        """Start it."""
        assert limit is None
        self.broker = Broker(self.paths)
        task = asyncio.get_running_loop().create_task(self.broker.run())
        self.open_resources.append(Serving(task))


@contextmanager
def no_collector() -> Iterator[None]:
    """Only counting of references frees anything."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive() -> Counter[str]:
    """What there is of calls, by type."""
    return Counter(type(o).__name__ for o in gc.get_objects() if is_of_a_call(o))


def is_of_a_call(thing: object) -> bool:
    """Whether it is made for a call; of tasks, those of the tests are not meant."""
    if isinstance(thing, asyncio.Task):
        return "/caisson/qrexec/" in thing.get_coro().cr_code.co_filename
    return isinstance(thing, AdminCall | Call | Channel | Query)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """What there is afterwards is what was there before."""
    with no_collector():
        before = alive()
        yield
        await until(lambda: alive() <= before)


@asynccontextmanager
async def inside() -> AsyncIterator[InsideRig]:
    """A broker in this process."""
    async with broker_rig(POLICY, kind=InsideRig) as rig:
        assert isinstance(rig, InsideRig)
        yield rig


async def ended(rig: Rig, message: bytes) -> bytes:
    """Begin a call and wait for its last word."""
    client = rig.client("work")
    rig.open_resources.pop()
    await client.send(message)
    last = b""
    while True:
        word, descriptors = await client.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        if not word:
            client.close()
            return last
        last = word


@pytest.mark.parametrize(
    "message",
    [
        f"Cvault\0my.Other+{LONG}\0".encode(),
        f"Cnowhere\0my.Other+{LONG}\0".encode(),
        f"Cvault\0my Other+{LONG}\0".encode(),
        b"?" + LONG.encode(),
    ],
)
async def test_refused_calls_are_freed_without_a_collector(message: bytes):
    """One qube filled the machine with 64 KiB a refused call: sessions were cycles."""
    async with inside() as rig:
        await rig.run("work")
        await rig.run("vault")
        await ended(rig, message)
        async with nothing_left():
            for _ in range(CALLS):
                assert await ended(rig, message) != b"A"


async def test_served_calls_are_freed_without_a_collector():
    """A call that ran leaves nothing."""
    async with inside() as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        serving = asyncio.create_task(agent.serve(lambda _: 7))
        message = f"Cvault\0my.Allowed+{LONG}\0".encode()
        assert await ended(rig, message) == b"X7"
        async with nothing_left():
            for _ in range(CALLS):
                assert await ended(rig, message) == b"X7"
        serving.cancel()


async def gone(rig: InsideRig, message: bytes, shown: Callable[[], bool], rest: int = 0) -> None:
    """Begin a call, and hang up when it has come as far as `shown` says.

    Args:
        rig: the broker.
        message: the call.
        shown: whether it has.
        rest: how many other calls the qube has.
    """
    client = rig.client("work")
    rig.open_resources.pop()
    await client.send(message)
    await until(shown)
    client.close()
    await until(lambda: calls_of(rig) == rest)


def calls_of(rig: InsideRig) -> int:
    """How many calls of the caller are in flight."""
    return len(rig.broker._endpoints["work"].calls)


async def test_callers_that_leave_are_freed_without_a_collector():
    """Before the first word, before the service began, and while it runs."""
    async with inside() as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        message = f"Cvault\0my.Allowed+{LONG}\0".encode()

        async def leave() -> None:
            silent = rig.client("work")
            rig.open_resources.pop()
            silent.close()
            await gone(rig, message, lambda: bool(calls_of(rig)))
            await (await agent.next_call()).end()

        await leave()
        async with nothing_left():
            for _ in range(CALLS):
                await leave()


async def test_agents_that_are_not_admitted_are_freed_without_a_collector():
    """Whoever claims to be the agent and is not, leaves nothing."""
    async with inside() as rig:
        await rig.run("work")
        rig.genuine.clear()
        message = b"H1\0" + REPORT[:-1] + b" " * 60_000 + b"}"
        assert (await ended(rig, message))[:1] == b"N"
        async with nothing_left():
            for _ in range(CALLS):
                assert (await ended(rig, message))[:1] == b"N"


async def test_calls_that_waited_in_vain_are_freed_without_a_collector():
    """The target did not start, or no disposable was made."""
    async with inside() as rig:
        await rig.run("work", default_dispvm="halted")
        await rig.add("halted", state="Halted", template_for_dispvms=True)

        async def wait() -> None:
            for target in ("halted", "@dispvm"):
                message = f"C{target}\0my.Started+{LONG}\0".encode()
                assert (await ended(rig, message))[:1] == b"E"

        await wait()
        async with nothing_left():
            for _ in range(CALLS):
                await wait()


async def test_questions_are_freed_without_a_collector():
    """Denied by the person, or left by the caller before the answer."""
    async with inside() as rig:
        await rig.run("work")
        await rig.run("vault")
        message = f"Cvault\0my.Asked+{LONG}\0".encode()
        async with prompt_agent(rig, lambda _: b"deny\n") as questions:
            async with nothing_left():
                for _ in range(QUESTIONS_AT_ONCE // 2):
                    assert await ended(rig, message) == b"R"
            assert len(questions) == QUESTIONS_AT_ONCE // 2
        async with prompt_agent(rig, lambda _: None) as questions, nothing_left():
            for number in range(1, QUESTIONS_AT_ONCE // 2):
                await gone(rig, message, lambda n=number: len(questions) == n)


async def test_questions_that_were_never_shown_are_freed_without_a_collector():
    """Behind one that is shown, a qube begins and leaves as many as it likes."""
    async with inside() as rig:
        await rig.run("work")
        await rig.run("vault")
        message = f"Cvault\0my.Asked+{LONG}\0".encode()
        async with prompt_agent(rig, lambda _: None) as questions:
            await rig.call("work", "vault", "my.Asked")
            await until(lambda: bool(questions))
            async with nothing_left():
                for _ in range(CALLS):
                    await gone(rig, message, lambda: calls_of(rig) == 2, 1)


async def test_clients_of_the_policy_socket_are_freed_without_a_collector():
    """Answered, refused, malformed, or gone before the answer."""
    async with inside() as rig:
        await rig.add("work")
        await rig.add("vault")
        socket = rig.paths.policy_socket

        async def ask() -> None:
            for query in (policy_query("my.Allowed"), policy_query("my.No"), b"source=\n\n"):
                await exchange(socket, query)

        await ask()
        async with nothing_left():
            for _ in range(CALLS):
                await ask()


async def test_admin_calls_are_freed_without_a_collector():
    """On the broker's side and on qubesd's: served, and left alone by the caller."""
    held: list[AdminCall] = []

    async def serve(call: AdminCall) -> int:
        if call.argument == "wait":
            held.append(call)
            await call.gone.wait()
            held.clear()
        return 0

    async with inside() as rig:
        calls = AdminCalls(rig.paths, os.getuid(), os.getgid(), serve=serve)
        calls.bind()
        rig.open_resources.append(Serving(asyncio.create_task(calls.run())))
        await rig.run("work")

        async def call() -> None:
            assert await ended(rig, b"Cdom0\0admin.vm.List\0") == b"X0"
            await gone(rig, b"Cdom0\0admin.vm.List+wait\0", lambda: bool(held))

        await call()
        async with nothing_left():
            for _ in range(CALLS):
                await call()


def test_the_unit_bounds_the_memory_of_the_broker():
    """A second wall, for what nobody thought of."""
    assert re.search(r"^MemoryMax=\d+[MG]$", UNIT.read_text(), re.MULTILINE)
