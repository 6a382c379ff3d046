"""Disposables never outlive their run."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_lab import BASE, NET, WORK, Lab, report, until

from caisson.errors import CaissonError, EngineError, QubeNotFoundError, StorageError
from caisson.model import PowerState
from caisson.names import DOM0, FeatureName, QubeName


async def disposable(lab: Lab) -> QubeName:
    """A disposable that runs."""
    name = await lab.qubes.create_disposable(BASE, DOM0)
    await lab.qubes.start(name)
    return name


def gone(lab: Lab, name: QubeName) -> bool:
    """Whether nothing of it is left."""
    return (
        name not in lab.system.qubes
        and name not in lab.running()
        and name not in lab.door.states
        and name not in lab.door.opened
        and lab.pool.layers() == lab.known_layers()
    )


async def test_one_that_ends_by_itself_vanishes(lab: Lab):
    """With its layers."""
    name = await disposable(lab)
    lab.write(name, "secret")
    lab.instance(name).end()
    await until(lambda: name not in lab.system.qubes)
    await lab.settle()
    assert gone(lab, name)


@pytest.mark.parametrize("act", ["kill", "shutdown", "discard"])
async def test_one_that_is_ended_is_gone_when_that_returns(lab: Lab, act: str):
    """Trap 10: it is not in the list afterwards."""
    name = await lab.qubes.create_disposable_for_call(BASE, WORK)
    await lab.qubes.start(name)
    match act:
        case "kill":
            await lab.qubes.kill(name)
        case "shutdown":
            await lab.qubes.shutdown(name, wait=True)
        case "discard":
            await lab.qubes.discard(name)
    assert gone(lab, name)


async def test_one_that_is_paused_is_gone_when_it_is_killed(lab: Lab):
    """Whatever its state was."""
    name = await disposable(lab)
    await lab.qubes.pause(name)
    await lab.qubes.kill(name)
    assert gone(lab, name)


async def test_one_whose_start_fails_vanishes_with_the_error(lab: Lab):
    """Before the engine, in it, and after it."""
    name = await lab.qubes.create_disposable(BASE, DOM0)
    lab.engine.fail_start = EngineError("no runtime")
    with pytest.raises(EngineError, match="no runtime"):
        await lab.qubes.start(name)
    assert gone(lab, name)
    lab.engine.fail_start = None
    name = await lab.qubes.create_disposable(BASE, DOM0)
    lab.report = report("seccomp")
    with pytest.raises(EngineError, match="seccomp"):
        await lab.qubes.start(name)
    assert gone(lab, name)
    name = await lab.qubes.create_disposable(BASE, DOM0)
    qube = lab.system.qube(name)
    await lab.qubes.commit(lab.system.plan_feature(qube, FeatureName("prohibit-start"), "x"))
    with pytest.raises(CaissonError, match="prohibited"):
        await lab.qubes.start(name)
    assert gone(lab, name)


async def test_one_that_cannot_be_removed_yet_goes_with_the_next_daemon(lab: Lab):
    """A full store keeps it; a restart does not fail on it, and removes it."""
    name = await disposable(lab)
    lab.refuse_writes()
    await lab.qubes.kill(name)
    assert name in lab.system.qubes
    lab.refuse_writes(really=False)
    await lab.restart()
    assert gone(lab, name)


async def test_one_that_another_depends_on_does_not_keep_the_daemon_from_starting(lab: Lab):
    """It stays, halted, until nobody names it any more."""
    name = await lab.qubes.create_disposable(BASE, DOM0)
    lab.set(name, "provides_network", "True")
    lab.set(WORK, "netvm", name)
    await lab.restart()
    assert lab.state(name) is PowerState.HALTED
    await lab.qubes.start(WORK)
    assert lab.running() == [name, WORK]


async def test_one_that_is_discarded_while_it_starts_is_gone(lab: Lab):
    """Its caller went away; at any moment of the start."""
    for turns in range(0, 40, 3):
        name = await lab.qubes.create_disposable_for_call(BASE, WORK)
        starting = asyncio.create_task(lab.qubes.start(name))
        for _ in range(turns):
            await asyncio.sleep(0)
        await lab.qubes.discard(name)
        await asyncio.gather(starting, return_exceptions=True)
        await lab.settle()
        assert gone(lab, name)


async def test_one_that_was_never_started_is_discarded(lab: Lab):
    """And started no more."""
    name = await lab.qubes.create_disposable_for_call(BASE, WORK)
    await lab.qubes.discard(name)
    assert gone(lab, name)
    with pytest.raises(QubeNotFoundError):
        await lab.qubes.start(name)


async def test_two_starts_of_one_that_fails_do_not_run_what_is_removed(lab: Lab):
    """The second waits for the first, and finds no qube."""
    name = await lab.qubes.create_disposable(BASE, DOM0)
    lab.engine.fail_start = EngineError("no runtime")
    first = asyncio.create_task(lab.qubes.start(name))
    second = asyncio.create_task(lab.qubes.start(name))
    await asyncio.wait({first, second})
    assert isinstance(first.exception(), EngineError)
    assert isinstance(second.exception(), QubeNotFoundError)
    assert gone(lab, name)
    assert lab.running() == []


async def test_its_writes_never_reach_its_template(lab: Lab):
    """Nor another disposable."""
    name = await disposable(lab)
    lab.write(name, "secret")
    await lab.qubes.kill(name)
    assert lab.read(BASE, "secret") is None
    assert lab.dirty(BASE) == []


async def test_it_runs_on_when_its_template_moves_on(lab: Lab):
    """The layers that it borrowed stay as long as it runs."""
    name = await disposable(lab)
    borrowed = set(lab.instance(name).spec.root.lower)
    for _ in range(5):
        await lab.install(QubeName("tpl"))
    assert borrowed <= lab.pool.layers()
    await lab.qubes.kill(name)
    assert gone(lab, name)


async def test_the_template_moves_on_while_it_starts(lab: Lab):
    """It starts on layers that are there, whichever of the two was first."""
    lab.set(WORK, "netvm", "")
    for turns in range(0, 30, 2):
        name = await lab.qubes.create_disposable(BASE, DOM0)
        starting = asyncio.create_task(lab.qubes.start(name))
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(2):
            await lab.install(QubeName("tpl"))
        await starting
        spec = lab.instance(name).spec
        assert set(spec.root.lower) <= lab.pool.layers()
        await lab.qubes.kill(name)
        assert gone(lab, name)


async def test_one_that_a_full_store_refuses_is_not_there(lab: Lab):
    """And nobody heard of it."""
    lab.refuse_writes()
    before = set(lab.system.qubes)
    with pytest.raises(StorageError):
        await lab.qubes.create_disposable(BASE, DOM0)
    assert set(lab.system.qubes) == before
    assert lab.news() == []
    assert NET not in lab.system.qubes
