"""The broker with the real agent and the real clients, outside of any container."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from broker_rig import PATIENCE, Rig, broker_rig, until

from caisson.names import QubeName
from caisson.paths import AGENT_BINARY

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not AGENT_BINARY.exists(), reason="the agent is not built"),
]
ALLOW = "* * @anyvm @anyvm allow user=root\n"


class Qubes:
    """Qubes `work` and `vault`, played by processes of this machine."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.services = rig.paths.root / "services"
        self.programs = rig.paths.root / "programs"
        self.agents: list[subprocess.Popen[bytes]] = []
        self.settings = rig.paths.root / "settings"
        for directory in (self.services, self.programs, self.settings):
            directory.mkdir()
        for name in ("qrexec-client-vm", "qrexec-client"):
            (self.programs / name).symlink_to(AGENT_BINARY)

    def service(self, name: str, script: str) -> None:
        """Offer a service."""
        path = self.services / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def _agent(self, socket: Path) -> subprocess.Popen[bytes]:
        environment = {
            "CAISSON_SOCKET": str(socket),
            "CAISSON_SESSION_LOCKS": str(self.rig.paths.root),
            "QREXEC_SERVICE_PATH": str(self.services),
            "QUBES_RPC_CONFIG_PATH": str(self.settings),
        }
        return subprocess.Popen([AGENT_BINARY], env=os.environ | environment)

    async def start(self, name: str) -> None:
        """Start the qube's agent, and wait until calls reach it."""
        rig = self.rig
        await rig.add(name)
        await rig.link.open_qube(QubeName(name))
        agent = self._agent(rig.socket(name))
        self.agents.append(agent)
        rig.genuine.add(agent.pid)
        await until(lambda: (name, agent.pid) in rig.hellos)

    async def call(
        self, *arguments: str, stdin: bytes = b"", program: str = "qrexec-client-vm"
    ) -> tuple[int, bytes, bytes]:
        """Call from `work`, or from the admin qube."""
        place = self.rig.socket("work" if program == "qrexec-client-vm" else "dom0")
        option = "--agent-socket" if program == "qrexec-client-vm" else "--socket"
        process = await asyncio.create_subprocess_exec(
            self.programs / program,
            option,
            place,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE):
            stdout, stderr = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, stdout, stderr

    def close(self) -> None:
        """End the agents."""
        for agent in self.agents:
            agent.terminate()
        for agent in self.agents:
            agent.wait()


@asynccontextmanager
async def qubes(policy: str = ALLOW) -> AsyncIterator[Qubes]:
    """Two running qubes."""
    async with broker_rig(policy) as rig:
        pair = Qubes(rig)
        try:
            await pair.start("work")
            await pair.start("vault")
            yield pair
        finally:
            pair.close()


async def test_call_between_real_programs():
    """Input, output, error, argument, source and exit code, all the way."""
    async with qubes() as pair:
        pair.service("my.Echo", 'cat; echo "$1 $QREXEC_REMOTE_DOMAIN" >&2; exit 7')
        code, stdout, stderr = await pair.call("vault", "my.Echo+arg", stdin=b"hello\n" * 50_000)
        assert (code, stderr) == (7, b"arg work\n")
        assert stdout == b"hello\n" * 50_000


async def test_refused_and_missing_have_their_codes():
    """126 with the words that scripts know, and 127."""
    async with qubes("my.Gone * work vault allow user=root\n") as pair:
        assert await pair.call("vault", "my.Denied") == (126, b"", b"Request refused\n")
        code, stdout, _ = await pair.call("vault", "my.Gone")
        assert (code, stdout) == (127, b"")


async def test_agent_comes_back_after_the_broker_was_killed():
    """Kill -9 of the broker: the real agent notices the new socket and speaks up again."""
    async with qubes() as pair:
        pair.service("my.True", "exit 0")
        assert (await pair.call("vault", "my.True"))[0] == 0
        await pair.rig.kill_broker()
        pair.rig.hellos.clear()
        pair.rig.start_broker()
        await pair.rig.ready()
        assert (await pair.call("vault", "my.True"))[0] == 0
        assert {name for name, _ in pair.rig.hellos} >= {"vault"}


async def test_service_goes_on_while_the_broker_is_killed():
    """A running service is not disturbed; it merely has nobody to report to."""
    async with qubes() as pair:
        root = pair.rig.paths.root
        wait = f"while [ ! -e {root}/go ]; do sleep 0.02; done"
        pair.service("my.Slow", f"touch {root}/started; {wait}; cat >{root}/done")
        calling = asyncio.create_task(pair.call("vault", "my.Slow", stdin=b"late"))
        await until((root / "started").exists)
        await pair.rig.kill_broker()
        assert (await calling)[0] == 255
        (root / "go").touch()
        await until((root / "done").exists)
        pair.rig.start_broker()
        await pair.rig.ready()
        pair.service("my.True", "exit 0")
        assert (await pair.call("vault", "my.True"))[0] == 0


async def test_admin_qube_starts_a_service_without_waiting_for_the_session():
    """`nogui:` passes the broker; other calls of that service go on waiting (sheet, 2.2)."""
    async with qubes("") as pair:
        root = pair.rig.paths.root
        os.mkfifo(root / "gate")
        pair.service("qubes.WaitForSession", f"touch {root}/asked; read line <{root}/gate")
        pair.service("my.Window", "echo up")
        (pair.settings / "my.Window").write_text("wait-for-session = true\n")

        def call(command: str) -> Coroutine[Any, Any, tuple[int, bytes, bytes]]:
            return pair.call("-d", "vault", command, program="qrexec-client")

        assert await call("root:nogui:QUBESRPC my.Window dom0") == (0, b"up\n", b"")
        assert not (root / "asked").exists()
        waiting = asyncio.create_task(call("root:QUBESRPC my.Window dom0"))
        await until((root / "asked").exists)
        assert await call("root:nogui:QUBESRPC my.Window dom0") == (0, b"up\n", b"")
        assert await call("root:nogui:echo up") == (0, b"up\n", b"")
        assert not waiting.done()
        (root / "gate").write_text("\n")
        assert await waiting == (0, b"up\n", b"")


async def test_admin_qube_runs_a_service_and_a_command():
    """The client of the admin qube, over its own socket."""
    async with qubes("") as pair:
        pair.service("my.Name", 'echo "$QREXEC_REMOTE_DOMAIN"')
        code, stdout, _ = await pair.call(
            "-d", "vault", "root:QUBESRPC my.Name dom0", program="qrexec-client"
        )
        assert (code, stdout) == (0, b"dom0\n")
        code, stdout, _ = await pair.call("-d", "vault", "root:echo $((6*7)); exit 3",
                                          program="qrexec-client")  # fmt: skip
        assert (code, stdout) == (3, b"42\n")


async def test_many_real_calls_at_once():
    """Fifty client processes, each with its own answer."""
    async with qubes() as pair:
        pair.service("my.Arg", 'echo "$1"')
        answers = await asyncio.gather(*(pair.call("vault", f"my.Arg+{n}") for n in range(50)))
        assert answers == [(0, b"%d\n" % n, b"") for n in range(50)]
