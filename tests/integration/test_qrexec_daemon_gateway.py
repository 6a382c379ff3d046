"""A qube on the wire, and qubes that the broker connects by pipes, call each other."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from broker_rig import Rig, broker_rig, until
from fake_agent import (
    CONNECT,
    EXEC,
    EXIT,
    IDENT,
    JUST_EXEC,
    REFUSED,
    STDERR,
    STDIN,
    STDOUT,
    TERMINATED,
    FakeAgent,
    frame,
    params,
    trigger,
)
from far_daemon import FAR, far_daemon
from structlog.testing import capture_logs

from caisson.names import QubeName
from caisson.paths import AGENT_BINARY
from caisson.qrexec.broker import AGENT_GRACE
from caisson.qrexec.vchan import Daemon, gateway
from caisson.qrexec.vchan.gateway import LINGER
from caisson.qrexec.vchan.streams import Places

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not AGENT_BINARY.exists(), reason="the agent is not built"),
]

POLICY = """\
my.Denied * * * deny
my.Remote * elsewhere vault allow
my.Remote * * * deny
* * @anyvm @anyvm allow
"""


@dataclass
class Gate:
    """An instance with a broker, and a qube `far` on the wire."""

    rig: Rig
    far: FakeAgent
    daemon: Daemon

    @property
    def ports(self) -> int:
        """How many ports are taken."""
        return len(self.daemon._board.ports)


@asynccontextmanager
async def gate(policy: str = POLICY) -> AsyncIterator[Gate]:
    """Everything is gone afterwards."""
    async with broker_rig(policy) as rig:
        streams = rig.paths.root / "streams"
        streams.mkdir()
        far = FakeAgent(streams, FAR)
        await far.listen()
        try:
            async with far_daemon(rig, Places(streams), "user", far.ready) as daemon:
                yield Gate(rig, far, daemon)
        finally:
            await far.close()


async def test_qube_on_the_wire_calls_one_with_pipes():
    """Input, output, errors and the exit code pass; then nothing of the call is left."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        g.far.send(trigger(b"vault", b"my.Service+x\0"))
        service = await vault.next_call()
        assert (service.descriptor, service.source) == ("my.Service+x", "far")
        connect = await g.far.next()
        assert (connect.kind, connect.params, connect.rest) == (CONNECT, (0, 513), IDENT)
        data = await g.far.wait_for(0, 513)
        assert await data.greet() == 4
        data.send(frame(STDIN, b"question"), frame(STDIN))
        assert await asyncio.to_thread(os.read, service.stdin, 100) == b"question"
        assert await asyncio.to_thread(os.read, service.stdin, 100) == b""
        os.write(service.stdout, b"answer")
        os.write(service.stderr, b"oh")
        assert {await data.next(), await data.next()} == {(STDOUT, b"answer"), (STDERR, b"oh")}
        await service.end(42)
        assert {await data.next(), await data.next()} == {(STDOUT, b""), (STDERR, b"")}
        assert await data.next() == (EXIT, b"*\0\0\0")
        assert (await g.rig.audited(ended="exited"))["code"] == 42
        assert g.ports == 1
        g.far.send(params(TERMINATED, 0, 513))
        await until(lambda: g.ports == 0)


async def test_one_with_pipes_calls_the_qube_on_the_wire():
    """The client of the admin qube carries the data; its exit code is the call's."""
    async with gate() as g:
        await g.rig.run("work")
        caller = await g.rig.call("work", "far", "my.Service+x")
        start = await g.far.next()
        assert (start.kind, start.params) == (EXEC, (0, 513))
        assert start.rest == b"user:QUBESRPC my.Service+x work\0"
        data = await g.far.reach(0, 513)
        assert await data.greet() == 4
        kind, pipes = await caller.receive()
        assert kind == b"A"
        os.write(pipes[0], b"question")
        os.close(pipes[0])
        assert await data.next() == (STDIN, b"question")
        data.send(frame(STDOUT, b"answer"), frame(STDOUT), frame(STDERR), frame(EXIT, b"*\0\0\0"))
        assert await asyncio.to_thread(os.read, pipes[1], 100) == b"answer"
        assert (await caller.receive())[0] == b"X42"
        for pipe in pipes[1:]:
            os.close(pipe)
        await g.rig.audited(ended="exited", source="work", target="far", code=42)


