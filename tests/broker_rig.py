"""A broker in a process of its own, with a qubesd and agents that the test plays.

The link is the real one (`BrokerLink`); agents and clients speak the local protocol by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patience import PATIENCE

from caisson.errors import CaissonError, QubeError
from caisson.names import QubeName
from caisson.paths import Paths
from caisson.qrexec import BrokerLink, Operation
from caisson.qrexec.link import address

ALLOW = "* * @anyvm @anyvm allow\n"
"""A policy by which every qube may call every other."""
REPORT = b'{"barriers":{"seccomp":{"up":true,"detail":""}},"version":"test"}'


def broker_account() -> pwd.struct_passwd:
    """The broker's own user where the machine has it, else another one without privileges."""
    try:
        return pwd.getpwnam("qubes-broker")
    except KeyError:
        return pwd.getpwnam("nobody")


@contextmanager
def as_broker() -> Iterator[None]:
    """Be the broker's user, as the kernel tells a peer."""
    account = broker_account()
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def info(name: str, *, state: str = "Running", tags: tuple[str, ...] = (), **more: Any) -> dict:
    """What `internal.GetSystemInfo` says of a qube."""
    return {
        "type": "AdminVM" if name == "dom0" else "AppVM",
        "uuid": f"00000000-0000-4000-8000-{abs(hash(name)) % 10**12:012d}",
        "tags": list(tags),
        "internal": None,
        "template_for_dispvms": False,
        "default_dispvm": None,
        "icon": "appvm-red",
        "label": "0xcc0000",
        "guivm": None if name == "dom0" else "dom0",
        "relayvm": None,
        "transport_rpc": None,
        "power_state": state,
    } | more


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; bounded."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the condition lies in another process
            await asyncio.sleep(0.002)


class Peer:
    """A SEQPACKET connection to the broker, as a program in a qube has it."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.sock.connect(os.path.relpath(path))
        except OSError:
            self.sock.close()
            raise
        self.sock.setblocking(False)

    async def send(self, message: bytes) -> None:
        """Send one message."""
        await asyncio.get_running_loop().sock_sendall(self.sock, message)

    async def receive(self, patience: float = PATIENCE) -> tuple[bytes, list[int]]:
        """One message and its descriptors; empty at the end."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(patience):
            while True:
                try:
                    data, ancillary, _, _ = self.sock.recvmsg(
                        70_000, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC
                    )
                except BlockingIOError:
                    future = loop.create_future()
                    loop.add_reader(self.sock, lambda f=future: f.done() or f.set_result(None))
                    try:
                        await future
                    finally:
                        loop.remove_reader(self.sock)
                except ConnectionResetError:
                    return b"", []
                else:
                    descriptors = array("i")
                    for _, _, raw in ancillary:
                        descriptors.frombytes(raw)
                    return data, list(descriptors)

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def close_all(descriptors: Iterable[int]) -> None:
    """Close what a test received."""
    for descriptor in descriptors:
        os.close(descriptor)


async def outcome(client: Peer) -> bytes:
    """The last word of the broker to a client; pipes that come before it are closed."""
    message, descriptors = await client.receive()
    close_all(descriptors)
    return (await client.receive())[0] if message == b"A" else message


@dataclass
class Service:
    """A call as it arrived at an agent."""

    id: int
    user: str
    descriptor: str
    source: str
    flags: str
    stdin: int
    stdout: int
    stderr: int
    agent: Agent

    async def end(self, code: int = 0) -> None:
        """End the service."""
        self.close()
        await self.agent.peer.send(b"X%d\0%d" % (self.id, code))

    def close(self) -> None:
        """Close the service's ends."""
        for descriptor in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.stdin = self.stdout = self.stderr = -1


