"""Calls over plain streams, which are like the ports of a virtual machine: no names, no ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import secrets
import signal
import socket
import struct
import subprocess
import tempfile
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from broker_rig import PATIENCE, Rig, broker_rig, until
from far_daemon import far_daemon, sockets_of
from plain_ports import Ports, plain_ports
from wire_peer import (
    CONTROL_PORT,
    EXEC_CMDLINE,
    EXIT_CODE,
    PEER,
    STDIN,
    STDOUT,
    TERMINATED,
    TRIGGER_SERVICE4,
    Wire,
    WireAgent,
    code_of,
    hello,
    joined,
    message,
    numbers,
    trigger,
    wire_agent,
)

from caisson.paths import AGENT_BINARY
from caisson.qrexec.vchan import Daemon
from caisson.qrexec.vchan.streams import Places

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not AGENT_BINARY.exists(), reason="the agent is not built"),
]

MAGIC = b"\xffqrexec"
DATA_PORTS = range(CONTROL_PORT + 1, CONTROL_PORT + 5)


@dataclass
class Machine:
    """A qube `far` whose agent is reached by ports, and the broker's qubes."""

    rig: Rig
    agent: WireAgent
    daemon: Daemon
    sockets: Path
    ports: Ports

    @property
    def taken(self) -> int:
        """How many ports are taken."""
        return len(self.daemon._board.ports)

    async def run(self, command: str, *options: str) -> tuple[int | None, bytes, bytes]:
        """Run a command in the machine from the admin qube; code, output and errors."""
        process = await asyncio.create_subprocess_exec(
            "qrexec-client",
            f"--socket-dir={self.sockets}",
            "-d",
            "far",
            *options,
            f"{self.agent.user}:{command}",
            executable=AGENT_BINARY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"CAISSON_ROOT": str(self.rig.paths.root), "VCHAN_DOMAIN": "0"},
        )
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        return process.returncode, out, err


@asynccontextmanager
async def machine(
    monkeypatch: pytest.MonkeyPatch, *, former: bytes = b""
) -> AsyncIterator[Machine]:
    """Everything is gone afterwards.

    Args:
        monkeypatch: sets the environment of the daemon.
        former: what lies in every port for data, in both directions.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ports-")))
        directory.chmod(0o755)  # noqa: ASYNC240 - at once
        ports = stack.enter_context(plain_ports(directory, (CONTROL_PORT, *DATA_PORTS)))
        for port in DATA_PORTS:
            ports.leave(port, former, former)
        ports.start()
        monkeypatch.setenv("CAISSON_VCHAN_STREAMS", str(ports.host))
        async with broker_rig("* * @anyvm @anyvm allow\n") as rig:
            agent = stack.enter_context(
                wire_agent(connect=False, CAISSON_VCHAN_STREAMS=str(ports.inside))
            )
            places = Places(directory, ports.host)
            async with far_daemon(rig, places, agent.user) as daemon:
                yield Machine(rig, agent, daemon, sockets_of(rig), ports)


FORMER = {
    "nothing": b"",
    "noise": secrets.token_bytes(3000),
    "messages": message(STDOUT, b"a secret of another caller") + message(STDIN) + hello(),
    "the beginning of a rendezvous": MAGIC + b"\1" + bytes(20),
    "a whole one": MAGIC + b"\1" + bytes(32) + MAGIC + b"\3" + bytes(32) + hello(),
}


@pytest.mark.parametrize("former", FORMER.values(), ids=FORMER)
async def test_call_on_a_port_hears_nothing_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, former: bytes
):
    """A port keeps what a former call did not read; each call gets its own bytes, both ways."""
    async with machine(monkeypatch, former=former) as m:
        # More calls than ports, so that they are used again.
        for number in range(3 * len(DATA_PORTS)):
            text = f"{number} " * 500
            assert await m.run(f"echo {text}; exit {number}") == (
                number,
                text.encode().strip().replace(b"  ", b" ") + b"\n",
                b"",
            )


async def test_calls_both_ways_share_the_ports(monkeypatch: pytest.MonkeyPatch):
    """From a qube that the broker connects by pipes, and to it."""
    async with machine(monkeypatch) as m:
        m.agent.write_service("my.Echo", "#!/bin/sh\ncat\n")
        (m.agent.home / "qrexec-client-vm").symlink_to("qrexec-agent")
        vault = await m.rig.run("vault")
        for number in range(2 * len(DATA_PORTS)):
            client = await m.rig.call("vault", "far", "my.Echo")
            accepted, (stdin, stdout, stderr) = await client.receive()
            assert accepted == b"A"
            os.write(stdin, b"%d" % number)
            os.close(stdin)
            assert await asyncio.to_thread(os.read, stdout, 100) == b"%d" % number
            os.close(stdout)
            os.close(stderr)
            assert (await client.receive())[0] == b"X0"
            client_vm = f"{m.agent.home}/qrexec-client-vm -a {m.agent.trigger_socket}"
            line = f"CAISSON_VCHAN_STREAMS={m.ports.inside} {client_vm} vault my.Service"
            running = asyncio.create_task(m.run(line))
            service = await vault.next_call()
            os.write(service.stdout, b"for %d" % number)
            await service.end(number)
            assert await running == (number, b"for %d" % number, b"")
        await until(lambda: m.taken == 0)


async def test_last_words_reach_a_machine_that_is_behind(monkeypatch: pytest.MonkeyPatch):
    """A port drops what was not read when the host's side closes: so that waits to be heard."""
    words = b"x" + secrets.token_bytes(500_000)
    async with machine(monkeypatch) as m:
        (m.agent.home / "qrexec-client-vm").symlink_to("qrexec-agent")
        pid, out = m.agent.home / "pid", m.agent.home / "out"
        vault = await m.rig.run("vault")
        client_vm = f"{m.agent.home}/qrexec-client-vm -a {m.agent.trigger_socket}"
        line = f"CAISSON_VCHAN_STREAMS={m.ports.inside} exec {client_vm} vault my.Service"
        running = asyncio.create_task(m.run(f"echo $$ >{pid}; {line} >{out}"))
        service = await vault.next_call()
        os.write(service.stdout, words[:1])
        await until(lambda: out.read_bytes() == words[:1])
        os.kill(int(pid.read_text()), signal.SIGSTOP)
        # Pipe, stream and port together take it all.
        assert await asyncio.to_thread(os.write, service.stdout, words[1:]) == len(words) - 1
        await service.end()
        await m.rig.audited(source="far", ended="exited")
        os.kill(int(pid.read_text()), signal.SIGCONT)
        assert await running == (0, b"", b"")
        assert out.read_bytes() == words


