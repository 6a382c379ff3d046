"""A daemon whose qubes run in memory, with real sockets, store and volumes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lifecycle_lab import Wires
from patience import PATIENCE

from caisson.admin import AdminServer, Responder, Services
from caisson.admin.bounds import Budget
from caisson.admin.registry import Door
from caisson.engines import BARRIERS, MemoryEngine
from caisson.engines.memory import MemoryInstance
from caisson.ext import Core, Extensions
from caisson.lifecycle import NoDoor, Qubes
from caisson.model import Host, System
from caisson.names import LabelName, QubeName
from caisson.paths import Paths
from caisson.policy import (
    Allow,
    Ask,
    Decision,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    parse_policy,
)
from caisson.storage import Pool
from caisson.store import Store

REPORT = {"barriers": {name: {"up": True, "detail": ""} for name in BARRIERS}}
SOON = PATIENCE
PLENTY = Budget(most=1_000_000, pause=0)


class TextView:
    """A policy and a system as they were at one moment."""

    def __init__(self, policy: PolicySet, known: SystemInfo) -> None:
        self._policy = policy
        self._known = known

    def _decide(self, source: str, service: str, argument: str, target: str) -> Decision:
        request = Request(service, f"+{argument}", source, target)
        return decide(request, self._policy, self._known)

    def allows(self, *call: str) -> bool:
        """Whether it is allowed without a question."""
        decision = self._decide(*call)
        return isinstance(decision, Allow) and decision.target == "dom0"

    def permits(self, *call: str) -> bool:
        """Whether it is allowed, or could be by a person."""
        decision = self._decide(*call)
        return self.allows(*call) or (isinstance(decision, Ask) and "dom0" in decision.targets)


class TextPolicy:
    """The policy of one text, judged on the system as it is at that moment."""

    def __init__(self, qubes: Qubes, text: str) -> None:
        self._qubes = qubes
        self.text = text

    def now(self) -> TextView:
        """The text and the system at this moment."""
        known = SystemInfo.from_dict(self._qubes.system.info(self._qubes.state_of))
        return TextView(parse_policy({"30-user.policy": self.text}), known)

    def allows(self, *call: str) -> bool:
        """Whether it is allowed without a question."""
        return self.now().allows(*call)

    def permits(self, *call: str) -> bool:
        """Whether it is allowed, or could be by a person."""
        return self.now().permits(*call)


@dataclass
class Daemon:
    """One daemon and how tests speak to it."""

    paths: Paths
    qubes: Qubes
    engine: MemoryEngine
    server: AdminServer
    policy: TextPolicy
    pool: Pool

    async def send(self, raw: bytes, *, door: Door = Door.ADMIN) -> bytes:
        """Send raw bytes, half-close, and read everything that comes back."""
        reader, writer = await self.connect(door=door)
        try:
            writer.write(raw)
            writer.write_eof()
            async with asyncio.timeout(SOON):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def ask(
        self, method: str, dest: str = "dom0", payload: bytes = b"", source: str = "dom0"
    ) -> bytes:
        """Call `METHOD+ARG` with well-formed bytes; returns the raw reply."""
        service = method if "+" in method else method + "+"
        return await self.send(f"{service} {source} name {dest}".encode() + b"\0" + payload)

    async def ok(self, method: str, dest: str = "dom0", payload: bytes = b"") -> str:
        """Call a method that must succeed; returns the content."""
        reply = await self.ask(method, dest, payload)
        assert reply.startswith(b"0\0"), reply
        return reply[2:].decode()

    async def refused(self, method: str, dest: str = "dom0", payload: bytes = b"") -> str:
        """Call a method that must be refused; returns the name of the exception."""
        reply = await self.ask(method, dest, payload)
        assert reply.startswith(b"2\0"), reply
        return reply.split(b"\0")[1].decode()

    async def connect(
        self, *, door: Door = Door.ADMIN
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        return await asyncio.open_unix_connection(self.paths.qubesd.parent / door.value)

    async def install(self, name: str) -> None:
        """Make a template with a small root volume."""
        with self.pool.building(sync=False) as new:
            (new.tree / "etc").mkdir()
        await self.qubes.install_template(QubeName(name), LabelName("black"), new.id)

    async def populate(self) -> None:
        """Make a template, `work` based on it and `base` for disposables; none has a network."""
        await self.install("tpl")
        await self.ok("admin.property.Set+default_template", payload=b"tpl")
        await self.ok("admin.vm.Create.AppVM+tpl", payload=b"name=work label=blue")
        await self.ok("admin.vm.Create.AppVM", payload=b"name=base label=red")
        await self.ok("admin.vm.property.Set+template_for_dispvms", "base", b"True")

    async def command(self, *argv: str, answer: str = "") -> tuple[int, str, str]:
        """Run one of our commands against this daemon; returns exit code, stdout, stderr."""
        program = Path(sys.executable).parent / argv[0]
        process = await asyncio.create_subprocess_exec(
            program,
            *argv[1:],
            env={**os.environ, "CAISSON_ROOT": str(self.paths.root)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(answer.encode())
        return process.returncode or 0, out.decode(), err.decode()


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until something that only it can bring about is there."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - nothing to wait for tells it
            await asyncio.sleep(0)


async def _live(
    paths: Paths,
    services: Services,
    core: Callable[[Qubes], Core],
    request_seconds: float,
    words: Budget,
    ready: asyncio.Future[Daemon],
    stop: asyncio.Event,
) -> None:
    """The daemon from start to end, in one task as its task group wants it."""
    engine = MemoryEngine()
    store = Store.open(paths.database)
    pool = Pool(paths.pool)
    system = System(Host())
    system.load(store.load())
    loop = asyncio.get_running_loop()

    def play_agent(instance: MemoryInstance) -> None:
        loop.call_soon(qubes.running.agent_said, instance.name, instance.pid, REPORT)
        loop.call_soon(qubes.running.set_up_ended, instance.name, instance.pid, 0)

    engine.on_start = play_agent
    system = System(Host())
    system.load(store.load())
    async with asyncio.TaskGroup() as tasks:
        qubes = Qubes(
            system,
            store,
            engine=engine,
            network=Wires(),  # type: ignore[arg-type]
            pool=pool,
            door=NoDoor(),
            qube_files=paths.state,
            facts=paths.facts,
            tasks=tasks,
        )
        extensions = Extensions.load(core(qubes))
        responder = Responder(extensions, services, words)
        server = AdminServer(responder, paths, request_seconds=request_seconds)
        server.bind()
        await qubes.recover()
        serving = tasks.create_task(server.run())
        extending = tasks.create_task(extensions.run())
        policy = extensions.core.policy
        assert isinstance(policy, TextPolicy)
        ready.set_result(Daemon(paths, qubes, engine, server, policy, pool))
        await stop.wait()
        for task in (serving, extending):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for instance in engine.running.values():
            instance.end()
    store.close()


@asynccontextmanager
async def running_daemon(
    root: Path,
    *,
    services: Services | None = None,
    policy: str = "",
    announced: Mapping[str, Mapping[str, str]] | None = None,
    request_seconds: float = SOON,
    words: Budget = PLENTY,
) -> AsyncIterator[Daemon]:
    """A daemon for as long as the context lasts.

    Args:
        root: the directory of its instance; what its store holds already is there.
        services: what methods need beside qubes.
        policy: rules for others than the admin qube.
        announced: what qubes say about themselves, by their names.
        request_seconds: how long a client may take.
        words: how often a qube may say something of itself.
    """

    def core(qubes: Qubes) -> Core:
        said = announced or {}
        return Core(qubes, TextPolicy(qubes, policy), lambda qube: said.get(qube.name, {}))

    paths = Paths(root)
    paths.state.mkdir(parents=True, exist_ok=True)
    ready: asyncio.Future[Daemon] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    life = asyncio.create_task(
        _live(paths, services or Services(), core, request_seconds, words, ready, stop)
    )
    await asyncio.wait({life, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if life.done():
            life.result()
        yield ready.result()
    finally:
        stop.set()
        await life
