"""Daemons of the wire protocol that ask a policy and take calls from one to the other."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_rig import until
from fake_agent import (
    CONNECT,
    EXEC,
    EXIT,
    HELLO,
    JUST_EXEC,
    PATIENCE,
    REFUSED,
    STDERR,
    STDIN,
    STDOUT,
    TERMINATED,
    TRIGGER,
    TRIGGER3,
    frame,
    params,
    trigger,
)
from structlog.testing import capture_logs
from wire_rig import UUIDS, allow, wire

from caisson.qrexec import sparing
from caisson.qrexec.vchan import peers
from caisson.qrexec.vchan.local import Clients
from caisson.qrexec.vchan.streams import Places

IDENT = b"SOCKET7".ljust(32, b"\0")
WORK, VAULT = 42, 43
HELLO_3 = frame(HELLO, b"\3\0\0\0")


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


@pytest.mark.parametrize("ends", ["call", "caller", "daemon"])
async def test_disposable_lives_as_long_as_its_call(ends: str):
    """It is made, started, called by its uuid, and killed at the end, whoever tells of that."""
    base = "00000000-0000-4000-8000-000000000009"
    async with wire(lambda _: allow("@dispvm:base", target_uuid=f"@dispvm:uuid:{base}")) as rig:
        work = await rig.qube("work", WORK)
        ended = asyncio.Event()
        made = f"uuid:{UUIDS['vault']}"

        async def act(method: str, _name: str, _payload: bytes) -> bytes:
            match method:
                case "admin.vm.CreateDisposable":
                    return made.encode()
                case "admin.vm.Start":
                    await rig.qube("vault", VAULT)
                case _:
                    ended.set()
            return b""

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        connect = await work.next()
        assert (connect.kind, connect.params) == (CONNECT, (VAULT, 513))
        assert [act[0] for act in rig.acts] == ["admin.vm.CreateDisposable", "admin.vm.Start"]
        assert rig.acts[0] == ("admin.vm.CreateDisposable", f"uuid:{base}", b"uuid")
        if ends == "call":
            rig.agents[1].send(params(TERMINATED, WORK, 513))
        elif ends == "caller":
            # The disposable does not say so: it would outlive its caller, as long as it likes.
            work.send(params(TERMINATED, VAULT, 513))
        else:
            rig.running["work"].cancel()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert rig.acts[2] == ("admin.vm.Kill", made, b"")


async def test_disposable_that_is_made_while_its_daemon_ends_is_killed():
    """Its name is waited for."""
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        asked, go = asyncio.Event(), asyncio.Event()

        async def act(_method: str, _name: str, _payload: bytes) -> bytes:
            asked.set()
            await go.wait()
            return b"disp7"

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        rig.running["work"].cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(rig.running["work"], return_exceptions=True)
        assert rig.acts[-1] == ("admin.vm.Kill", "disp7", b"")


async def test_disposable_of_a_caller_that_left_is_killed():
    """Nobody else would know of it."""
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        left, ended = asyncio.Event(), asyncio.Event()

        async def act(method: str, _name: str, _payload: bytes) -> bytes:
            if method == "admin.vm.CreateDisposable":
                work.link.close()
                await work.ready()
                left.set()
                return b"disp7"
            ended.set()
            return b""

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        async with asyncio.timeout(PATIENCE):
            await left.wait()
            await ended.wait()
        assert [act[:2] for act in rig.acts] == [
            ("admin.vm.CreateDisposable", "base"),
            ("admin.vm.Kill", "disp7"),
        ]


async def test_disposables_of_one_qube_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """Also where the agent uses one ident for all, so that no request stays pending."""
    monkeypatch.setattr(peers, "MOST_DISPOSABLES", 2)
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        making: asyncio.Queue[str] = asyncio.Queue()
        killed: asyncio.Queue[str] = asyncio.Queue()
        go = asyncio.Event()

        async def act(method: str, name: str, _payload: bytes) -> bytes:
            if method == "admin.vm.CreateDisposable":
                await making.put(name)
                await go.wait()
            else:
                await killed.put(name)
            return b"disp7"

        rig.on_act = act
        async with asyncio.timeout(PATIENCE):
            for _ in range(2):
                work.send(trigger(b"@dispvm", b"my.Service\0"))
                await making.get()
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await work.next() == (REFUSED, IDENT)
            go.set()
            assert [await killed.get() for _ in range(2)] == ["disp7"] * 2
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await making.get() == "base"


async def test_disposables_of_an_agent_that_left_count_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
):
    """One that hangs up, or says hello again, would else have any number of them."""
    monkeypatch.setattr(peers, "MOST_DISPOSABLES", 2)
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        making: asyncio.Queue[str] = asyncio.Queue()
        killed: asyncio.Queue[str] = asyncio.Queue()
        go = asyncio.Event()

        async def act(method: str, name: str, _payload: bytes) -> bytes:
            if method == "admin.vm.CreateDisposable":
                await making.put(name)
                await go.wait()
            else:
                await killed.put(name)
            return b"disp7"

        rig.on_act = act
        async with asyncio.timeout(PATIENCE):
            for number in range(2):
                work.send(trigger(b"@dispvm", b"my.Service\0", b"SOCKET%d" % number))
                await making.get()
            work.link.close()
            await work.ready()
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await work.next() == (REFUSED, IDENT)
            go.set()
            assert [await killed.get() for _ in range(2)] == ["disp7"] * 2
            work.send(trigger(b"@dispvm", b"my.Service\0"))
            assert await making.get() == "base"


async def test_disposable_whose_caller_left_while_it_started_serves_nobody():
    """Its service is not begun: it would wait for a caller that never comes."""
    async with wire(lambda _: allow("@dispvm:base")) as rig:
        work = await rig.qube("work", WORK)
        ended = asyncio.Event()

        async def act(method: str, _name: str, _payload: bytes) -> bytes:
            match method:
                case "admin.vm.CreateDisposable":
                    return b"vault"
                case "admin.vm.Start":
                    await rig.qube("vault", VAULT)
                    work.link.close()
                    await work.ready()
                case _:
                    ended.set()
            return b""

        rig.on_act = act
        work.send(trigger(b"@dispvm", b"my.Service\0"))
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert rig.acts[-1] == ("admin.vm.Kill", "vault", b"")
        assert (await rig.run("vault", 0, b"user:true\0")).params == (VAULT, 513)
        assert (await rig.agents[1].next()).rest == b"user:true\0"


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


# Programs of the admin qube.


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


# The agent's coming and going.


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
