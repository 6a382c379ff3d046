"""After a restart of the daemon: what runs goes on, what does not is put away."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_lab import BASE, NET, WORK, Lab, report, until

from caisson.errors import NotPausedError
from caisson.model import PowerState
from caisson.names import DOM0, QubeName


async def test_running_qubes_run_on(lab: Lab):
    """With their links, their door, and the properties of a running qube."""
    await lab.network()
    await lab.qubes.start(WORK)
    pid = lab.instance(WORK).pid
    lab.write(WORK, "note")
    lab.wires.plugged.clear()
    await lab.restart()
    assert lab.state(WORK) is lab.state(NET) is PowerState.RUNNING
    assert lab.running() == [NET, WORK]
    assert lab.wires.plugged == {(WORK, NET)}
    assert lab.door.opened == {WORK, NET}
    assert lab.system.value(lab.system.qube(WORK), "xid") == pid  # type: ignore[arg-type]
    await lab.qubes.shutdown(WORK, wait=True)
    assert lab.untouched(WORK)
    assert lab.read(WORK, "note") == "x"


async def test_a_paused_qube_stays_paused(lab: Lab):
    """A frozen qube does not count as running, and can be thawed."""
    await lab.qubes.start(WORK)
    await lab.qubes.pause(WORK)
    await lab.restart()
    assert lab.state(WORK) is PowerState.PAUSED
    await lab.qubes.unpause(WORK)
    with pytest.raises(NotPausedError):
        await lab.qubes.unpause(WORK)


async def test_what_a_crashed_qube_wrote_is_committed(lab: Lab):
    """Its private volume; its root, a throw-away layer, is gone."""
    await lab.qubes.start(WORK)
    lab.write(WORK, "note")
    root = lab.instance(WORK).spec.root.upper
    await lab.stop()
    lab.instance(WORK).end()
    await lab.begin()
    assert lab.untouched(WORK)
    assert lab.read(WORK, "note") == "x"
    assert root not in lab.pool.layers()
    await lab.qubes.start(WORK)


async def test_disposables_that_ended_meanwhile_are_removed_and_running_ones_stay(lab: Lab):
    """Those that never started are removed too: nobody is left who would start them."""
    names = [await lab.qubes.create_disposable(BASE, DOM0) for _ in range(3)]
    await lab.qubes.start(names[0])
    await lab.qubes.start(names[1])
    await lab.stop()
    lab.instance(names[0]).end()
    await lab.begin()
    assert names[0] not in lab.system.qubes
    assert names[2] not in lab.system.qubes
    assert lab.state(names[1]) is PowerState.RUNNING
    await lab.qubes.kill(names[1])
    assert names[1] not in lab.system.qubes
    assert lab.pool.layers() == lab.known_layers()


async def test_layers_that_nobody_knows_are_erased(lab: Lab):
    """Whole ones and half made ones; those in use stay."""
    await lab.qubes.start(WORK)
    in_use = lab.known_layers()
    await lab.stop()
    orphan = lab.pool.new_layer()
    (lab.paths.pool / ".new-aaaaaaaa").mkdir()
    await lab.begin()
    assert lab.pool.layers() == in_use
    assert orphan not in in_use
    assert not (lab.paths.pool / ".new-aaaaaaaa").exists()


async def test_a_running_qube_that_nobody_knows_is_ended(lab: Lab):
    """The store is older than the engine, say after a restore."""
    await lab.qubes.start(WORK)
    await lab.stop()
    stranger = lab.instance(WORK)
    lab.paths.database.rename(lab.paths.state / "aside")
    await lab.begin()
    assert stranger.ended
    assert WORK not in lab.system.qubes


async def test_a_start_that_the_end_of_the_daemon_cut_off_is_adopted(lab: Lab):
    """Its agent reports to the next daemon, which judges it as strictly."""
    for said, state in ((report(), PowerState.RUNNING), (report("seccomp"), PowerState.HALTED)):
        lab.engine.on_start = None
        starting = asyncio.create_task(lab.qubes.start(WORK))
        await until(lambda: WORK in lab.running())
        await lab.stop()
        await asyncio.gather(starting, return_exceptions=True)
        await lab.begin()
        instance = lab.instance(WORK)
        assert lab.door.admitted == []
        lab.qubes.running.agent_said(WORK, instance.pid, said)
        await until(lambda state=state: lab.state(WORK) is state)
        await lab.settle()
        assert lab.door.admitted == ([WORK] if state is PowerState.RUNNING else [])
        if state is PowerState.RUNNING:
            await lab.qubes.kill(WORK)
        assert lab.untouched(WORK)


async def test_a_start_that_was_cut_off_before_the_engine_leaves_nothing(lab: Lab):
    """At any moment."""
    for turns in range(0, 30, 3):
        starting = asyncio.create_task(lab.qubes.start(WORK))
        for _ in range(turns):
            await asyncio.sleep(0)
        await lab.restart()
        await asyncio.gather(starting, return_exceptions=True)
        if lab.state(WORK) is PowerState.RUNNING:
            await lab.qubes.kill(WORK)
        assert lab.untouched(WORK)


async def test_an_agent_that_speaks_again_after_a_restart_of_the_broker_is_admitted(lab: Lab):
    """The broker forgets; a running qube proves itself anew, or is ended."""
    await lab.qubes.start(WORK)
    pid = lab.instance(WORK).pid
    lab.qubes.running.agent_said(WORK, pid, report())
    assert lab.door.admitted == [WORK, WORK]
    lab.qubes.running.agent_said(WORK, pid + 7, report())
    assert lab.door.rejected == [pid + 7]
    lab.qubes.running.agent_said(WORK, pid, report("bpf"))
    await until(lambda: lab.state(WORK) is PowerState.HALTED)
    await lab.settle()
    assert lab.untouched(WORK)


async def test_what_failed_in_a_set_up_is_told_once_a_run(lab: Lab):
    """By the first process of this run only; a second word, or a stranger's, changes nothing."""
    said, qube = lab.qubes.running.set_up_ended, lab.system.qube(WORK)
    said(WORK, 1, 5)
    said(QubeName("nobody"), 1, 5)
    assert await lab.qubes.set_up_of(qube, 0) is None
    for failures in (2, 0):
        await lab.qubes.start(WORK)
        pid = lab.instance(WORK).pid
        said(WORK, pid + 7, 5)
        assert await lab.qubes.set_up_of(qube, 0) is None
        said(WORK, pid, failures)
        said(WORK, pid, 9)
        assert await lab.qubes.set_up_of(qube, 0) == failures
        assert lab.news(WORK).count("domain-setup-failed") == (1 if failures else 0)
        waiting = asyncio.create_task(lab.qubes.set_up_of(qube, 60))
        await lab.qubes.kill(WORK)
        assert await waiting == failures
    assert await lab.qubes.set_up_of(qube, 60) is None


async def test_the_end_of_a_qube_ends_the_wait_for_its_set_up(lab: Lab):
    """Whoever asks how the set-up went does not wait for one that will never tell."""
    await lab.qubes.start(WORK)
    waiting = asyncio.create_task(lab.qubes.set_up_of(lab.system.qube(WORK), 600))
    await asyncio.sleep(0)
    await lab.qubes.kill(WORK)
    assert await waiting is None


async def test_an_agent_of_no_qube_is_rejected(lab: Lab):
    """A name that nobody knows, or that is halted."""
    lab.qubes.running.agent_said(WORK, 1, report())
    lab.qubes.running.agent_said(DOM0, 2, report())
    assert lab.door.rejected == [1, 2]
