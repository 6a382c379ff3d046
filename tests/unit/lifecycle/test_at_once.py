"""Many at once: each act is whole, and happens once."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_lab import BASE, NET, RED, TEMPLATE, WORK, Clock, Lab, until

from caisson.errors import (
    CaissonError,
    NotHaltedError,
    QubeExistsError,
    QubeNotFoundError,
    StorageError,
)
from caisson.model import Klass, PowerState
from caisson.names import DOM0, PropertyName, QubeName


async def test_concurrent_starts_of_one_qube_start_it_once(lab: Lab):
    """All of them return when it is up."""
    await asyncio.gather(*(lab.qubes.start(WORK) for _ in range(10)))
    assert lab.running() == [WORK]
    assert lab.news().count("domain-start") == 1


async def test_concurrent_starts_of_clients_start_the_network_qube_once(lab: Lab):
    """Each waits for it."""
    await lab.network()
    lab.set(BASE, "netvm", NET)
    await asyncio.gather(lab.qubes.start(WORK), lab.qubes.start(BASE), lab.qubes.start(NET))
    assert lab.running() == sorted([BASE, NET, WORK])
    assert lab.wires.plugged == {(WORK, NET), (BASE, NET)}


async def test_a_start_while_halting_waits_for_the_end(lab: Lab):
    """Then it starts anew, on what the last run has kept."""
    lab.engine.obeys = False
    await lab.qubes.start(WORK)
    lab.write(WORK, "note")
    first = lab.instance(WORK)
    await lab.qubes.shutdown(WORK)
    starting = asyncio.create_task(lab.qubes.start(WORK))
    await lab.settle()
    assert not starting.done()
    first.end()
    await starting
    assert lab.state(WORK) is PowerState.RUNNING
    assert lab.instance(WORK) is not first
    assert lab.read(WORK, "note") == "x"


async def test_a_start_does_not_wait_for_ever_for_a_qube_that_does_not_end(lab: Lab):
    """And keeps nobody from ending it by force."""
    lab.engine.obeys = False
    clock = Clock()
    await lab.qubes.start(WORK)
    await lab.qubes.shutdown(WORK)
    starting = asyncio.create_task(lab.qubes.start(WORK))
    await lab.settle()
    clock.advance(61)
    with pytest.raises(NotHaltedError):
        await starting
    await lab.qubes.kill(WORK)
    assert lab.untouched(WORK)


async def test_a_start_is_content_when_the_shutdown_was_given_up(lab: Lab):
    """The qube runs, which is what was asked for."""
    lab.engine.obeys = False
    clock = Clock()
    await lab.qubes.start(WORK)
    asking = asyncio.create_task(lab.qubes.shutdown(WORK, wait=True))
    await until(lambda: lab.state(WORK) is PowerState.HALTING)
    starting = asyncio.create_task(lab.qubes.start(WORK))
    await lab.settle()
    clock.advance(61)
    await asyncio.wait({asking})
    assert asking.exception() is not None
    await starting
    assert lab.state(WORK) is PowerState.RUNNING


async def test_a_cancelled_start_is_carried_out(lab: Lab):
    """At any moment: the client that asked is away, the qube comes up whole."""
    for turns in range(0, 30, 2):
        starting = asyncio.create_task(lab.qubes.start(WORK))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await lab.settle()
        if lab.state(WORK) is not PowerState.HALTED:
            await until(lambda: lab.state(WORK) is PowerState.RUNNING)
            await lab.qubes.kill(WORK)
        assert lab.untouched(WORK)


async def test_other_cancelled_acts_are_carried_out(lab: Lab):
    """Each of them, once it was begun."""
    name = QubeName("new")

    async def cancelled(act: object) -> None:
        task = asyncio.ensure_future(act)  # type: ignore[call-overload]
        await lab.settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    lab.door.hold = asyncio.Event()
    await cancelled(lab.qubes.create(Klass.APP, name, RED, None, DOM0))
    lab.door.hold.set()
    await until(lambda: name in lab.system.qubes)
    await lab.qubes.start(name)
    lab.engine.obeys = False
    await cancelled(lab.qubes.kill(name))
    await until(lambda: lab.state(name) is PowerState.HALTED)
    await cancelled(lab.qubes.remove(name))
    await until(lambda: name not in lab.system.qubes)
    await lab.settle()
    assert lab.news(name)[-1] == "domain-remove-from-disk"
    assert lab.pool.layers() == lab.known_layers()


async def test_a_failure_that_nobody_waits_for_harms_nobody(lab: Lab):
    """The daemon goes on."""
    lab.engine.on_start = lambda instance: instance.end()
    starting = asyncio.create_task(lab.qubes.start(WORK))
    await lab.settle()
    starting.cancel()
    await until(lambda: "domain-start-failed" in lab.news())
    lab.engine.on_start = lab.play_agent
    await lab.qubes.start(WORK)


async def test_of_two_removals_one_succeeds(lab: Lab):
    """The other does not find the qube."""
    results = await asyncio.gather(
        lab.qubes.remove(WORK), lab.qubes.remove(WORK), return_exceptions=True
    )
    assert [type(result) for result in results].count(QubeNotFoundError) == 1
    assert WORK not in lab.system.qubes


async def test_of_two_creations_of_one_name_one_succeeds(lab: Lab):
    """The other hears that it exists."""
    name = QubeName("new")
    results = await asyncio.gather(
        *(lab.qubes.create(Klass.APP, name, RED, None, DOM0) for _ in range(3)),
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(QubeExistsError) == 2
    await lab.qubes.start(name)


async def test_a_start_and_a_removal_at_once_leave_a_running_qube_or_none(lab: Lab):
    """Never half of both."""
    for turns in range(0, 24, 2):
        name = QubeName(f"q{turns}")
        await lab.app(name)
        starting = asyncio.create_task(lab.qubes.start(name))
        for _ in range(turns):
            await asyncio.sleep(0)
        removing = asyncio.create_task(lab.qubes.remove(name))
        await asyncio.wait({starting, removing})
        if removing.exception() is None:
            assert isinstance(starting.exception(), QubeNotFoundError)
            assert name not in lab.running()
        else:
            assert starting.exception() is None
            assert lab.state(name) is PowerState.RUNNING
            await lab.qubes.kill(name)
            await lab.qubes.remove(name)
    assert lab.pool.layers() == lab.known_layers()


async def test_a_removal_while_a_qube_is_being_created_leaves_nothing(lab: Lab):
    """Whoever comes first."""
    for turns in range(0, 24, 2):
        name = QubeName(f"q{turns}")
        creating = asyncio.create_task(lab.qubes.create(Klass.APP, name, RED, None, DOM0))
        await until(lambda name=name: name in lab.system.qubes)
        for _ in range(turns):
            await asyncio.sleep(0)
        await lab.qubes.remove(name)
        await asyncio.gather(creating, return_exceptions=True)
        assert name not in lab.system.qubes
    assert lab.pool.layers() == lab.known_layers()


async def test_a_start_while_its_qube_is_being_created_works_or_says_why(lab: Lab):
    """It is not left half started."""
    name = QubeName("new")
    creating = asyncio.create_task(lab.qubes.create(Klass.APP, name, RED, None, DOM0))
    await until(lambda: name in lab.system.qubes)
    try:
        await lab.qubes.start(name)
    except StorageError:
        await creating
        assert lab.untouched(name)
    await creating
    await lab.qubes.start(name)


async def test_every_waiter_for_the_end_returns(lab: Lab):
    """Kills and shutdowns at once, while the qube is put away too."""
    await lab.qubes.start(WORK)
    asks = [
        asyncio.create_task(act)
        for act in (
            lab.qubes.shutdown(WORK, wait=True),
            lab.qubes.kill(WORK),
            lab.qubes.kill(WORK),
            lab.qubes.shutdown(WORK, wait=True),
        )
    ]
    await until(lambda: lab.state(WORK) is PowerState.HALTING)
    late = asyncio.create_task(lab.qubes.kill(WORK))
    await asyncio.wait({*asks, late})
    assert [task.exception() for task in (*asks, late)] == [None] * 5
    assert lab.untouched(WORK)


async def test_a_running_qube_follows_its_network_qube(lab: Lab):
    """Its link moves when the property changes, and goes when it is emptied."""
    await lab.network()
    await lab.qubes.start(WORK)
    other = QubeName("sys-vpn")
    await lab.app(other)
    lab.set(other, "provides_network", "True")
    with pytest.raises(CaissonError):
        await lab.qubes.set_property(WORK, PropertyName("netvm"), other)
    assert lab.wires.plugged == {(WORK, NET)}
    await lab.qubes.start(other)
    await lab.qubes.set_property(WORK, PropertyName("netvm"), other)
    assert lab.wires.plugged == {(WORK, other)}
    await lab.qubes.set_property(WORK, PropertyName("netvm"), "")
    assert lab.wires.plugged == set()


async def test_a_template_gets_a_new_root_while_qubes_run_on_the_old(lab: Lab):
    """The next start is on the new one."""
    await lab.qubes.start(WORK)
    old = lab.instance(WORK).spec.root.lower
    await lab.install(TEMPLATE)
    assert lab.instance(WORK).spec.root.lower == old
    await lab.qubes.shutdown(WORK, wait=True)
    await lab.qubes.start(WORK)
    assert lab.instance(WORK).spec.root.lower != old


async def test_a_running_template_gets_no_new_root(lab: Lab):
    """And the layer that was meant for it is erased."""
    await lab.qubes.start(TEMPLATE)
    with pytest.raises(NotHaltedError):
        await lab.install(TEMPLATE)
    assert lab.pool.layers() == lab.known_layers()
