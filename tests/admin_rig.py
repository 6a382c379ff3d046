"""A broker in a process of its own, and a qubesd in this one that serves the Admin API to qubes.

The model, the store and the server are real; qubes run in memory, and their programs are the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from broker_rig import PATIENCE, Peer, Rig, broker_account, broker_rig

from caisson.admin import AdminServer, PipedCalls, Responder, Services
from caisson.dom0 import AdminQube, Places, Runner, routed
from caisson.engines import MemoryEngine
from caisson.ext import Core, Extensions
from caisson.lifecycle import Qubes
from caisson.model import Host, System
from caisson.names import QubeName
from caisson.network import Network
from caisson.qrexec import AdminCalls, Judge, Rules, evaluating
from caisson.qrexec.admin_calls import Serve
from caisson.storage import Pool
from caisson.store import Store
from caisson.store.grants import GrantFile
from caisson.store.policy_store import PolicyStore


def exception(frame: bytes) -> str:
    """The type that an exception frame names."""
    kind, name, *_ = frame.split(b"\0")
    assert kind == b"2", frame
    return name.decode()


@dataclass
class Answer:
    """What a call of a qube came to."""

    verdict: bytes
    out: bytes = b""
    err: bytes = b""

    @property
    def code(self) -> int:
        """The exit code."""
        assert self.verdict[:1] == b"X", self.verdict
        return int(self.verdict[1:])


class Session:
    """A call under way: the ends of its pipes that the caller has."""

    def __init__(self, client: Peer, descriptors: list[int]) -> None:
        self.client = client
        self.stdin, self.stdout, self.stderr = descriptors

    def write(self, payload: bytes) -> asyncio.Task[None]:
        """Write the payload, as far as it is read, and end it, while other things go on."""
        descriptor, self.stdin = self.stdin, -1
        return asyncio.create_task(asyncio.to_thread(_write_all, descriptor, payload))

    def end_input(self) -> None:
        """Say that the payload is complete."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    async def read(self, count: int = 0) -> bytes:
        """What comes through stdout: `count` bytes, or all until its end."""
        return await _read(self.stdout, count)

    async def finish(self) -> Answer:
        """Read everything and the exit code."""
        async with asyncio.timeout(PATIENCE):
            out, err = await asyncio.gather(_read(self.stdout), _read(self.stderr))
        verdict, _ = await self.client.receive()
        self.leave()
        return Answer(verdict, out, err)

    def leave(self) -> None:
        """Hang up, and close the pipes."""
        self.end_input()
        for descriptor in (self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.client.close()


def _write_all(descriptor: int, payload: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "wb", 0) as file:
        rest = memoryview(payload)
        while rest:
            rest = rest[file.write(rest) :]


async def _read(descriptor: int, count: int = 0) -> bytes:
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)
    content = b""
    async with asyncio.timeout(PATIENCE):
        while not count or len(content) < count:
            try:
                chunk = os.read(descriptor, count - len(content) if count else 65_536)
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_reader(descriptor, lambda f=ready: f.done() or f.set_result(None))
                try:
                    await ready
                finally:
                    loop.remove_reader(descriptor)
                continue
            if not chunk:
                break
            content += chunk
    return content


@dataclass
class AdminRig:
    """One instance whose admin qube can be called."""

    rig: Rig
    serving: asyncio.Task[None]
    calls: AdminCalls

    async def begin(self, source: str, target: str, service: str, flags: str = "") -> Session:
        """Begin a call that must be accepted."""
        client = await self.rig.call(source, target, service, flags)
        verdict, descriptors = await client.receive()
        assert verdict == b"A", verdict
        return Session(client, descriptors)

    async def call(self, source: str, target: str, service: str, payload: bytes = b"") -> Answer:
        """Make a call from its request to its end."""
        client = await self.rig.call(source, target, service)
        verdict, descriptors = await client.receive()
        if verdict != b"A":
            client.close()
            return Answer(verdict)
        session = Session(client, descriptors)
        writing = session.write(payload)
        answer = await session.finish()
        await writing
        return answer

    async def end_qubesd(self) -> None:
        """End the serving half of qubesd, as its end ends it."""
        self.serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.serving


