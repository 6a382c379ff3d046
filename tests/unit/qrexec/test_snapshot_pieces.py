"""A snapshot goes over the link in bounded lines, and counts when it is whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from caisson.qrexec.daemon_link import DaemonLink
from caisson.qrexec.link import (
    PIECE_BYTES,
    PIECE_QUBES,
    Ack,
    Snapshot,
    ToBroker,
    encode,
    encode_domain,
    in_pieces,
    read_to_broker,
    read_to_daemon,
)

SOON = PATIENCE


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.sampled_from([0, 9, 70_000, 400_000, 2_000_000]), max_size=12),
    small=st.integers(0, 600),
    full=st.booleans(),
)
def test_pieces_are_bounded_and_together_the_snapshot(sizes: list[int], small: int, full: bool):
    """No line is longer than the bound, unless one qube is; nothing is lost, doubled or reordered.

    Each qube stays what it is, and all pieces but the last say that more follow.
    """
    domains = {
        f"q{number}": encode_domain({"tags": ["t" * size]})
        for number, size in enumerate([*sizes, *[0] * small])
    }
    pieces = list(in_pieces(Snapshot(7, full, domains, ["gone"], ["work"])))
    assert [piece.more for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    for piece in pieces:
        assert (piece.seq, piece.full) == (7, full)
        assert len(piece.domains) <= PIECE_QUBES
        assert len(piece.domains) <= 1 or sum(map(len, piece.domains.values())) <= PIECE_BYTES
        assert read_to_broker(encode(piece).removesuffix(b"\n")).more == piece.more
    found = [item for piece in pieces for item in piece.domains.items()]
    assert found == list(domains.items())
    assert [name for piece in pieces for name in piece.removed] == ["gone"]
    assert [name for piece in pieces for name in piece.open] == ["work"]


class Qubesd:
    """The other end of the link, which says what the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, seq: int, *names: str, full: bool = True, more: bool = False) -> None:
        """A snapshot, or a piece of one."""
        self.writer.write(encode(Snapshot(seq, full, {n: {} for n in names}, more=more)))

    async def acked(self) -> int:
        """The next acknowledgement; 0 at the end of the link."""
        async with asyncio.timeout(SOON):
            line = await self.reader.readline()
        if not line:
            return 0
        message = read_to_daemon(line)
        assert isinstance(message, Ack)
        return message.seq


@asynccontextmanager
async def linked(path: Path) -> AsyncIterator[tuple[DaemonLink, list[ToBroker], asyncio.Queue]]:
    """The broker's half, what it was told, and each qubesd that it connects to."""
    told: list[ToBroker] = []
    peers: asyncio.Queue[Qubesd] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        peers.put_nowait(Qubesd(reader, writer))

    server = await asyncio.start_unix_server(connected, path)
    link = DaemonLink(path, os.getuid(), on_message=told.append)
    running = asyncio.create_task(link.run())
    try:
        yield link, told, peers
    finally:
        running.cancel()
        server.close()
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        link.pump()


async def settled(link: DaemonLink, qubesd: Qubesd) -> None:
    """Let the broker read all that was said, as it does before each decision."""
    await qubesd.writer.drain()
    link.pump()


async def test_a_snapshot_counts_when_its_last_piece_is_there(tmp_path: Path):
    """Until then nothing is told, nothing acknowledged, and nothing may be decided."""
    async with linked(tmp_path / "link") as (link, told, peers):
        qubesd = await peers.get()
        for name in ("a", "b"):
            qubesd.say(3, name, more=True)
            await settled(link, qubesd)
            assert (told, link.synced) == ([], False)
        qubesd.say(3, "c")
        assert await qubesd.acked() == 3
        assert link.synced
        (whole,) = told
        assert isinstance(whole, Snapshot)
        assert (whole.full, list(whole.domains)) == (True, ["a", "b", "c"])


async def test_half_a_snapshot_is_forgotten_with_its_link(tmp_path: Path):
    """A qubesd that ends in the middle leaves no qube behind for the next one's snapshot."""
    async with linked(tmp_path / "link") as (link, told, peers):
        qubesd = await peers.get()
        qubesd.say(1, "old", more=True)
        await settled(link, qubesd)
        qubesd.writer.close()
        qubesd = await peers.get()
        qubesd.say(1, "new")
        assert await qubesd.acked() == 1
        assert [list(whole.domains) for whole in told] == [["new"]]


@pytest.mark.parametrize(("seq", "full"), [(2, True), (1, False)])
async def test_pieces_that_do_not_belong_together_end_the_link(
    tmp_path: Path, seq: int, full: bool
):
    """Two snapshots are never mixed into one."""
    async with linked(tmp_path / "link") as (link, told, peers):
        qubesd = await peers.get()
        qubesd.say(1, "a", more=True)
        qubesd.say(seq, "b", full=full)
        assert await qubesd.acked() == 0
        assert (told, link.synced) == ([], False)


def test_a_snapshot_of_few_is_one_line():
    """What is small costs what it cost."""
    snapshot = Snapshot(1, False, {"a": msgspec.Raw(b"{}")})
    assert list(in_pieces(snapshot)) == [snapshot]
