"""What a qube on the wire can make its daemon start, ask for and write down."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_rig import until
from fake_agent import CONNECT, IDENT, PATIENCE, REFUSED, params, trigger
from structlog.testing import capture_logs
from wire_rig import WORK, allow, wire

from caisson.qrexec import sparing
from caisson.qrexec.vchan import peers


async def test_starts_for_one_qube_are_bounded():
    """A target without a daemon is asked for again and again: qubesd has others to serve."""
    async with wire(lambda _: allow("nobody")) as rig:
        work = await rig.qube("work", WORK)
        asked: asyncio.Queue[str] = asyncio.Queue()
        go = asyncio.Event()
        at_once = most = 0

        async def start(_method: str, name: str, _payload: bytes) -> bytes:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asked.put(name)
            await go.wait()
            at_once -= 1
            return b""

        rig.on_act = start
        for number in range(40):
            work.send(trigger(b"vault", b"my.Service\0", b"SOCKET%d" % number))
        async with asyncio.timeout(PATIENCE):
            for _ in range(peers.MOST_STARTS):
                await asked.get()
            await until(lambda: len(rig.questions) == 40)
            go.set()
            answers = [await work.next() for _ in range(40)]
        assert {answer.kind for answer in answers} == {REFUSED}
        assert (most, len(rig.acts)) == (peers.MOST_STARTS, 40)


@contextmanager
def idle_programs(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> Iterator[Callable[[], list[tuple[int, bytes]]]]:
    """Put programs that do nothing until the block ends in place of `qrexec-client`.

    What is given tells their process ids, and by which name each would connect its request.
    """
    started, lifeline = directory / "started", directory / "lifeline"
    os.mkfifo(lifeline)
    program = directory / "qrexec-client"
    program.write_text(f'#!/bin/sh\necho "$$ $*" >>{started}\nexec cat {lifeline}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def told() -> list[tuple[int, bytes]]:
        lines = started.read_text().splitlines() if started.exists() else []
        return [(int(n.split()[0]), n.split(" -c ")[1].split(",")[0].encode()) for n in lines]

    held = os.open(lifeline, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield told
    finally:
        os.close(held)


async def test_program_for_a_request_connects_no_later_one_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Else the caller of one service of the admin qube would get another one's output."""
    with idle_programs(monkeypatch, tmp_path) as programs:
        async with wire(lambda _: allow("@adminvm")) as rig:
            work = await rig.qube("work", WORK)
            work.send(trigger(b"dom0", b"my.Secret\0"))
            await until(lambda: len(programs()) == 1)
            work.send(trigger(b"dom0", b"my.Public\0"))
            await until(lambda: len(programs()) == 2)
            (_, former), (_, latter) = programs()
            for name in (former, IDENT.rstrip(b"\0")):
                late = await rig.client("work")
                await late.command(CONNECT, 0, 0, name.ljust(32, b"\0"))
                assert (await late.next()).kind == 0
            client = await rig.client("work")
            await client.command(CONNECT, 0, 0, latter.ljust(32, b"\0"))
            assert (await client.next()).params == (WORK, 513)
            assert await work.next() == (CONNECT, params(CONNECT, 0, 513, IDENT)[8:])


async def test_program_for_a_request_that_is_over_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """An agent that uses one name for all would else start any number of them."""
    with idle_programs(monkeypatch, tmp_path) as programs:
        async with wire(lambda _: allow("@adminvm")) as rig:
            work = await rig.qube("work", WORK)
            work.send(trigger(b"dom0", b"my.Service\0"))
            await until(lambda: len(programs()) == 1)
            rig.answer = lambda _: "result=deny\n"
            work.send(trigger(b"dom0", b"my.Service\0"))
            assert await work.next() == (REFUSED, IDENT)
            await until(lambda: not Path(f"/proc/{programs()[0][0]}").exists())


async def test_log_of_a_long_request_is_short():
    """65,000 bytes a line, ten times a second, would fill the disk."""
    async with wire() as rig:
        work = await rig.qube("work", WORK)
        with capture_logs() as lines:
            work.send(trigger(b"vault", b"my.Service+" + b"x" * 64_000 + b"\0"))
            assert await work.next() == (REFUSED, IDENT)
        line = next(line for line in lines if line["event"] == "decided for a qube")
        assert line["service"].startswith("my.Service+xxx")
        assert len(str(line)) < 2 * sparing.LONGEST