async def test_process_that_vanishes_in_the_machine_ends_its_call(monkeypatch: pytest.MonkeyPatch):
    """No stream tells of it: the agent does, and the daemon, and the caller learns of the loss."""
    async with machine(monkeypatch) as m:
        running = asyncio.create_task(m.run(f"echo $PPID >{m.agent.home}/parent; exec sleep 600"))
        place = m.agent.home / "parent"
        await until(lambda: place.exists() and place.read_text().endswith("\n"))
        os.kill(int(place.read_text()), signal.SIGKILL)
        assert await running == (255, b"", b"error: the connection to the other qube was lost\n")
        await until(lambda: m.taken == 0)


async def test_caller_does_not_stay_at_the_port_of_a_call_that_never_came(
    monkeypatch: pytest.MonkeyPatch,
):
    """What the next call runs would come to the former one's caller there."""
    async with machine(monkeypatch) as m:
        agent = m.agent.process.pid
        place = Path(f"/proc/{agent}/task/{agent}/children")
        children: list[str] = []

        def begun() -> bool:
            children[:] = place.read_text().split()
            return bool(children)

        with socket.socket(socket.AF_UNIX) as blocker:
            blocker.connect(f"{m.ports.inside}.{DATA_PORTS[0]}")
            running = asyncio.create_task(m.run("echo former", "-w", "0"))
            await until(begun)
            os.kill(int(children[0]), signal.SIGKILL)
            told = b"error: the qube does not connect: connection reset\n"
            assert await running == (1, b"", told)
        assert m.taken == 0
        assert await m.run("echo next") == (0, b"next\n", b"")


def meet(link: Wire) -> bytes:
    """Be the side that waits in a rendezvous, by the table of `agent/src/vchan/rendezvous.rs`.

    Returns:
        What to say when everything was heard.
    """
    theirs, ours = link.exactly(40)[8:24], secrets.token_bytes(16)
    link.raw(MAGIC + b"\2" + theirs + ours)
    while (found := link.exactly(40)) == MAGIC + b"\1" + theirs + bytes(16):
        pass
    assert found == MAGIC + b"\3" + theirs + ours
    return MAGIC + b"\4" + theirs + ours


def test_plain_streams_in_the_place_of_named_sockets() -> None:
    """Port N is whatever lies at PREFIX.N; the machine opens it, whoever serves it comes later."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        prefix = Path(directory) / "port"

        def listen(port: int) -> socket.socket:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.settimeout(PATIENCE)
            listener.bind(f"{prefix}.{port}")
            listener.listen(1)
            return listener

        def accept(listener: socket.socket) -> Wire:
            return stack.enter_context(Wire(listener.accept()[0]))

        agent = stack.enter_context(wire_agent(connect=False, CAISSON_VCHAN_STREAMS=str(prefix)))
        agent.daemon = accept(listen(CONTROL_PORT))
        assert agent.daemon.exactly(12) == hello()
        agent.daemon.raw(hello())
        line = agent.script("exec cat").encode()
        agent.daemon.send(EXEC_CMDLINE, numbers(PEER, 514) + line + b"\0")
        link = accept(listen(514))
        farewell = meet(link)
        assert link.greet() == 4
        link.raw(message(STDIN, b"x") + message(STDIN))
        found = [link.receive()]
        while found[-1][0] != EXIT_CODE:
            found.append(link.receive())
        link.raw(farewell)
        assert link.rest() == []
        assert (joined(found, STDOUT), code_of(found)) == (b"x", 0)
        assert agent.daemon.receive() == (TERMINATED, numbers(PEER, 514))


def test_a_character_device_is_a_plain_stream_too() -> None:
    """As the port of a virtual machine is: no socket, and opened by us."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        master, slave = pty.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        tty.setraw(slave)
        (Path(directory) / f"port.{CONTROL_PORT}").symlink_to(os.ttyname(slave))
        prefix = f"{directory}/port"
        agent = stack.enter_context(wire_agent(connect=False, CAISSON_VCHAN_STREAMS=prefix))
        found = b""
        while len(found) < 12:
            found += os.read(master, 12)
        assert found == hello()
        os.write(master, hello())
        agent.ask(trigger(b"a.B"))
        found = b""
        while len(found) < 8 + 164:
            found += os.read(master, 4096)
        assert found[:8] == struct.pack("<II", TRIGGER_SERVICE4, 164)
