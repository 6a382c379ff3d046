"""An agent of the wire protocol, and programs of the admin qube, played by the test.

Written from the sheet (`qrexec`, sections 1.1 to 1.4 and 1.8), byte by byte, without the code that
is tested.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from patience import PATIENCE

from caisson.qrexec.link import address

HELLO, EXEC, JUST_EXEC, CONNECT, REFUSED = 0x300, 0x200, 0x201, 0x202, 0x203
TRIGGER, TERMINATED, TRIGGER3, TRIGGER4 = 0x210, 0x211, 0x212, 0x213
STDIN, STDOUT, STDERR, EXIT = 0x190, 0x191, 0x192, 0x193
IDENT = b"SOCKET7".ljust(32, b"\0")
"""What the requests of `trigger` are called."""


class Message(NamedTuple):
    """One frame."""

    kind: int
    body: bytes

    @property
    def params(self) -> tuple[int, int]:
        """Domain and port."""
        domain, port = struct.unpack("<II", self.body[:8])
        return domain, port

    @property
    def rest(self) -> bytes:
        """What follows them."""
        return self.body[8:]


def frame(kind: int, body: bytes = b"") -> bytes:
    """A frame."""
    return struct.pack("<II", kind, len(body)) + body


def params(kind: int, domain: int, port: int, rest: bytes = b"") -> bytes:
    """A frame with domain and port."""
    return frame(kind, struct.pack("<II", domain, port) + rest)


def trigger(target: bytes, service: bytes, ident: bytes = b"SOCKET7", source: bytes = b"") -> bytes:
    """A request in version 4."""
    return frame(TRIGGER4, struct.pack("64s64s32s", source, target, ident) + service)


class Link:
    """One stream with frames on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, path: Path) -> Link:
        """Connect."""
        return cls(*await asyncio.open_unix_connection(address(path)))

    def send(self, *frames: bytes) -> None:
        """Send frames."""
        self.writer.write(b"".join(frames))

    async def next(self) -> Message:
        """The next frame; the type is 0 at the end."""
        async with asyncio.timeout(PATIENCE):
            try:
                kind, length = struct.unpack("<II", await self.reader.readexactly(8))
                return Message(kind, await self.reader.readexactly(length))
            except (asyncio.IncompleteReadError, ConnectionError):
                return Message(0, b"")

    async def greet(self, version: int = 4) -> int:
        """Say hello, and read the other's."""
        self.send(frame(HELLO, struct.pack("<I", version)))
        message = await self.next()
        assert message.kind == HELLO, message
        return struct.unpack("<I", message.body)[0]

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


class Client(Link):
    """A program of the admin qube at a daemon's socket."""

    async def command(self, kind: int, domain: int, port: int, text: bytes) -> None:
        """Say hello and what is wanted."""
        assert await self.greet(3) == 3
        self.send(params(kind, domain, port, text))


class FakeAgent:
    """The agent of a qube.

    Args:
        directory: of the streams.
        domain: the qube's id.
    """

    def __init__(self, directory: Path, domain: int) -> None:
        self.directory = directory
        self.domain = domain
        self.server: asyncio.Server | None = None
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.opened: list[Link] = []
        self.link: Link

    async def listen(self) -> None:
        """Be there for the daemon."""
        self.server = await self._server(0, 512, self.links)

    async def ready(self, version: int = 4) -> int:
        """Take the daemon's connection and greet it; the version that it answers with."""
        async with asyncio.timeout(PATIENCE):
            self.link = await self.links.get()
        return await self.link.greet(version)

    async def next(self) -> Message:
        """What the daemon says next."""
        return await self.link.next()

    def send(self, *frames: bytes) -> None:
        """Tell the daemon."""
        self.link.send(*frames)

    async def wait_for(self, peer: int, port: int) -> Link:
        """Be the server of a data link until the other side comes."""
        links: asyncio.Queue[Link] = asyncio.Queue()
        server = await self._server(peer, port, links)
        async with asyncio.timeout(PATIENCE):
            link = await links.get()
        server.close()
        return link

    async def reach(self, peer: int, port: int) -> Link:
        """Be the client of a data link, as soon as the other side is there."""
        path = self.directory / f"vchan.{peer}.{self.domain}.{port}.sock"
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    link = await Link.to(path)
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(0.001)
                else:
                    self.opened.append(link)
                    return link

    async def _server(self, peer: int, port: int, links: asyncio.Queue[Link]) -> asyncio.Server:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = Link(reader, writer)
            self.opened.append(link)
            await links.put(link)

        path = self.directory / f"vchan.{self.domain}.{peer}.{port}.sock"
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(accepted, address(path))

    async def close(self) -> None:
        """End everything."""
        if self.server is not None:
            self.server.close()
        for link in self.opened:
            link.close()
        for link in self.opened:
            try:
                await link.writer.wait_closed()
            except ConnectionError:
                continue


@asynccontextmanager
async def fake_agent(directory: Path, domain: int) -> AsyncIterator[FakeAgent]:
    """An agent that listens, until the block ends."""
    agent = FakeAgent(directory, domain)
    await agent.listen()
    try:
        yield agent
    finally:
        await agent.close()
