"""The daemon of a qube `far` on the wire, whose calls the broker decides."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from broker_rig import PATIENCE, Rig, until

from caisson.errors import CaissonError
from caisson.names import QubeName, UserName
from caisson.qrexec.vchan import Daemon, Settings
from caisson.qrexec.vchan.streams import Places

FAR = 7


async def _no_admin(method: str, destination: str, _payload: bytes) -> bytes:
    raise CaissonError(f"`{method}` on `{destination}` is the broker's")


def sockets_of(rig: Rig) -> Path:
    """Where the daemon has its sockets."""
    return rig.paths.root / "sockets"


@asynccontextmanager
async def far_daemon(
    rig: Rig, places: Places, user: str, ready: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Daemon]:
    """It is connected, and the broker's agent for the qube; it has ended afterwards.

    Args:
        rig: with the broker.
        places: where the streams are.
        user: who runs commands there.
        ready: waits for the agent's side of the connection, where the test plays it.
    """
    await rig.add("far")
    await rig.link.open_qube(QubeName("far"))
    sockets = sockets_of(rig)
    sockets.mkdir()
    uuid = f"uuid:{rig.domains['far']['uuid']}"
    settings = Settings(
        rig.paths, sockets, FAR, QubeName("far"), uuid, UserName(user), None, places
    )
    there = asyncio.Event()
    daemon = Daemon(settings, _no_admin, there.set)
    running = asyncio.create_task(daemon.run())
    try:
        if ready is not None:
            await ready()
        async with asyncio.timeout(PATIENCE):
            await there.wait()
        await until(lambda: ("far", os.getpid()) in rig.hellos)
        yield daemon
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
