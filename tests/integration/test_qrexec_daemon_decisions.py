"""Daemons of the wire protocol that ask a policy and take calls from one to the other."""

from __future__ import annotations

import asyncio

import pytest
from fake_agent import (
    CONNECT,
    EXEC,
    EXIT,
    HELLO,
    IDENT,
    PATIENCE,
    REFUSED,
    STDERR,
    STDIN,
    STDOUT,
    TRIGGER,
    TRIGGER3,
    frame,
    params,
    trigger,
)
from wire_rig import HELLO_3, UUIDS, VAULT, WORK, allow, wire


async def test_call_goes_from_qube_to_qube():
    """The flow of section 1.4, to the last byte: ports, idents, data, and the end."""
    async with wire(lambda _: allow("vault", target_uuid=f"uuid:{UUIDS['vault']}")) as rig:
        work, vault = await rig.qube("work", WORK), await rig.qube("vault", VAULT)
        work.send(trigger(b"vault", b"my.Service+x\0"))
        start = await vault.next()
        assert (start.kind, start.params) == (EXEC, (WORK, 513))
        assert start.rest == b"user:QUBESRPC my.Service+x work\0"
        connect = await work.next()
        assert (connect.kind, connect.params, connect.rest) == (CONNECT, (VAULT, 513), IDENT)
        caller = asyncio.create_task(work.wait_for(VAULT, 513))
        service = await vault.reach(WORK, 513)
        client = await caller
        assert await asyncio.gather(service.greet(), client.greet()) == [4, 4]
        client.send(frame(STDIN, b"question"), frame(STDIN))
        assert [await service.next(), await service.next()] == [(STDIN, b"question"), (STDIN, b"")]
        service.send(
            frame(STDOUT, b"answer"), frame(STDOUT), frame(STDERR), frame(EXIT, b"*\0\0\0")
        )
        said = [await client.next() for _ in range(4)]
        assert said == [(STDOUT, b"answer"), (STDOUT, b""), (STDERR, b""), (EXIT, b"*\0\0\0")]
        assert rig.questions == [
            {"source": "work", "intended_target": "vault", "service_and_arg": "my.Service+x"}
        ]


async def test_policy_and_service_are_told_the_same_bytes():
    """QSB-038: what is replaced is replaced before the policy sees it, and the service as well."""
    async with wire(lambda _: allow("vault")) as rig:
        work, vault = await rig.qube("work", WORK), await rig.qube("vault", VAULT)
        for service in (b"my.Shell+$(id)", b"my.A\x1b+b\xff", b"my.P+../x y", b"my.None"):
            work.send(trigger(b"va$lt", service + b"\0"))
            command = (await vault.next()).rest
            assert (await work.next()).kind == CONNECT
            question = rig.questions.pop()
            assert command == f"user:QUBESRPC {question['service_and_arg']} work\0".encode()
            assert question["intended_target"] == "va_lt"
        work.send(trigger(b"vault", b"my.Shell+$(id)\0"))
        assert (await vault.next()).rest == b"user:QUBESRPC my.Shell+__id_ work\0"


@pytest.mark.parametrize(
    "answer",
    [
        "result=deny\n",
        "",
        "result=allow\n",
        allow("vault") + "result=deny\n",
        allow("vault") + "nonsense\n",
        allow("vault", user="a b"),
        allow("work"),
        allow("other", target_uuid=f"uuid:{UUIDS['work']}"),
        allow("nobody", autostart="False"),
        allow("nobody"),
        allow("@dispvm:nobody"),
        allow("../vault"),
    ],
)
async def test_whatever_is_no_allowed_call_is_refused(answer: str):
    """A denial, a malformed answer, a loop, and a target that cannot be had."""
    async with wire(lambda _: answer) as rig:
        work = await rig.qube("work", WORK)
        work.send(trigger(b"vault", b"my.Service\0"))
        assert await work.next() == (REFUSED, IDENT)


@pytest.mark.parametrize("target", ["vault", "@dispvm:vault"])
async def test_nothing_is_started_against_the_rule(target: str):
    """`autostart=no`: a target that does not run is refused, and so is every disposable."""
    async with wire(lambda _: allow(target, autostart="False")) as rig:
        work = await rig.qube("work", WORK)
        work.send(trigger(b"vault", b"my.Service\0"))
        assert await work.next() == (REFUSED, IDENT)
        assert rig.acts == []


