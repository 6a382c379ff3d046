"""Our agent and our programs on the wire: two agents, their daemons, and a policy."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from broker_rig import until
from fake_agent import PATIENCE, trigger
from wire_rig import Wire, allow, wire

from caisson.names import UserName
from caisson.paths import AGENT_BINARY
from caisson.qrexec.vchan import Daemon, daemon

pytestmark = pytest.mark.skipif(not AGENT_BINARY.exists(), reason="the agent is not built")

DOMAINS = {"work": 42, "vault": 43}
ME = UserName(getpass.getuser())


def write_script(path: Path, script: str) -> None:
    """A program of the shell."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class Qubes:
    """Qubes `work` and `vault`, played by processes of this machine."""

    def __init__(self, rig: Wire) -> None:
        self.rig = rig
        self.services = rig.paths.root / "services"
        self.programs = rig.paths.root / "programs"
        self.agents: dict[str, asyncio.subprocess.Process] = {}
        self.daemons: dict[str, Daemon] = {}
        self.services.mkdir()
        self.programs.mkdir()
        for name in ("qrexec-agent", "qrexec-client-vm", "qrexec-client"):
            (self.programs / name).symlink_to(AGENT_BINARY)

    def service(self, name: str, script: str) -> None:
        """Offer a service, in all qubes and in the admin qube."""
        write_script(self.services / name, script)

    def environment(self, domain: int) -> dict[str, str]:
        """Of the programs in a qube."""
        return os.environ | {
            "VCHAN_DOMAIN": str(domain),
            "VCHAN_SOCKET_DIR": str(self.rig.streams),
            "QREXEC_SERVICE_PATH": str(self.services),
        }

    def socket(self, name: str) -> Path:
        """Where the programs of a qube find its agent."""
        return self.rig.paths.root / f"{name}.agent"

    async def start(self, name: str) -> None:
        """Start agent and daemon, and wait until they are connected."""
        await self.start_agent(name)
        there = asyncio.Event()
        settings = msgspec.structs.replace(self.rig.settings(name, DOMAINS[name]), default_user=ME)
        self.daemons[name] = Daemon(settings, self.rig._act, there.set)
        self.rig.running[name] = asyncio.create_task(self.daemons[name].run())
        async with asyncio.timeout(PATIENCE):
            await there.wait()

    async def start_agent(self, name: str) -> None:
        """Start an agent."""
        self.agents[name] = await asyncio.create_subprocess_exec(
            self.programs / "qrexec-agent",
            "--no-fork-server",
            f"--agent-socket={self.socket(name)}",
            env=self.environment(DOMAINS[name]),
        )

    async def run(
        self, domain: int, *words: object, stdin: bytes = b""
    ) -> tuple[int, bytes, bytes]:
        """Run a program; its exit code and its output."""
        process = await asyncio.create_subprocess_exec(
            self.programs / str(words[0]),
            *map(str, words[1:]),
            env=self.environment(domain) | {"CAISSON_ROOT": str(self.rig.paths.root)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, out, err

    async def call(self, name: str, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Call from a qube."""
        agent = f"--agent-socket={self.socket(name)}"
        return await self.run(DOMAINS[name], "qrexec-client-vm", agent, *words, stdin=stdin)

    async def stop_agent(self, name: str) -> None:
        """End an agent."""
        agent = self.agents.pop(name)
        agent.terminate()
        await agent.wait()


@asynccontextmanager
async def qubes() -> AsyncIterator[Qubes]:
    """Both qubes; everything is gone afterwards."""

    def answer(question: dict[str, str]) -> str:
        if question["service_and_arg"].startswith("my.Denied"):
            return "result=deny\n"
        target = question["intended_target"]
        return allow("@adminvm" if target == "dom0" else target)

    async with wire(answer) as rig:
        made = Qubes(rig)
        try:
            for name in DOMAINS:
                await made.start(name)
            yield made
        finally:
            for name in tuple(made.agents):
                await made.stop_agent(name)


async def ports_free(made: Qubes) -> None:
    """All connections are ended on both sides."""
    await until(lambda: not any(len(daemon._board.ports) for daemon in made.daemons.values()))


async def test_calls_pass_between_our_own_programs(monkeypatch: pytest.MonkeyPatch):
    """Data both ways, errors, codes and refusals; from a qube, from the admin qube, and to it."""
    async with qubes() as made:
        # The daemons run here, and start the services of the admin qube.
        monkeypatch.setenv("QREXEC_SERVICE_PATH", str(made.services))
        made.service("my.Upper", 'tr a-z A-Z; echo "$1 $QREXEC_REMOTE_DOMAIN" >&2; exit 42')
        made.service("my.Count", "wc -c")
        assert await made.call("work", "vault", "my.Upper+x", stdin=b"hello") == (
            42,
            b"HELLO",
            b"x work\n",
        )
        assert await made.call("vault", "work", "my.Upper+y") == (42, b"", b"y vault\n")
        big = bytes(3_000_000)
        code, out, _ = await made.call("work", "vault", "my.Count", stdin=big)
        assert (code, out.strip()) == (0, b"3000000")
        assert (await made.call("work", "vault", "my.Nothing"))[0] == 127
        assert await made.call("work", "vault", "my.Denied") == (126, b"", b"Request refused\n")
        assert (await made.call("work", "dom0", "my.Upper+z", stdin=b"a"))[:2] == (42, b"A")
        daemon = made.daemons["work"]
        other = msgspec.structs.replace(daemon._settings, service_user="no-such-user")
        monkeypatch.setattr(daemon, "_settings", other)
        assert (await made.call("work", "dom0", "my.Upper+z", stdin=b"a"))[:2] == (125, b"")
        command = f"{ME}:tr a-z A-Z; exit 7"
        client = ("qrexec-client", "-d", "vault", command)
        assert await made.run(0, *client, stdin=b"hello") == (7, b"HELLO", b"")
        await ports_free(made)


async def test_a_service_of_the_admin_qube_gives_its_caller_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
):
    """The program that carries it is told so (sheet, section 1.3), whatever its own default is."""
    async with qubes() as made:
        monkeypatch.setenv("QREXEC_SERVICE_PATH", str(made.services))
        made.service("my.Carrier", "cat /proc/$PPID/cmdline")
        code, out, _ = await made.call("work", "dom0", "my.Carrier")
        words = out.split(b"\0")
        assert (code, words[words.index(b"-w") + 1]) == (0, b"5")
        await ports_free(made)


async def test_a_service_of_the_admin_qube_ends_without_its_caller(
    monkeypatch: pytest.MonkeyPatch,
):
    """A qube that asks for a service and opens no link keeps nothing running here."""
    monkeypatch.setattr(daemon, "SERVICE_PATIENCE", 1)
    async with wire(lambda _: allow("@adminvm")) as rig:
        services, told = rig.paths.root / "services", rig.paths.root / "told"
        services.mkdir()
        monkeypatch.setenv("QREXEC_SERVICE_PATH", str(services))
        carrier = "tr '\\0' '\\n' </proc/$PPID/cmdline"
        write_script(services / "my.Left", f"{carrier} >{told}; cat; echo left >>{told}")
        agent = await rig.qube("work", DOMAINS["work"])
        agent.send(trigger(b"dom0", b"my.Left\0"))
        assert (await agent.next()).params == (0, 513)
        await until(lambda: told.is_file() and told.read_text().endswith("\nleft\n"))
        words = told.read_text().splitlines()
        assert words[words.index("-w") + 1] == "1"


async def test_many_calls_pass_at_once():
    """None is lost, none gets the answer of another, and no port stays taken."""
    async with qubes() as made:
        made.service("my.Echo", 'cat; printf " %s" "$1"')
        calls = [
            made.call(
                "work" if n % 2 else "vault",
                "vault" if n % 2 else "work",
                f"my.Echo+{n}",
                stdin=b"call %d" % n,
            )
            for n in range(40)
        ]
        answers = await asyncio.gather(*calls)
        assert [(code, out) for code, out, _ in answers] == [
            (0, b"call %d %d" % (n, n)) for n in range(40)
        ]
        await ports_free(made)


async def test_agent_that_starts_anew_is_served_again():
    """By the same daemon."""
    async with qubes() as made:
        made.service("my.Echo", "cat")
        await made.stop_agent("vault")
        link = made.rig.paths.run / "qrexec.vault"
        await until(lambda: not link.exists())
        await made.start_agent("vault")
        await until(link.exists)
        assert await made.call("work", "vault", "my.Echo", stdin=b"x") == (0, b"x", b"")