class Agent:
    """A qube's agent, played by the test."""

    def __init__(self, path: Path) -> None:
        self.peer = Peer(path)

    async def hello(self) -> None:
        """Claim to be the agent."""
        await self.peer.send(b"H1\0" + REPORT)

    async def next_call(self, patience: float = PATIENCE) -> Service:
        """The next call that the broker hands over."""
        data, descriptors = await self.peer.receive(patience)
        assert data[:1] in (b"S", b"M"), data
        fields = data[1:].decode().split("\0")
        fields += [""] * (5 - len(fields))
        return Service(int(fields[0]), *fields[1:], *descriptors, agent=self)

    async def serve(self, act: Callable[[Service], int]) -> None:
        """Answer every call for ever."""
        while True:
            service = await self.next_call(3600)
            await service.end(act(service))


@dataclass
class Rig:
    """One instance with a broker."""

    paths: Paths
    link: BrokerLink
    process: subprocess.Popen[bytes]
    log: Path
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    hellos: list[tuple[str, int]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    set_up: list[tuple[str, int, int]] = field(default_factory=list)
    genuine: set[int] = field(default_factory=lambda: {os.getpid()})
    domains: dict[str, dict[str, Any]] = field(default_factory=dict)
    on_request: Callable[[str, str, str], Any] | None = None
    open_resources: list[Any] = field(default_factory=list)

    def socket(self, name: str) -> Path:
        """A qube's socket."""
        return self.paths.dom0_socket if name == "dom0" else self.paths.socket_dir(name) / "qrexec"

    async def add(self, name: str, **more: Any) -> None:
        """A qube exists."""
        self.domains[name] = info(name, **more)
        await self.link.push({name: self.domains[name]})

    async def run(self, name: str, **more: Any) -> Agent:
        """A qube runs, with an agent."""
        await self.add(name, **more)
        await self.link.open_qube(QubeName(name))
        return await self.agent(name)

    async def agent(self, name: str) -> Agent:
        """An admitted agent."""
        agent = Agent(self.socket(name))
        self.open_resources.append(agent.peer)
        await agent.hello()
        assert (await agent.peer.receive())[0] == b"W"
        return agent

    def client(self, name: str) -> Peer:
        """A connection of a program in the qube."""
        peer = Peer(self.socket(name))
        self.open_resources.append(peer)
        return peer

    async def call(self, source: str, target: str, service: str, flags: str = "") -> Peer:
        """Begin a call."""
        peer = self.client(source)
        await peer.send(f"C{target}\0{service}\0{flags}".encode())
        return peer

    def policy(self, text: str, name: str = "30-user.policy") -> None:
        """Replace a policy file."""
        path = self.paths.etc / "policy.d" / name
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.rename(path)

    def audit(self) -> list[dict[str, Any]]:
        """All audit records."""
        return [json.loads(line) for line in self.paths.audit.read_text().splitlines()]

    async def audited(self, **wanted: Any) -> dict[str, Any]:
        """Wait for a record with these fields."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for record in self.audit() if self.paths.audit.exists() else ():
                    if all(record.get(k) == v for k, v in wanted.items()):
                        return record
                await asyncio.sleep(0.01)

    def start_broker(self, *, limit: int | None = None) -> None:
        """Start the broker process."""
        command = [sys.executable, "-m", "caisson.daemons.broker", "--root", str(self.paths.root)]
        command += ["--user", broker_account().pw_name]
        if limit is not None:
            command = ["prlimit", f"--nofile={limit}:{limit}", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)

    async def kill_broker(self) -> None:
        """End it as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        await until(lambda: not self.link.connected)

    def make_link(self) -> BrokerLink:
        """A new qubesd's half of the link."""
        account = broker_account()
        return BrokerLink(
            self.paths,
            account.pw_uid,
            account.pw_gid,
            on_hello=self._hello,
            on_gone=self.gone.append,
            on_set_up=lambda *told: self.set_up.append(told),
            on_request=self._asked,
        )

    async def start_daemon(self, *running: str) -> None:
        """Another qubesd takes the place of one that is gone; these qubes run."""
        self.link = self.make_link()
        await self.link.replace(self.domains)
        for name in running:
            await self.link.open_qube(QubeName(name))
        await self.link.start()
        await self.ready()

    async def ready(self) -> None:
        """Wait for the broker; it answers only after it took the first snapshot."""
        async with asyncio.timeout(PATIENCE):
            await self.link.wait_connected()
        await self.link.push({})

    async def _asked(self, op: Operation, name: QubeName, source: QubeName) -> str:
        self.requests.append((str(op), name, source))
        if self.on_request is None:
            raise QubeError("nothing starts in this test")
        result = self.on_request(str(op), name, source)
        return str(await result) if asyncio.iscoroutine(result) else str(result)

    def _hello(self, name: QubeName, pid: int, _uid: int, report: Mapping[str, Any]) -> None:
        self.hellos.append((name, pid))
        if pid in self.genuine:
            self.link.admit(name, pid)
        else:
            self.link.reject(name, pid, "not the qube's agent")


def _fresh_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="caisson-broker-", dir="/tmp"))
    root.chmod(0o755)
    return root