@asynccontextmanager
async def served_by(serve: Serve, policy: str) -> AsyncIterator[AdminRig]:
    """A broker and the door to it in qubesd, with `serve` behind; no model."""
    account = broker_account()
    async with broker_rig(policy) as rig:
        calls = AdminCalls(rig.paths, account.pw_uid, account.pw_gid, serve=serve)
        calls.bind()
        admin = AdminRig(rig, asyncio.create_task(calls.run()), calls)
        try:
            yield admin
        finally:
            await admin.end_qubesd()


@dataclass
class Daemon(AdminRig):
    """An instance with the whole of qubesd but its containers."""

    qubes: Qubes
    piped: PipedCalls
    own_listeners: int

    def listeners(self) -> int:
        """How many streams of events are open, the extensions' own not counted."""
        return self.qubes.events.listeners - self.own_listeners

    async def ask(self, service: str, target: str = "dom0", payload: bytes = b"") -> bytes:
        """The raw reply to the same call by the admin qube, through qubesd's socket."""
        reader, writer = await asyncio.open_unix_connection(self.rig.paths.qubesd)
        try:
            writer.write(f"{service} dom0 name {target}".encode() + b"\0" + payload)
            writer.write_eof()
            async with asyncio.timeout(PATIENCE):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def daemon_rig(policy: str, *names: str) -> AsyncIterator[Daemon]:
    """Both daemons, with qubes of these names whose programs can call."""
    account = broker_account()
    async with broker_rig(policy) as rig, asyncio.TaskGroup() as tasks:
        paths = rig.paths
        paths.state.mkdir(parents=True, exist_ok=True)
        store = Store.open(paths.database)
        system = System(Host())
        pool = Pool(paths.pool)
        qubes = Qubes(
            system,
            store,
            engine=MemoryEngine(),
            network=Network(paths.instance),
            pool=pool,
            door=rig.link,
            qube_files=paths.state,
            facts=paths.facts,
            tasks=tasks,
        )
        judge = Judge(Rules(paths), rig.link.known)
        extensions = Extensions.load(Core(qubes, judge))
        services = Services(
            grants=GrantFile(paths),
            evaluate=lambda kind, about, caller, payload: evaluating.answer(
                kind, about, caller, payload, judge.now()
            ),
            policies=PolicyStore(paths),
        )
        responder = Responder(extensions, services)
        server, piped = AdminServer(responder, paths), PipedCalls(responder)
        programs = AdminQube(judge, Runner(Places.of(paths)), {})
        server.bind()
        await rig.link.replace(system.info(qubes.state_of))
        serve_all = routed(piped.serve, programs.serve)
        calls = AdminCalls(paths, account.pw_uid, account.pw_gid, serve=serve_all)
        calls.bind()
        extending = tasks.create_task(extensions.run())
        sockets = tasks.create_task(server.run())
        serving = tasks.create_task(calls.run())
        own = qubes.events.listeners
        daemon = Daemon(rig, serving, calls, qubes, piped, own)
        try:
            made = await daemon.ask(
                "admin.vm.CreateInPool.TemplateVM+", payload=b"name=tpl label=black pool:root=host"
            )
            assert made == b"0\0", made
            for name in names:
                payload = f"name={name} label=red".encode()
                made = await daemon.ask("admin.vm.Create.AppVM+tpl", payload=payload)
                assert made == b"0\0", made
                await rig.link.open_qube(QubeName(name))
            yield daemon
        finally:
            extending.cancel()
            sockets.cancel()
            await daemon.end_qubesd()
            store.close()
            await asyncio.to_thread(pool.close)  # its directory goes next
