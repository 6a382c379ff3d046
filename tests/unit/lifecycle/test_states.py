"""Which act is refused in which state, by which error (sheet `admin-api`, section 2.4)."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_lab import BASE, NET, TEMPLATE, WORK, Clock, Lab, until

from caisson.errors import (
    CaissonError,
    EngineError,
    NotHaltedError,
    NotPausedError,
    NotRunningError,
    NotStartedError,
    PermissionDeniedError,
    QubeError,
    QubeInUseError,
    QubeNotFoundError,
    ShutdownTimeoutError,
)
from caisson.model import Klass, PowerState
from caisson.names import DOM0, FeatureName, LabelName, QubeName, Tag


async def test_a_start_returns_with_a_running_qube_and_a_second_one_changes_nothing(lab: Lab):
    """Trap 8: starting a running qube succeeds."""
    await lab.qubes.start(WORK)
    assert lab.state(WORK) is PowerState.RUNNING
    first = lab.instance(WORK)
    await lab.qubes.start(WORK)
    assert lab.instance(WORK) is first
    assert lab.door.states[WORK] == "Running"
    assert lab.door.admitted == [WORK]


async def test_starting_a_paused_qube_leaves_it_paused(lab: Lab):
    """Any state but Halted is success without action."""
    await lab.qubes.start(WORK)
    await lab.qubes.pause(WORK)
    await lab.qubes.start(WORK)
    assert lab.state(WORK) is PowerState.PAUSED


async def test_the_admin_qube_is_never_started_or_ended(lab: Lab):
    """Trap 8: clients rely on the very error of a start."""
    with pytest.raises(NotHaltedError):
        await lab.qubes.start(DOM0)
    for act in (lab.qubes.kill, lab.qubes.shutdown, lab.qubes.pause, lab.qubes.unpause):
        with pytest.raises(QubeError):
            await act(DOM0)
    with pytest.raises(QubeInUseError):
        await lab.qubes.remove(DOM0)


async def test_a_remote_qube_always_runs_and_is_only_removed(lab: Lab):
    """Section 2.4: always reported `Running`, to the broker too, and nothing here starts it."""
    far = QubeName("far")
    await lab.qubes.create(Klass.REMOTE, far, LabelName("red"), None, DOM0)
    assert lab.qubes.power_state(far) is PowerState.RUNNING
    assert lab.door.states[far] == "Running"
    with pytest.raises(NotHaltedError):
        await lab.qubes.start(far)
    for act in (lab.qubes.kill, lab.qubes.shutdown, lab.qubes.pause, lab.qubes.unpause):
        with pytest.raises(QubeError):
            await act(far)
    assert (await lab.qubes.usage(lab.qubes.system.qube(far))).memory == 0
    await lab.qubes.remove(far)
    assert far not in lab.qubes.system.qubes


async def test_acts_on_a_halted_qube_are_refused_by_the_right_errors(lab: Lab):
    """Trap 9: tools ignore exactly these."""
    for act, error in (
        (lab.qubes.kill, NotStartedError),
        (lab.qubes.shutdown, NotStartedError),
        (lab.qubes.pause, NotRunningError),
        (lab.qubes.unpause, NotPausedError),
    ):
        with pytest.raises(NotStartedError) as caught:
            await act(WORK)
        assert type(caught.value) is error


async def test_acts_on_a_qube_that_does_not_exist_say_so(lab: Lab):
    """Every method that takes a name."""
    for act in (
        lab.qubes.start,
        lab.qubes.kill,
        lab.qubes.shutdown,
        lab.qubes.pause,
        lab.qubes.unpause,
        lab.qubes.remove,
        lab.qubes.discard,
    ):
        with pytest.raises(QubeNotFoundError):
            await act(QubeName("nosuch"))


async def test_a_paused_qube_is_shut_down_only_by_force(lab: Lab):
    """Without force it is not running; with force it is thawed first, so that it can obey."""
    await lab.qubes.start(WORK)
    await lab.qubes.pause(WORK)
    with pytest.raises(NotRunningError):
        await lab.qubes.shutdown(WORK)
    with pytest.raises(NotRunningError):
        await lab.qubes.pause(WORK)
    await lab.qubes.shutdown(WORK, force=True, wait=True)
    assert lab.untouched(WORK)


async def test_pause_and_unpause_follow_each_other(lab: Lab):
    """And the broker hears of both."""
    await lab.qubes.start(WORK)
    with pytest.raises(NotPausedError):
        await lab.qubes.unpause(WORK)
    await lab.qubes.pause(WORK)
    assert lab.instance(WORK).paused
    assert lab.door.states[WORK] == "Paused"
    await lab.qubes.unpause(WORK)
    assert not lab.instance(WORK).paused
    assert lab.door.states[WORK] == "Running"


async def test_a_paused_qube_can_be_killed(lab: Lab):
    """Its end does not need its help."""
    await lab.qubes.start(WORK)
    await lab.qubes.pause(WORK)
    await lab.qubes.kill(WORK)
    assert lab.untouched(WORK)


async def test_a_waiting_shutdown_returns_when_the_qube_is_really_gone(lab: Lab):
    """Trap 10: its volumes are put away by then."""
    await lab.qubes.start(WORK)
    lab.write(WORK, "note")
    await lab.qubes.shutdown(WORK, wait=True)
    assert lab.untouched(WORK)
    assert lab.read(WORK, "note") == "x"
    assert lab.door.states[WORK] == "Halted"


async def test_a_shutdown_without_wait_is_told_to_the_broker_at_once(lab: Lab):
    """A qube that is going down is no target of calls."""
    lab.engine.obeys = False
    await lab.qubes.start(WORK)
    await lab.qubes.shutdown(WORK)
    assert lab.state(WORK) is PowerState.HALTING
    assert lab.door.states[WORK] == "Halting"


async def test_a_qube_that_ignores_the_shutdown_is_running_again_for_all(lab: Lab):
    """After `shutdown_timeout` the caller hears of it; a kill still ends it."""
    lab.engine.obeys = False
    clock = Clock()
    await lab.qubes.start(WORK)
    asking = asyncio.create_task(lab.qubes.shutdown(WORK, wait=True))
    await until(lambda: lab.state(WORK) is PowerState.HALTING)
    clock.advance(61)
    with pytest.raises(ShutdownTimeoutError):
        await asking
    assert lab.state(WORK) is PowerState.RUNNING
    assert lab.door.states[WORK] == "Running"
    assert "domain-shutdown-failed" in lab.news(WORK)
    await lab.qubes.kill(WORK)
    assert lab.untouched(WORK)


async def test_a_network_qube_is_shut_down_before_its_clients_only_by_force(lab: Lab):
    """A client that is halted does not count; one that starts or pauses does."""
    await lab.network()
    await lab.qubes.start(WORK)
    assert lab.running() == [NET, WORK]
    assert lab.wires.plugged == {(WORK, NET)}
    with pytest.raises(QubeInUseError):
        await lab.qubes.shutdown(NET)
    await lab.qubes.pause(WORK)
    with pytest.raises(QubeInUseError):
        await lab.qubes.shutdown(NET, wait=True)
    await lab.qubes.shutdown(NET, force=True, wait=True)
    assert lab.running() == [WORK]
    await lab.qubes.kill(WORK)
    assert lab.wires.plugged == set()
    await lab.qubes.start(NET)
    await lab.qubes.shutdown(NET, wait=True)
    assert lab.untouched(NET)


async def test_only_a_halted_qube_that_nobody_needs_is_removed(lab: Lab):
    """Running, paused, or the template of another: refused."""
    await lab.qubes.start(WORK)
    with pytest.raises(NotHaltedError):
        await lab.qubes.remove(WORK)
    await lab.qubes.pause(WORK)
    with pytest.raises(NotHaltedError):
        await lab.qubes.remove(WORK)
    with pytest.raises(QubeInUseError):
        await lab.qubes.remove(TEMPLATE)
    await lab.qubes.kill(WORK)
    await lab.qubes.remove(WORK)
    assert WORK not in lab.system.qubes
    assert lab.pool.layers() == lab.known_layers()
    assert WORK not in lab.door.states


async def test_a_qube_that_is_still_shutting_down_is_not_removed(lab: Lab):
    """Its volumes are in use."""
    lab.engine.obeys = False
    await lab.qubes.start(WORK)
    await lab.qubes.shutdown(WORK)
    with pytest.raises(NotHaltedError):
        await lab.qubes.remove(WORK)


async def test_a_start_is_refused_by_the_feature_and_by_a_restore(lab: Lab):
    """Neither says anything about a qube that runs already."""
    qube = lab.system.qube(WORK)
    for change, undo in (
        (
            lab.system.plan_feature(qube, FeatureName("prohibit-start"), "broken"),
            lambda: lab.system.plan_remove_feature(qube, FeatureName("prohibit-start")),
        ),
        (
            lab.system.plan_tag(qube, Tag("backup-restore-in-progress"), DOM0),
            lambda: lab.system.plan_untag(qube, Tag("backup-restore-in-progress"), DOM0),
        ),
    ):
        await lab.qubes.commit(change)
        with pytest.raises(CaissonError):
            await lab.qubes.start(WORK)
        assert lab.untouched(WORK)
        await lab.qubes.commit(undo())
        await lab.qubes.start(WORK)
        await lab.qubes.commit(change)
        await lab.qubes.start(WORK)
        await lab.qubes.kill(WORK)
        await lab.qubes.commit(undo())


async def test_only_a_disposable_can_be_discarded(lab: Lab):
    """The broker's word is not enough to end a lasting qube."""
    await lab.qubes.start(WORK)
    with pytest.raises(PermissionDeniedError):
        await lab.qubes.discard(WORK)
    assert lab.state(WORK) is PowerState.RUNNING