async def test_admin_qube_runs_commands_in_the_qube_on_the_wire():
    """A command line, its user, and a service that nobody waits for."""
    async with gate() as g:
        admin = g.rig.client("dom0")
        await admin.send(b"Dfar\0root\0echo a:b")
        start = await g.far.next()
        assert (start.kind, start.rest) == (EXEC, b"root:echo a:b\0")
        data = await g.far.reach(0, 513)
        await data.greet()
        data.send(frame(STDOUT), frame(STDERR), frame(EXIT, b"\3\0\0\0"))
        kind, pipes = await admin.receive()
        assert kind == b"A"
        assert (await admin.receive())[0] == b"X3"
        for pipe in pipes:
            os.close(pipe)
        admin = g.rig.client("dom0")
        await admin.send(b"Jfar\0\0QUBESRPC my.Service+x dom0")
        start = await g.far.next()
        assert (start.kind, start.rest) == (JUST_EXEC, b"user:QUBESRPC my.Service+x dom0\0")


@pytest.mark.parametrize(
    ("kind", "request_", "command"),
    [
        (EXEC, b"D%s\0root\0nogui:QUBESRPC my.A dom0", b"root:nogui:QUBESRPC my.A dom0\0"),
        (JUST_EXEC, b"J%s\0\0nogui:QUBESRPC my.A dom0", b"user:nogui:QUBESRPC my.A dom0\0"),
        (EXEC, b"D%s\0\0nogui:echo a", b"user:nogui:echo a\0"),
    ],
)
async def test_the_qube_on_the_wire_is_told_to_wait_for_no_session(
    kind: int, request_: bytes, command: bytes
):
    """`nogui:` of the admin qube's programs passes the broker, and counts at the qube's agent."""
    async with gate() as g:
        await g.rig.client("dom0").send(request_ % b"far")
        start = await g.far.next()
        assert (start.kind, start.rest) == (kind, command)


async def test_caller_leaves_room_for_calls_of_others(monkeypatch: pytest.MonkeyPatch):
    """One qube whose calls never end cannot keep the qube on the wire from the others."""
    monkeypatch.setattr(gateway, "MOST_SERVED", 4)
    async with gate() as g:
        await g.rig.run("work")
        await g.rig.run("vault")
        for port in (513, 514):
            await g.rig.call("work", "far", "my.Service")
            assert (await g.far.next()).params == (0, port)
        refused = await g.rig.call("work", "far", "my.Service")
        assert (await refused.receive())[0] == b"A"
        assert (await refused.receive())[0] == b"X125"
        await g.rig.call("vault", "far", "my.Service")
        start = await g.far.next()
        assert start.rest == b"user:QUBESRPC my.Service+ vault\0"
        admin = g.rig.client("dom0")
        await admin.send(b"Dfar\0\0true")
        assert (await g.far.next()).rest == b"user:true\0"
        # What has ended makes room again.
        for port in (513, 514):
            data = await g.far.reach(0, port)
            await data.greet()
            data.send(frame(STDOUT), frame(STDERR), frame(EXIT, bytes(4)))
        await g.rig.audited(source="work", ended="exited", code=0)
        await until(lambda: sum(r["code"] == 0 for r in g.rig.audit()) == 2)
        await g.rig.call("work", "far", "my.Service")
        assert (await g.far.next()).rest == b"user:QUBESRPC my.Service+ work\0"


