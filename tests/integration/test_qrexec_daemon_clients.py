"""Programs of the admin qube at the socket of a daemon of the wire protocol."""

from __future__ import annotations

import asyncio
import stat

import pytest
from fake_agent import (
    CONNECT,
    EXEC,
    HELLO,
    IDENT,
    JUST_EXEC,
    PATIENCE,
    REFUSED,
    TERMINATED,
    frame,
    params,
    trigger,
)
from wire_rig import HELLO_3, UUIDS, VAULT, WORK, wire


async def test_command_of_the_admin_qube_is_forwarded():
    """Ports of the admin qube are the lowest; `DEFAULT` is the default user, at the front only."""
    async with wire() as rig:
        vault = await rig.qube("vault", VAULT)
        for kind, port in ((EXEC, 513), (JUST_EXEC, 514)):
            reply = await rig.run("vault", 0, b"DEFAULT:echo DEFAULT:\0", kind)
            assert reply == (kind, params(kind, VAULT, port)[8:])
            assert await vault.next() == (kind, params(kind, 0, port, b"user:echo DEFAULT:\0")[8:])
        sockets = {path.name: path for path in rig.paths.run.glob("qrexec.*")}
        names = {f"qrexec.{VAULT}", "qrexec.vault", f"qrexec.uuid:{UUIDS['vault']}"}
        assert set(sockets) == names
        assert stat.S_IMODE(sockets[f"qrexec.{VAULT}"].stat().st_mode) == 0o660
        for name in names - {f"qrexec.{VAULT}"}:
            assert str(sockets[name].readlink()) == f"qrexec.{VAULT}"


async def test_end_of_a_connection_ends_its_client():
    """The word of the agent counts for the connection that it names, and frees the port."""
    async with wire() as rig:
        vault = await rig.qube("vault", VAULT)
        client = await rig.client("vault")
        await client.command(EXEC, 0, 0, b"user:true\0")
        assert (await client.next()).params == (VAULT, 513)
        assert (await vault.next()).kind == EXEC
        # Of another qube: nobody's. The answer to what follows tells that it was heard.
        vault.send(params(TERMINATED, WORK, 513), trigger(b"work", b"my.Service\0"))
        assert (await vault.next()).kind == REFUSED
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 514)
        assert not client.reader.at_eof()
        vault.send(params(TERMINATED, 0, 513))
        assert (await client.next()).kind == 0
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 513)


async def test_connection_that_another_daemon_made_is_passed_on():
    """With a port that is given there is nothing to answer, nor to remember."""
    async with wire() as rig:
        vault = await rig.qube("vault", VAULT)
        client = await rig.client("vault")
        await client.command(EXEC, WORK, 513, b"user:true\0")
        assert await vault.next() == (EXEC, params(EXEC, WORK, 513, b"user:true\0")[8:])
        client.writer.write_eof()
        assert (await client.next()).kind == 0
        assert (await rig.run("vault", WORK, b"user:true\0")).params == (VAULT, 513)


async def test_request_is_connected_by_nobody_before_it_is_allowed():
    """A program of the admin qube may answer those only that it was started for."""
    asked = asyncio.Event()

    def answer(_question: dict[str, str]) -> None:
        asked.set()

    async with wire(answer) as rig:
        work = await rig.qube("work", WORK)
        work.send(trigger(b"dom0", b"my.Service\0"))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        client = await rig.client("work")
        await client.command(CONNECT, 0, 0, IDENT)
        assert (await client.next()).kind == 0
        # What the agent hears next is about something else.
        assert (await rig.run("work", 0, b"user:true\0")).kind == EXEC
        assert (await work.next()).kind == EXEC


@pytest.mark.parametrize(
    "said",
    [
        frame(HELLO, b"\2\0\0\0") + params(EXEC, 0, 0, b"user:true\0"),
        frame(HELLO, b"\3\0\0"),
        frame(EXEC, b"\3\0\0\0"),
        HELLO_3 + params(EXEC, 0, 0),
        HELLO_3 + params(EXEC, 0, 0, b"user:true"),
        HELLO_3 + params(EXEC, 0, 0, b"user:\0true\0"),
        HELLO_3 + params(EXEC, 0, 512, b"user:true\0"),
        HELLO_3 + params(EXEC, 0, 769, b"user:true\0"),
        HELLO_3 + params(EXEC, VAULT, 0, b"user:true\0"),
        HELLO_3 + params(EXEC, 0, 0, b"x" * 65_527 + b"\0"),
        HELLO_3 + params(EXEC, 0, 0, b"x" * 65_528 + b"\0"),
        HELLO_3 + params(EXEC, 0, 0, b"x" * 4_088 + b"\0"),
        HELLO_3 + params(CONNECT, 0, 0, IDENT),
        HELLO_3 + params(CONNECT, 0, 0, b"no,ident\0"),
        HELLO_3 + params(REFUSED, 0, 0, IDENT),
        HELLO_3 + params(TERMINATED, 0, 513),
        HELLO_3 + params(EXEC, 0, 0, b"user:true\0") + b"!",
    ],
)
async def test_client_that_breaks_the_protocol_is_dropped_alone(said: bytes):
    """Section 1.5: the daemon, its agent and other clients go on, and the agent hears nothing."""
    async with wire() as rig:
        vault = await rig.qube("vault", VAULT)
        client = await rig.client("vault")
        client.send(said)
        assert (await client.next()).kind == HELLO
        assert (await client.next()).kind == 0
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 513)
        assert (await vault.next()).rest == b"user:true\0"


async def test_one_command_is_taken_of_a_connection():
    """Section 1.2: who says a second one is dropped, and the agent does not hear it."""
    async with wire() as rig:
        vault = await rig.qube("vault", VAULT)
        client = await rig.client("vault")
        await client.command(EXEC, 0, 0, b"user:one\0")
        assert (await client.next()).params == (VAULT, 513)
        assert (await vault.next()).rest == b"user:one\0"
        client.send(params(EXEC, 0, 0, b"user:two\0"))
        assert (await client.next()).kind == 0
        await rig.run("vault", 0, b"user:three\0")
        assert (await vault.next()).rest == b"user:three\0"


async def test_longest_command_passes():
    """QSB-089: 4096 bytes of body reach an agent that may be upstream's; on plain streams, all."""
    async with wire() as rig:
        vault = await rig.qube("vault", VAULT)
        for command in (b"user:" + b"x" * 4_082 + b"\0", b"u\0"):
            assert (await rig.run("vault", 0, command)).kind == EXEC
            assert (await vault.next()).rest == command


async def test_caller_has_no_more_ports_than_it_leaves_to_others():
    """One qube cannot take all connections of another; the admin qube always finds some."""
    async with wire() as rig:
        await rig.qube("vault", VAULT)
        replies = [await rig.run("vault", WORK, b"user:true\0") for _ in range(65)]
        assert [r.kind for r in replies] == [EXEC] * 64 + [0]
        assert (await rig.run("vault", WORK - 1, b"user:true\0")).params == (VAULT, 513 + 128)
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 514)