async def test_an_engine_that_cannot_pause_leaves_the_qube_running(lab: Lab):
    """Refused is refused."""
    await lab.qubes.start(WORK)

    async def fail(_instance: object) -> None:
        raise EngineError("no freezer")

    lab.engine.pause = fail  # type: ignore[method-assign]
    with pytest.raises(EngineError):
        await lab.qubes.pause(WORK)
    assert lab.state(WORK) is PowerState.RUNNING
    await lab.qubes.shutdown(WORK, wait=True)
    assert BASE in lab.system.qubes


async def test_a_qube_that_dies_while_it_is_paused_is_halted(lab: Lab):
    """The last word is that of the kernel."""
    await lab.qubes.start(WORK)
    frozen = lab.engine.pause

    async def pause(instance: object) -> None:
        await frozen(instance)  # type: ignore[arg-type]
        lab.instance(WORK).end()
        await until(lambda: lab.state(WORK) is PowerState.HALTED)

    lab.engine.pause = pause  # type: ignore[method-assign]
    with pytest.raises(NotRunningError):
        await lab.qubes.pause(WORK)
    assert lab.untouched(WORK)


async def test_only_a_qube_that_runs_uses_anything(lab: Lab):
    """Paused or not; and nothing again after its end."""
    qube = lab.system.qube(WORK)
    assert (await lab.qubes.usage(qube)).memory == 0
    await lab.qubes.start(WORK)
    assert (await lab.qubes.usage(qube)).memory > 0
    await lab.qubes.pause(WORK)
    assert (await lab.qubes.usage(qube)).cpu_time > 0
    await lab.qubes.kill(WORK)
    assert (await lab.qubes.usage(qube)).memory == 0
    assert (await lab.qubes.usage(lab.system.dom0)).memory == 0