async def test_flood_of_requests_reaches_the_broker_in_its_bounds():
    """All are answered, and then calls pass as before; so they do for others meanwhile."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        await g.rig.run("work")
        for number in range(300):
            g.far.send(trigger(b"vault", b"my.Denied\0", b"SOCKET%d" % number))
        other = await g.rig.call("work", "vault", "my.Service")
        service = await vault.next_call()
        assert service.source == "work"
        await service.end()
        answers = [await g.far.next() for _ in range(300)]
        assert {answer.kind for answer in answers} == {REFUSED}
        assert len({answer.body for answer in answers}) == 300
        g.far.send(trigger(b"vault", b"my.Service\0"))
        await (await vault.next_call()).end()
        assert (await g.far.next()).kind == CONNECT
        kind, pipes = await other.receive()
        assert kind == b"A"
        for pipe in pipes:
            os.close(pipe)


async def test_what_the_broker_refuses_is_refused():
    """By its policy, by its own checks, and when it is away; it writes down what it decides."""
    async with gate() as g:
        for target, service in ((b"vault", b"my.Denied\0"), (b"far", b"my.Service\0")):
            g.far.send(trigger(target, service))
            assert await g.far.next() == (REFUSED, IDENT)
        assert (await g.rig.audited(service="my.Denied"))["source"] == "far"
        await g.rig.kill_broker()
        g.far.send(trigger(b"vault", b"my.Service\0"))
        assert await g.far.next() == (REFUSED, IDENT)


async def test_machine_of_a_removed_qube_does_not_speak_for_the_next_one_of_its_name():
    """The new qube has rights of its own (name reuse)."""
    async with gate() as g:
        await g.rig.run("vault")
        await g.rig.link.close_qube(QubeName("far"))
        await g.rig.add("far")
        await g.rig.link.open_qube(QubeName("far"))
        client = g.rig.client("far")
        await client.send(b"Cvault\0my.Denied\0")
        assert (await client.receive())[0] == b"R"
        g.far.send(trigger(b"vault", b"my.Service\0"))
        assert await g.far.next() == (REFUSED, IDENT)
        assert {record["service"] for record in g.rig.audit()} == {"my.Denied"}


async def test_relay_on_the_wire_calls_for_its_remote_qube():
    """For whom it calls is for the policy to believe."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        await g.rig.add("elsewhere", type="RemoteVM", relayvm="far", transport_rpc="my.Ssh")
        await g.rig.add("another", type="RemoteVM", relayvm="vault", transport_rpc="my.Ssh")
        g.far.send(trigger(b"vault", b"my.Remote\0", source=b"another"))
        assert await g.far.next() == (REFUSED, IDENT)
        g.far.send(trigger(b"vault", b"my.Remote\0", source=b"elsewhere"))
        service = await vault.next_call()
        assert service.source == "elsewhere"
        assert (await g.far.next()).kind == CONNECT
        await service.end()


async def test_port_is_not_used_again_while_a_link_may_come_there():
    """Else the link of a call that its caller left would meet the next call."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        g.far.send(trigger(b"vault", b"my.Service\0"))
        service = await vault.next_call()
        assert (await g.far.next()).params == (0, 513)
        g.far.send(params(TERMINATED, 0, 513))  # and nobody ever waited there
        g.far.send(trigger(b"vault", b"my.Service\0"))
        other = await vault.next_call()
        assert (await g.far.next()).params == (0, 514)
        await service.end()
        await other.end()


async def test_port_is_not_used_again_before_the_agent_told_of_the_end():
    """Else what it tells of the former call would end the one that has the port by then."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        for port in (513, 514):
            g.far.send(trigger(b"vault", b"my.Service\0"))
            service = await vault.next_call()
            assert (await g.far.next()).params == (0, port)
            with capture_logs() as lines:
                data = await g.far.wait_for(0, port)
                await data.greet()
                data.close()
                # What carried it is gone, and the agent has said nothing.
                await until(lambda lines=lines: any(x["event"] == "a link broke" for x in lines))
            service.close()
        assert g.ports == 2
        g.far.send(params(TERMINATED, 0, 513), params(TERMINATED, 0, 514))
        await until(lambda: g.ports == 0)


async def test_end_that_is_told_again_and_again_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    """While a link may still come there, the port is waited for once, not once each time."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        g.far.send(trigger(b"vault", b"my.Service\0"))
        service = await vault.next_call()
        assert (await g.far.next()).params == (0, 513)
        waits: list[float] = []
        loop = asyncio.get_running_loop()
        later = loop.call_later

        def counted(delay: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
            waits.append(delay)
            return later(delay, *rest, **more)

        monkeypatch.setattr(loop, "call_later", counted)
        g.far.send(*[params(TERMINATED, 0, 513)] * 500, trigger(b"vault", b"+\0"))
        assert await g.far.next() == (REFUSED, IDENT)
        assert waits.count(LINGER) == 1
        await service.end()


async def test_daemon_without_descriptors_refuses_and_keeps_no_port(
    monkeypatch: pytest.MonkeyPatch,
):
    """Its calls are served again as soon as there are some."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        pipe2 = os.pipe2

        def none_left(flags: int) -> tuple[int, int]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(os, "pipe2", none_left)
        g.far.send(trigger(b"vault", b"my.Service\0"))
        service = await vault.next_call()
        assert await g.far.next() == (REFUSED, IDENT)
        service.close()
        assert g.ports == 0
        monkeypatch.setattr(os, "pipe2", pipe2)
        g.far.send(trigger(b"vault", b"my.Service\0"))
        service = await vault.next_call()
        assert (await g.far.next()).params == (0, 513)
        await service.end()


