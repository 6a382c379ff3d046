"""Daemons of the wire protocol in the test process, each with an agent that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from fake_agent import HELLO, PATIENCE, Client, FakeAgent, Message, frame

from caisson.errors import CaissonError, QubeNotFoundError
from caisson.names import QubeName, UserName
from caisson.paths import Paths
from caisson.qrexec.link import address
from caisson.qrexec.vchan import Daemon, Settings
from caisson.qrexec.vchan.streams import Places

WORK, VAULT = 42, 43
"""Ids of the qubes `work` and `vault`."""
HELLO_3 = frame(HELLO, b"\3\0\0\0")
"""What a program of the admin qube begins with."""
UUIDS = {name: f"00000000-0000-4000-8000-{n:012}" for n, name in enumerate(("work", "vault"), 1)}
Answer = Callable[[dict[str, str]], str | None]


def allow(target: str, **more: str) -> str:
    """The policy's answer that a call may be made."""
    values = {
        "result": "allow",
        "user": "DEFAULT",
        "target": target,
        "autostart": "True",
        "requested_target": target,
    } | more
    return "".join(f"{key}={value}\n" for key, value in values.items())


@dataclass
class Wire:
    """An instance with daemons, and a policy that the test plays."""

    paths: Paths
    streams: Path
    answer: Answer = lambda _: "result=deny\n"
    questions: list[dict[str, str]] = field(default_factory=list)
    acts: list[tuple[str, str, bytes]] = field(default_factory=list)
    on_act: Callable[[str, str, bytes], Awaitable[bytes]] | None = None
    running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    agents: list[FakeAgent] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    def settings(self, name: str, domain: int) -> Settings:
        """What a daemon of this instance is told."""
        return Settings(
            paths=self.paths,
            directory=self.paths.run,
            domain=domain,
            name=QubeName(name),
            uuid=f"uuid:{UUIDS[name]}",
            default_user=UserName("user"),
            policy_program=None,
            places=Places(self.streams),
        )

    async def agent(self, domain: int) -> FakeAgent:
        """An agent that waits for its daemon."""
        agent = FakeAgent(self.streams, domain)
        await agent.listen()
        self.agents.append(agent)
        return agent

    async def qube(self, name: str, domain: int, version: int = 4, **more: object) -> FakeAgent:
        """A qube with agent and daemon, connected."""
        agent = await self.agent(domain)
        there = asyncio.Event()
        daemon = Daemon(
            msgspec.structs.replace(self.settings(name, domain), **more), self._act, there.set
        )
        self.running[name] = asyncio.create_task(daemon.run())
        assert await agent.ready(version) == min(version, 4)
        async with asyncio.timeout(PATIENCE):
            await there.wait()
        return agent

    async def client(self, name: str) -> Client:
        """A connection of a program of the admin qube."""
        client = await Client.to(self.paths.run / f"qrexec.{name}")
        self.clients.append(client)
        return client

    async def run(self, name: str, domain: int, command: bytes, kind: int = 0x200) -> Message:
        """Have a command run in a qube, and read the daemon's answer."""
        client = await self.client(name)
        await client.command(kind, domain, 0, command)
        return await client.next()

    async def failure(self, name: str) -> CaissonError:
        """The error that a daemon ends with."""
        async with asyncio.timeout(PATIENCE):
            try:
                await self.running[name]
            except CaissonError as e:
                return e
        raise AssertionError("the daemon ended without an error")

    async def _act(self, method: str, destination: str, payload: bytes) -> bytes:
        self.acts.append((method, destination, payload))
        if self.on_act is None:
            raise QubeNotFoundError(f"no qube `{destination}`")
        return await self.on_act(method, destination, payload)

    async def judge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            lines = (await reader.readuntil(b"\n\n")).decode().splitlines()
            question = dict(line.split("=", 1) for line in lines if line)
            self.questions.append(question)
            reply = self.answer(question)
            if reply is None:
                await reader.read()
            else:
                writer.write(reply.encode())
        writer.close()


@asynccontextmanager
async def wire(answer: Answer | None = None) -> AsyncIterator[Wire]:
    """An instance; everything is gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="caisson-wire-", dir="/tmp"))
    rig = Wire(Paths(root), root / "streams")
    if answer is not None:
        rig.answer = answer
    rig.streams.mkdir()
    rig.paths.run.mkdir(parents=True)
    policy = await asyncio.start_unix_server(rig.judge, address(rig.paths.policy_socket))
    try:
        yield rig
    finally:
        for client in rig.clients:
            client.close()
        for task in rig.running.values():
            task.cancel()
        await asyncio.gather(*rig.running.values(), return_exceptions=True)
        for agent in rig.agents:
            await agent.close()
        policy.close()
        shutil.rmtree(root)
