"""Agents of the wire protocol that come, break the protocol, and go."""

from __future__ import annotations

import asyncio

import pytest
from fake_agent import EXEC, HELLO, REFUSED, STDIN, TERMINATED, TRIGGER, frame, params, trigger
from structlog.testing import capture_logs
from wire_rig import UUIDS, VAULT, WORK, wire

from caisson.qrexec import sparing
from caisson.qrexec.vchan.local import Clients
from caisson.qrexec.vchan.streams import Places


async def test_agent_may_come_again():
    """Sockets are away while it is; ports of before stay taken until their ends are told."""
    async with wire(lambda _: None) as rig:
        vault = await rig.qube("vault", VAULT)
        client = await rig.client("vault")
        await client.command(EXEC, 0, 0, b"user:true\0")
        await client.next()
        vault.send(trigger(b"work", b"my.Service\0"))
        vault.server.close()
        await asyncio.sleep(0)
        vault.link.close()
        assert (await client.next()).kind == 0
        assert list(rig.paths.run.glob("qrexec.*")) == []
        await vault.listen()
        await vault.ready()
        while not (rig.paths.run / "qrexec.vault").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 514)
        vault.send(params(TERMINATED, 0, 513))
        assert (await vault.next()).rest == b"user:true\0"


async def test_agent_may_come_again_on_a_stream_without_an_end():
    """A virtio port does not tell that its agent is gone: another hello does."""
    async with wire(lambda _: None) as rig:
        streams = Places(rig.streams, rig.streams / f"vchan.{VAULT}.0")
        (rig.streams / f"vchan.{VAULT}.0.512").symlink_to(f"vchan.{VAULT}.0.512.sock")
        vault = await rig.qube("vault", VAULT, places=streams)
        client = await rig.client("vault")
        await client.command(EXEC, 0, 0, b"user:true\0")
        assert (await client.next()).params == (VAULT, 513)
        assert (await vault.next()).kind == EXEC
        vault.send(trigger(b"work", b"my.Service\0"))
        assert await vault.link.greet() == 4
        assert (await client.next()).kind == 0
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 514)


async def test_agent_that_says_hello_all_the_time_does_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
):
    """Of many hellos the last counts, and the log tells of few: it must not fill the disk."""
    async with wire(lambda _: None) as rig:
        streams = Places(rig.streams, rig.streams / f"vchan.{VAULT}.0")
        (rig.streams / f"vchan.{VAULT}.0.512").symlink_to(f"vchan.{VAULT}.0.512.sock")
        opened: list[Clients] = []

        def note(clients: Clients) -> None:
            opened.append(clients)

        monkeypatch.setattr(Clients, "open", note)
        monkeypatch.setattr(sparing, "SECONDS", float("inf"))  # however long it takes here
        with capture_logs() as lines:
            vault = await rig.qube("vault", VAULT, places=streams)
            hellos = frame(HELLO, b"\4\0\0\0") * 1000
            vault.send(hellos, trigger(b"work", b"+\0"))
            while (await vault.next()).kind != REFUSED:
                pass
        assert len(opened) <= 4
        assert len(lines) <= 2 * sparing.LINES


@pytest.mark.parametrize(
    "said",
    [
        frame(0x999),
        frame(HELLO, b"\4\0\0\0"),
        frame(TRIGGER, bytes(128)),
        params(TERMINATED, 0, 512),
        params(TERMINATED, 0, 513, b"\0"),
        params(EXEC, 0, 513, b"user:true\0"),
        frame(STDIN, b"x"),
        trigger(b"vault", b""),
        trigger(b"vault", b"x" * 65_000 + b"\0"),
    ],
)
async def test_agent_that_breaks_the_protocol_ends_its_daemon(said: bytes):
    """Section 1.5 and QSB-089; other daemons go on."""
    async with wire() as rig:
        work = await rig.qube("work", WORK)
        await rig.qube("vault", VAULT)
        work.send(said)
        error = await rig.failure("work")
        assert str(error).isprintable()
        assert not list(rig.paths.run.glob(f"qrexec.{WORK}"))
        assert (await rig.run("vault", 0, b"user:true\0")).kind == EXEC


async def test_stream_that_ends_inside_a_message_ends_the_daemon():
    """A short read is no end."""
    async with wire() as rig:
        work = await rig.qube("work", WORK)
        work.send(trigger(b"vault", b"my.Service\0")[:-1])
        work.link.close()
        assert "in the middle" in str(await rig.failure("work"))


async def test_daemon_that_ends_late_leaves_the_next_one_alone():
    """A qube that starts anew has its names pass to its new daemon."""
    async with wire() as rig:
        await rig.qube("vault", VAULT)
        former = rig.running.pop("vault")
        await rig.qube("vault", VAULT + 1)
        former.cancel()
        await asyncio.gather(former, return_exceptions=True)
        names = {path.name for path in rig.paths.run.glob("qrexec.*")}
        assert names == {f"qrexec.{VAULT + 1}", "qrexec.vault", f"qrexec.uuid:{UUIDS['vault']}"}
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT + 1, 513)
