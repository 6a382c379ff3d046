"""The services that every qube offers, called in a real qube."""

from __future__ import annotations

import asyncio

import pytest
from grounds.agent import visitor
from grounds.engine import Ground

pytestmark = pytest.mark.root


async def test_services_of_every_qube(ground: Ground) -> None:
    """Shells and commands, as the user and as root, with input, output and code."""
    async with visitor(ground) as qube:

        async def call(descriptor: str, stdin: bytes = b"") -> tuple[int, bytes]:
            outcome = await asyncio.to_thread(qube.service, descriptor, stdin)
            return outcome.code, outcome.stdout or outcome.stderr

        assert await call("qubes.VMShell", b"id -un\ncat\nrest of input") == (
            0,
            b"user\nrest of input",
        )
        assert await call("qubes.VMShell+WaitForSession", b"exit 9\n") == (9, b"")
        assert await call("qubes.VMRootShell", b"id -un; pwd; exit 3\n") == (3, b"root\n/root\n")
        assert await call("qubes.VMExec+id+--un") == (0, b"user\n")
        assert await call("qubes.VMExecGUI+cat", b"through") == (0, b"through")
        assert await call("qubes.VMRootExec+id+--un") == (0, b"root\n")
        assert await call("qubes.VMExec+sh+--c+exit-2077") == (77, b"")
        assert await call("qubes.VMExec+a-b") == (1, b"error: `a-b` does not spell a command\n")
        assert await call("qubes.WaitForSession") == (0, b"")


async def test_a_service_of_the_qube_comes_before_ours(ground: Ground) -> None:
    """What the owner puts below `/usr/local`, without `#!`, and only there."""
    async with visitor(ground) as qube:
        write = "mkdir -p /usr/local/etc/qubes-rpc && cd /usr/local/etc/qubes-rpc && "
        write += "echo 'echo mine $QREXEC_REMOTE_DOMAIN' >qubes.VMShell && chmod +x qubes.VMShell"
        assert (await asyncio.to_thread(qube.shell, write)).code == 0
        outcome = await asyncio.to_thread(qube.service, "qubes.VMShell")
        assert (outcome.code, outcome.stdout) == (0, b"mine dom0\n")
        overwrite = await asyncio.to_thread(qube.shell, "echo x >/usr/lib/qubes/qubes-vmexec")
        assert overwrite.code != 0


LINGERER = """
(trap exit TERM; touch /tmp/ready; while :; do sleep 0.01; done) >/dev/null 2>&1 &
until [ -e /tmp/ready ]; do sleep 0.01; done
"""
GRACE = 5.0


async def test_a_qube_is_left_in_order(ground: Ground) -> None:
    """On `Q` everybody is asked to end, and the first process follows the last of them."""
    async with visitor(ground) as qube:
        assert (await asyncio.to_thread(qube.shell, LINGERER)).code == 0
        clock = asyncio.get_running_loop().time
        started = clock()
        qube.peer.send(b"Q")
        assert await asyncio.to_thread(qube.peer.receive) == b""
        assert clock() - started < GRACE