@pytest.mark.parametrize(
    "said",
    [
        HELLO_3 + params(EXEC, VAULT, 512),
        HELLO_3 + params(EXEC, VAULT, 769),
        HELLO_3 + params(EXEC, VAULT, 513, b"\0"),
        HELLO_3 + params(CONNECT, VAULT, 513),
        frame(HELLO, b"\2\0\0\0") + params(EXEC, VAULT, 513),
        params(EXEC, VAULT, 513),
        HELLO_3,
    ],
)
async def test_target_whose_daemon_makes_no_sense_is_refused(said: bytes):
    """Its word is checked before the caller's agent hears it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.write_eof()
        await reader.read()
        writer.close()

    async with wire(lambda _: allow("vault")) as rig:
        work = await rig.qube("work", WORK)
        async with await asyncio.start_unix_server(answer, rig.paths.run / "qrexec.vault"):
            work.send(trigger(b"vault", b"my.Service\0"))
            assert await work.next() == (REFUSED, IDENT)


async def test_call_is_refused_without_anybody_who_decides():
    """Deny is what there is by default."""
    async with wire() as rig:
        rig.paths.policy_socket.unlink()
        work = await rig.qube("work", WORK)
        work.send(trigger(b"vault", b"my.Service\0"))
        assert await work.next() == (REFUSED, IDENT)


async def test_target_is_started_once():
    """`admin.vm.Start`, then the call, if the policy lets the target be started."""
    async with wire(lambda _: allow("vault", user="root")) as rig:
        work = await rig.qube("work", WORK)

        async def start(_method: str, _name: str, _payload: bytes) -> bytes:
            await rig.qube("vault", VAULT)
            return b""

        rig.on_act = start
        work.send(trigger(b"vault", b"my.Service\0"))
        assert (await work.next()).kind == CONNECT
        assert rig.acts == [("admin.vm.Start", "vault", b"")]
        assert (await rig.agents[1].next()).rest == b"root:QUBESRPC my.Service+ work\0"


async def test_relay_is_told_the_transport_service():
    """What the policy puts in place of service and source is what the target is told."""
    more = {"service": "my.Ssh+far+my.Service+x", "policy_source": "elsewhere"}
    async with wire(lambda _: allow("vault", **more)) as rig:
        work, vault = await rig.qube("work", WORK), await rig.qube("vault", VAULT)
        work.send(trigger(b"far", b"my.Service+x\0", source=b"elsewhere"))
        command = b"user:QUBESRPC my.Ssh+far+my.Service+x elsewhere\0"
        assert (await vault.next()).rest == command
        assert rig.questions[0]["requested_source"] == "elsewhere"


@pytest.mark.parametrize("version", [2, 3, 5])
async def test_older_agents_are_served_in_their_version(version: int):
    """Each version has a trigger of its own; a newer agent is answered with ours."""
    async with wire(lambda _: allow("vault")) as rig:
        work, vault = await rig.qube("work", WORK, version), await rig.qube("vault", VAULT)
        if version == 2:
            arrays = b"my.Service".ljust(64, b"\0") + b"vault".ljust(32, b"\0") + IDENT
            work.send(frame(TRIGGER, arrays))
        else:
            work.send(frame(TRIGGER3, b"vault".ljust(64, b"\0") + IDENT + b"my.Service\0"))
        assert (await vault.next()).rest == b"user:QUBESRPC my.Service+ work\0"
        assert (await work.next()).kind == CONNECT
        assert "requested_source" not in rig.questions[0]


async def test_name_of_a_request_may_be_used_again():
    """The answer to a request that its agent forgot does not reach the next of that name."""
    first = asyncio.Event()

    def answer(question: dict[str, str]) -> str | None:
        if question["service_and_arg"] == "my.Slow+":
            first.set()
            return None
        return allow("vault")

    async with wire(answer) as rig:
        work, vault = await rig.qube("work", WORK), await rig.qube("vault", VAULT)
        work.send(trigger(b"vault", b"my.Slow\0"))
        async with asyncio.timeout(PATIENCE):
            await first.wait()
        work.send(trigger(b"vault", b"my.Fast\0"))
        assert (await vault.next()).rest == b"user:QUBESRPC my.Fast+ work\0"
        assert (await work.next()).kind == CONNECT


async def test_flood_of_requests_is_refused_beyond_its_bound():
    """256 may be pending; others are refused at once, and other qubes notice nothing."""
    async with wire(lambda q: None if q["source"] == "work" else allow("work")) as rig:
        work, vault = await rig.qube("work", WORK), await rig.qube("vault", VAULT)
        for number in range(300):
            work.send(trigger(b"vault", b"my.Service\0", b"SOCKET%d" % number))
        refusals = [await work.next() for _ in range(44)]
        idents = [(b"SOCKET%d" % n).ljust(32, b"\0") for n in range(256, 300)]
        assert refusals == [(REFUSED, ident) for ident in idents]
        vault.send(trigger(b"work", b"my.Service\0"))
        assert (await work.next()).kind == EXEC
        assert (await vault.next()).kind == CONNECT
