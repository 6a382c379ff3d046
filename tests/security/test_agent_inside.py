"""Attacks on the agent from beside it: by the root of its own qube, through a real service call."""

from __future__ import annotations

import asyncio

import pytest
from agent_rig import PATIENCE, Outcome
from grounds.agent import visitor
from grounds.engine import Ground

pytestmark = pytest.mark.root


SETUP = "import ctypes, os, sys; libc = ctypes.CDLL(None); exec(sys.argv[1])"
PYTHON = f"/usr/bin/python3 -I -c '{SETUP}'"


PTRACE_SEIZE = 0x4206
PIDFD_GETFD = 438
REACHING_IN = [
    "readlink /proc/1/exe /proc/1/cwd /proc/1/root /proc/1/fd/* /proc/1/ns/mnt",
    "cat /proc/1/mem",
    "cat /proc/1/maps",
    "cat /proc/1/environ",
    "cat /proc/1/root/etc/passwd",
    f"{PYTHON} 'print(libc.ptrace({PTRACE_SEIZE}, 1, 0, 0))' | grep -v -e -1",
    *(
        f"{PYTHON} 'print(libc.syscall({PIDFD_GETFD}, os.pidfd_open(1), {fd}, 0))' | grep -v -e -1"
        for fd in (3, 4, 5)
    ),
]


@pytest.mark.parametrize("attack", REACHING_IN)
async def test_root_of_a_qube_cannot_reach_into_the_agent(ground: Ground, attack: str) -> None:
    """Its memory, its descriptors (the broker's socket) and its control are closed to it."""
    async with visitor(ground) as qube:
        outcome = await asyncio.to_thread(qube.shell, attack)
        assert outcome.code != 0
        assert outcome.stdout == b""


async def test_the_agent_cannot_be_killed_or_stopped_from_inside(ground: Ground) -> None:
    """A qube that wants to live on can not be left without its first process, nor stall it."""
    async with visitor(ground) as qube:
        await asyncio.to_thread(
            qube.shell, "kill -KILL 1; kill -STOP 1; kill -SEGV 1; kill -PIPE 1"
        )
        assert (await asyncio.to_thread(qube.shell, "exit 5")).code == 5


async def test_a_service_holds_nothing_of_the_agent(ground: Ground) -> None:
    """Three pipes, its own session, no capability for an ordinary user, a clean environment."""
    async with visitor(ground) as qube:
        listed = await asyncio.to_thread(qube.shell, "exec ls /proc/self/fd")
        assert listed.stdout.split() == [b"0", b"1", b"2", b"3"]
        status = await asyncio.to_thread(qube.shell, "grep CapEff /proc/self/status", "user")
        assert status.stdout == b"CapEff:\t0000000000000000\n"
        variables = await asyncio.to_thread(qube.shell, "env")
        assert b"CAISSON" not in variables.stdout


BOMB = """
import select
while not select.select([0], [], [], 0)[0]:
    try:
        if os.fork() == 0:
            os.read(0, 1)
            os._exit(0)
    except OSError:
        pass
"""


async def test_a_fork_bomb_leaves_the_agent_answering(ground: Ground) -> None:
    """Calls fail with words while there is no room, and work again once there is."""
    async with visitor(ground) as qube:

        async def until(code: int) -> Outcome:
            async with asyncio.timeout(PATIENCE):
                while (outcome := await asyncio.to_thread(qube.shell, "exit 0")).code != code:
                    pass
            return outcome

        with qube.behind(f"{PYTHON} '{BOMB}'"):
            refused = await until(125)
        assert b"cannot make a process: resource temporarily unavailable" in refused.stderr
        await until(0)
