"""Real qubes with the real agent and the files of every qube, and a broker of a few lines."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from agent_rig import BINARY, Listener, Outcome, Peer, Pipes, read_all, shut

from caisson.engines import missing
from caisson.engines.interface import SYSTEM_AGENT
from caisson.storage.qube_files import lay
from grounds.engine import Ground


class Visitor:
    """A caller whose services run in a real qube, as its root."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def shell(self, line: str, user: str = "root") -> Outcome:
        """Run a shell command in the qube."""
        return self._call(f"M1\0{user}\0{line}", b"")

    def service(self, descriptor: str, stdin: bytes = b"", user: str = "") -> Outcome:
        """Call a service of the qube."""
        return self._call(f"S1\0{user}\0{descriptor}\0dom0\0", stdin)

    @contextmanager
    def behind(self, line: str) -> Iterator[None]:
        """Run a command in the background of the qube; its input ends with the block."""
        pipes = Pipes.make()
        # Of itself the shell gives what is in the background an empty input.
        message = f"M1\0root\0exec 3<&0; {line} <&3 >/dev/null 2>&1 &"
        self.peer.send(message.encode(), pipes.service)
        shut(pipes.service)
        try:
            assert self.peer.receive() == b"X1\x000"
            yield
        finally:
            shut(pipes.caller)

    def _call(self, message: str, stdin: bytes) -> Outcome:
        pipes = Pipes.make()
        self.peer.send(message.encode(), pipes.service)
        shut(pipes.service)
        os.write(pipes.caller[0], stdin)
        shut(pipes.caller, 0)
        stdout, stderr = read_all(pipes.caller[1]), read_all(pipes.caller[2])
        shut(pipes.caller)
        code = int(self.peer.receive().split(b"\0")[1])
        return Outcome(code, stdout, stderr)


@asynccontextmanager
async def visitor(ground: Ground) -> AsyncIterator[Visitor]:
    """A qube with the real agent, admitted by a broker that has seen all barriers up."""
    source = BINARY.parents[3]
    laid = await asyncio.to_thread(lay, ground.paths.state, source / "qube", BINARY)
    listener = Listener(ground.sockets / "qrexec")
    listener.path.chmod(0o666)
    instance = await ground.start(argv=(SYSTEM_AGENT,), qube_files=laid)
    try:
        peer = await asyncio.to_thread(listener.accept)
        report = (await asyncio.to_thread(peer.receive)).split(b"\0", 1)[1]
        assert missing(json.loads(report)) == []
        peer.send(b"W")
        assert await asyncio.to_thread(peer.receive) == b"U0"  # there is nothing to set up
        yield Visitor(peer)
    finally:
        listener.close()
        await ground.engine.kill(instance)
