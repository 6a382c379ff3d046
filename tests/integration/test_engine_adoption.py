"""Real containers that outlive the daemon: found again, and cleaned up after."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from grounds.engine import BASE_LAYER, Ground, until
from grounds.processes import alive

from caisson.engines.oci.runtime import installed

pytestmark = pytest.mark.root


async def test_a_new_daemon_finds_a_paused_qube_paused(ground: Ground):
    """And a running one running."""
    frozen, other = await ground.start(), await ground.start()
    await ground.engine.pause(frozen)
    await ground.engine.close()
    assert {found.id: found.paused for found in await ground.restart()} == {
        frozen.id: True,
        other.id: False,
    }


async def test_a_new_daemon_adopts_what_runs(ground: Ground):
    """Running qubes are found again, with pid and ids, and can be ended."""
    instance = await ground.start()
    await ground.engine.close()
    [found] = await ground.restart()
    assert (found.id, found.name, found.pid) == (instance.id, "work", instance.pid)
    assert found.uid_base == instance.uid_base
    second = await ground.start()
    assert second.uid_base != found.uid_base
    for running in (found, second):
        await ground.engine.kill(running)
    assert await ground.left() == []


async def test_a_new_daemon_cleans_up_after_the_dead(ground: Ground):
    """A qube that ended while no daemon ran leaves nothing."""
    instance = await ground.start()
    await ground.engine.close()
    os.kill(instance.pid, signal.SIGKILL)
    await until(lambda: not alive(instance.pid))
    assert await ground.restart() == []
    assert await ground.left() == []


async def test_a_reused_pid_is_not_adopted(ground: Ground):
    """A record whose pid now belongs to another process is a dead qube's."""
    instance = await ground.start()
    record = instance.record
    await ground.engine.kill(instance)
    await ground.left()
    ground.engine._records.write(
        type(record)(**{**_fields(record), "pid": os.getpid(), "pid_started": 1})
    )
    assert await ground.engine.adopt() == []
    assert await ground.left() == []


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


DAEMON = """
import asyncio, sys
sys.path[:0] = {path!r}
from caisson.engines.oci import runtime as r
r.KNOWN = {known!r}
from pathlib import Path
from caisson.engines import OciEngine, enter_private_namespace
from caisson.paths import Paths
import grounds.engine as g

async def main():
    ground = g.Ground(OciEngine(Paths(Path({root!r})), spares=2), Paths(Path({root!r})))
    g.BASE_LAYER[ground.paths] = {base!r}
    g._counter = __import__("itertools").count({first})
    await ground.engine.adopt()
    while True:
        instance = await ground.start()
        print(instance.pid, flush=True)
        if {endless}:
            continue
        await asyncio.Event().wait()

enter_private_namespace()
asyncio.run(main())
"""


def daemon(
    ground: Ground, *, endless: bool, known: tuple[str, ...] = ("crun", "runc")
) -> subprocess.Popen[str]:
    """A process of its own that starts qubes."""
    tests = Path(__file__).parents[1]
    code = DAEMON.format(
        path=[str(tests), str(tests.parent)],
        root=str(ground.paths.root),
        base=BASE_LAYER[ground.paths],
        first=1000 + secrets.randbelow(1 << 24),
        endless=endless,
        known=known,
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


async def test_qubes_survive_kill_9_of_the_daemon(ground: Ground):
    """After `kill -9` of the daemon its qube runs on, and the next daemon has it."""
    process = daemon(ground, endless=False)
    pid = int(await asyncio.to_thread(process.stdout.readline))
    process.kill()
    process.wait()
    process.stdout.close()
    assert alive(pid)
    [found] = await ground.restart()
    assert found.pid == pid
    await ground.engine.kill(found)
    assert not alive(pid)
    assert await ground.left() == []


@pytest.mark.parametrize("delay", [0.0, 0.004, 0.008, 0.012, 0.016])
@pytest.mark.parametrize("runtime", [found.name for found in installed()])
async def test_kill_9_in_the_middle_of_a_start_loses_no_track(
    ground: Ground, runtime: str, delay: float
):
    """At whatever point of a start the daemon dies: what runs is adopted, the rest is cleaned."""
    process = daemon(ground, endless=True, known=(runtime,))
    await asyncio.to_thread(process.stdout.readline)
    await asyncio.sleep(delay)  # the moment of death is the parameter; nothing is waited for
    process.kill()
    process.wait()
    process.stdout.close()
    found = await ground.restart()
    assert found
    groups = {instance.record.group for instance in found}
    assert ground.engine._groups.names() == groups
    for instance in found:
        await ground.engine.kill(instance)
    assert await ground.left() == []