@asynccontextmanager
async def broker_rig(
    policy: str = "", *, limit: int | None = None, kind: type[Rig] = Rig
) -> AsyncIterator[Rig]:
    """A prepared instance with a running broker; everything is gone afterwards."""
    root = _fresh_root()
    paths = Paths(root)
    rig = kind(paths, None, None, root / "broker.log")  # type: ignore[arg-type]
    rig.link = rig.make_link()
    try:
        await rig.link.start()
        rig.policy(policy)
        await rig.add("dom0")
        rig.start_broker(limit=limit)
        await rig.ready()
        yield rig
    finally:
        for resource in rig.open_resources:
            resource.close()
        await rig.link.close()
        if rig.process is not None:
            rig.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                rig.process.wait(PATIENCE)
            rig.process.kill()
            rig.process.wait()
        if os.environ.get("BROKER_LOG"):
            sys.stderr.write(rig.log.read_text())
        shutil.rmtree(root)


Session = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(rig: Rig, session: Session) -> AsyncIterator[None]:
    """Listen where the broker asks a person; nothing is left open afterwards."""
    sessions: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await session(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, str(rig.paths.prompt_agent))
    rig.paths.prompt_agent.chmod(0o666)
    try:
        yield
    finally:
        rig.paths.prompt_agent.unlink()
        # Whoever was accepted a moment ago becomes a session in the next turns of the loop.
        for _ in range(8):
            await asyncio.sleep(0)
        server.close()
        await asyncio.gather(*filter(None, sessions))


@asynccontextmanager
async def prompt_agent(
    rig: Rig, answer: Callable[[dict[str, Any]], bytes | None]
) -> AsyncIterator[list[dict[str, Any]]]:
    """A person's agent; an answer of None never comes. Gives the questions."""
    questions: list[dict[str, Any]] = []
    never = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        descriptor, _, body = (await reader.read()).partition(b"\0")
        if descriptor == b"policy.Ask dom0 name dom0":
            questions.append(json.loads(body))
            reply = answer(questions[-1])
            if reply is None:
                await never.wait()
            else:
                writer.write(reply)

    async with listening(rig, serve):
        try:
            yield questions
        finally:
            never.set()


async def exchange(path: Path, request: bytes, *, end: bool = False) -> bytes:
    """What a stream socket answers to a request, to its end.

    Args:
        path: the socket.
        request: what is sent.
        end: say by end of file that it is all.
    """
    reader, writer = await asyncio.open_unix_connection(address(path))
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
            if end:
                writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def policy_query(service: str, target: str = "vault", source: str = "work", **more: str) -> bytes:
    """A request to the policy socket, with the empty line that ends it."""
    values = {"source": source, "intended_target": target, "service_and_arg": service} | more
    return "".join(f"{key}={value}\n" for key, value in values.items()).encode() + b"\n"


__all__ = [
    "ALLOW",
    "Agent",
    "CaissonError",
    "Peer",
    "Rig",
    "Service",
    "broker_rig",
    "close_all",
    "exchange",
    "info",
    "listening",
    "outcome",
    "policy_query",
    "prompt_agent",
    "until",
]
