"""Calls to the admin qube as a broker makes them that a hostile qube has taken over."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from admin_rig import AdminRig
from broker_rig import PATIENCE, as_broker

HONEST: dict[str, Any] = {
    "id": 1,
    "service": "admin.vm.List",
    "argument": "+",
    "source": "mgmt",
    "target_type": "name",
    "requested": "dom0",
}


class Attacker:
    """A broker that says what it likes; each connection is one call."""

    def __init__(
        self, path: Path, identity: Callable[[], AbstractContextManager[None]] = as_broker
    ) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with identity():
            # Not relative to this directory: the broker's user may have no way through it.
            self.sock.connect(os.fspath(path))
        self.sock.setblocking(False)
        self.ends: list[int] = []

    def send(self, message: bytes, descriptors: list[int]) -> None:
        """Send one datagram with descriptors."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self.sock.sendmsg([message], rights if descriptors else [])

    def call(self, **changed: Any) -> None:
        """Hand a call over as a broker does, but keep a copy of every end."""
        self.ends = [end for _ in range(3) for end in os.pipe()]
        in_read, _, _, out_write, _, err_write = self.ends
        self.send(json.dumps(HONEST | changed).encode(), [in_read, out_write, err_write])

    async def answer(self) -> bytes:
        """The datagram that comes back; empty when the connection is closed without."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            try:
                return await loop.sock_recv(self.sock, 1000)
            except ConnectionError:
                return b""

    def close(self) -> None:
        """Let everything go."""
        self.sock.close()
        for end in self.ends:
            os.close(end)
        self.ends = []


async def forged(
    daemon: AdminRig, payload: bytes = b"", **changed: Any
) -> tuple[bytes, bytes, bytes]:
    """A call that the broker's user hands over though the broker judged none; what comes of it."""
    attacker = Attacker(daemon.rig.paths.admin_calls)
    attacker.call(**changed)
    in_read, in_write, out_read, out_write, err_read, err_write = attacker.ends
    os.write(in_write, payload)
    for end in (in_read, in_write, out_write, err_write):
        os.close(end)
    attacker.ends = [out_read, err_read]
    answer = await attacker.answer()
    out, err = os.read(out_read, 65_536), os.read(err_read, 65_536)
    attacker.close()
    return answer, out, err