async def test_link_that_a_qube_breaks_is_one_bounded_line(capfd: pytest.CaptureFixture[str]):
    """Programs that carry data say nothing on the daemon's log, which a qube could fill by them."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        with capture_logs() as lines:
            g.far.send(trigger(b"vault", b"my.Service\0"))
            service = await vault.next_call()
            assert (await g.far.next()).params == (0, 513)
            data = await g.far.wait_for(0, 513)
            await data.greet()
            data.send(b"\xff" * 8)
            await until(lambda: any(line["event"] == "a link broke" for line in lines))
        assert lines[-1] | {"log_level": ""} == {
            "event": "a link broke",
            "qube": "far",
            "port": 513,
            "code": 1,
            "log_level": "",
        }
        service.close()
    assert "protocol" not in capfd.readouterr().err


async def test_broker_that_ends_loses_calls_and_not_the_qube():
    """The caller gets 255; a new broker has calls of the qube, and to it."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        g.far.send(trigger(b"vault", b"my.Service\0"))
        service = await vault.next_call()
        assert (await g.far.next()).kind == CONNECT
        data = await g.far.wait_for(0, 513)
        await data.greet()
        await g.rig.kill_broker()
        service.close()
        ends = [await data.next() for _ in range(3)]
        assert ends[2] == (EXIT, b"\xff\0\0\0")
        hellos = len(g.rig.hellos)
        g.rig.start_broker()
        await g.rig.ready()
        await until(lambda: len(g.rig.hellos) > hellos)
        again = await g.rig.agent("vault")
        g.far.send(trigger(b"vault", b"my.Service\0"))
        await (await again.next_call()).end()
        assert (await g.far.next()).kind == CONNECT


async def test_agent_that_comes_back_ends_the_calls_to_the_former_one():
    """It knows nothing of them: their callers hear of the loss all the same."""
    async with gate() as g:
        await g.rig.run("vault")
        client = await g.rig.call("vault", "far", "my.Service")
        message, descriptors = await client.receive()
        assert message == b"A"
        assert (await g.far.next()).kind == EXEC
        g.far.link.close()
        await g.far.ready()
        told, _ = await client.receive(AGENT_GRACE / 2)
        assert told.startswith((b"E255\0", b"X255"))
        for descriptor in descriptors:
            os.close(descriptor)


async def test_agent_that_leaves_ends_what_carries_its_calls():
    """Nothing of them is left; the broker hears of it."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        g.far.send(trigger(b"vault", b"my.Service\0"))
        service = await vault.next_call()
        assert (await g.far.next()).kind == CONNECT
        g.far.link.close()
        await g.rig.audited(ended="caller-gone")
        assert await asyncio.to_thread(os.read, service.stdin, 100) == b""
        service.close()
        await g.far.ready()
        await until(lambda: g.ports == 0)


async def test_agent_that_leaves_frees_the_ports_of_calls_that_ended_before():
    """It had not told of their ends, and the agent that comes next never will."""
    async with gate() as g:
        vault = await g.rig.run("vault")
        g.far.send(trigger(b"vault", b"my.Service\0"))
        service = await vault.next_call()
        assert (await g.far.next()).kind == CONNECT
        with capture_logs() as lines:
            data = await g.far.wait_for(0, 513)
            await data.greet()
            data.close()
            await until(lambda: any(line["event"] == "a link broke" for line in lines))
        service.close()
        assert g.ports == 1
        g.far.link.close()
        await g.far.ready()
        await until(lambda: g.ports == 0)
