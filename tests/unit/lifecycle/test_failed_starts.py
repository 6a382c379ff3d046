"""A start that fails at any step leaves nothing half done, and the qube can start again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable

import pytest
from lifecycle_lab import NET, WORK, Clock, Lab, report, until

from caisson.engines.memory import MemoryInstance
from caisson.errors import CaissonError, DaemonError, EngineError, NetworkError, StorageError
from caisson.model import PowerState


async def starts_again(lab: Lab) -> None:
    """Nothing is left of the failed start, and the next one works."""
    await lab.settle()
    assert lab.untouched(WORK)
    assert "domain-start-failed" in lab.news(WORK)
    lab.engine.fail_start = None
    lab.engine.on_start = lab.play_agent
    lab.report = report()
    await lab.qubes.start(WORK)
    lab.write(WORK, "note")
    await lab.qubes.shutdown(WORK, wait=True)
    assert lab.untouched(WORK)
    assert lab.read(WORK, "note") == "x"


@pytest.mark.parametrize("mode", ["hvm", "pvh", "pv"])
async def test_the_machine_has_no_engine_for_the_wall(lab: Lab, mode: str):
    """A qube that is to be a virtual machine must not run as a container, and be called one."""
    lab.set(WORK, "virt_mode", mode)
    with pytest.raises(EngineError, match=f"`{mode}`"):
        await lab.qubes.start(WORK)
    lab.set(WORK, "virt_mode", "container")
    await starts_again(lab)


async def test_a_running_qube_is_told_by_the_wall_that_it_has(lab: Lab):
    """Whatever its properties say by now."""
    await lab.qubes.start(WORK)
    lab.set(WORK, "virt_mode", "hvm")
    qube = lab.system.qube(WORK)
    assert lab.system.info_of(qube, PowerState.RUNNING)["isolation"] == "container"
    await lab.qubes.shutdown(WORK, wait=True)
    assert lab.system.info_of(qube, PowerState.HALTED)["isolation"] == "virtual machine"


async def test_the_engine_fails(lab: Lab):
    """Its error reaches the caller as it is."""
    lab.engine.fail_start = EngineError("no runtime", hint="install one")
    with pytest.raises(EngineError, match="no runtime"):
        await lab.qubes.start(WORK)
    await starts_again(lab)


async def test_the_door_does_not_open(lab: Lab):
    """Without a broker no qube runs."""
    lab.door.fail_open = DaemonError("no broker")
    with pytest.raises(DaemonError):
        await lab.qubes.start(WORK)
    lab.door.fail_open = None
    await starts_again(lab)


async def test_the_store_is_full(lab: Lab):
    """The layers that were laid out for it are erased."""
    lab.refuse_writes()
    with pytest.raises(StorageError):
        await lab.qubes.start(WORK)
    lab.refuse_writes(really=False)
    await starts_again(lab)


async def test_the_disk_is_full(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    """The second of two layers cannot be made."""
    made = lab.pool.new_layer
    count = 0

    def new_layer(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        if count == 2:
            raise StorageError(f"cannot make a layer: {errno.ENOSPC}")
        return made(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lab.pool, "new_layer", new_layer)
    with pytest.raises(StorageError):
        await lab.qubes.start(WORK)
    await starts_again(lab)


async def test_the_agent_never_reports(lab: Lab):
    """After `qrexec_timeout` the qube is ended."""
    lab.engine.on_start = None
    clock = Clock()
    starting = asyncio.create_task(lab.qubes.start(WORK))
    await until(lambda: WORK in lab.running())
    await lab.settle()
    clock.advance(59)
    await lab.settle()
    assert lab.state(WORK) is PowerState.TRANSIENT
    clock.advance(2)
    with pytest.raises(EngineError, match="did not answer within 60 s"):
        await starting
    assert WORK not in lab.door.admitted
    await starts_again(lab)


@pytest.mark.parametrize("barrier", ["seccomp", "network", "user-namespace"])
async def test_a_barrier_is_down(lab: Lab, barrier: str):
    """The error names it; nothing is admitted."""
    lab.report = report(barrier)
    with pytest.raises(EngineError, match=barrier):
        await lab.qubes.start(WORK)
    assert lab.door.admitted == []
    await starts_again(lab)


@pytest.mark.parametrize("said", [{}, {"barriers": None}, {"barriers": {"seccomp": True}}])
async def test_a_report_that_makes_no_sense_is_a_barrier_down(lab: Lab, said: dict[str, object]):
    """What is not reported is not up."""
    lab.report = said
    with pytest.raises(EngineError, match="not reported"):
        await lab.qubes.start(WORK)
    await starts_again(lab)


async def test_a_second_report_does_not_mend_the_first(lab: Lab):
    """The first word counts until the start is over."""

    def lie(instance: MemoryInstance) -> None:
        said = lab.qubes.running.agent_said
        loop = asyncio.get_running_loop()
        loop.call_soon(said, instance.name, instance.pid, report("seccomp"))
        loop.call_soon(said, instance.name, instance.pid, report())

    lab.engine.on_start = lie
    with pytest.raises(EngineError, match="seccomp"):
        await lab.qubes.start(WORK)
    assert lab.door.admitted == []
    await starts_again(lab)


async def test_a_process_that_is_not_the_first_speaks_for_nobody(lab: Lab):
    """Its report, however good, is rejected; that of the first counts, whoever came earlier."""

    def both(instance: MemoryInstance) -> None:
        # The engine has not returned yet: nobody knows which of them is the first.
        lab.qubes.running.agent_said(instance.name, instance.pid + 1, report())
        lab.qubes.running.agent_said(instance.name, instance.pid, report("seccomp"))

    lab.engine.on_start = both
    with pytest.raises(EngineError, match="seccomp"):
        await lab.qubes.start(WORK)
    assert len(lab.door.rejected) == 1
    await starts_again(lab)


async def test_the_qube_ends_while_it_comes_up(lab: Lab):
    """It is no success, even if the agent had reported."""
    for end in (lambda i: i.end(), lambda i: (lab.play_agent(i), i.end())):
        lab.engine.on_start = end
        with pytest.raises(EngineError, match="ended while it came up"):
            await lab.qubes.start(WORK)
        await starts_again(lab)


async def test_the_qube_ends_just_when_it_is_up(lab: Lab):
    """Whatever the start says, it is neither stuck running nor stuck dying."""

    def end_soon(turns: int) -> Callable[[MemoryInstance], None]:
        def play(instance: MemoryInstance) -> None:
            lab.play_agent(instance)
            loop = asyncio.get_running_loop()

            def turn(left: int) -> None:
                if left:
                    loop.call_soon(turn, left - 1)
                else:
                    instance.end()

            turn(turns)

        return play

    for turns in range(14):
        lab.engine.on_start = end_soon(turns)
        with contextlib.suppress(EngineError):
            await lab.qubes.start(WORK)
        await until(lambda: lab.state(WORK) is PowerState.HALTED)
        await lab.settle()
        assert lab.untouched(WORK)


async def test_the_link_cannot_be_made(lab: Lab):
    """The network qube stays up; it is no fault of it."""
    await lab.network()
    lab.wires.fail_plug = True
    with pytest.raises(NetworkError):
        await lab.qubes.start(WORK)
    assert lab.running() == [NET]
    lab.wires.fail_plug = False
    await starts_again(lab)


async def test_the_network_qube_does_not_start(lab: Lab):
    """The client says why, and is halted."""
    await lab.network()
    lab.engine.fail_start = EngineError("no runtime")
    with pytest.raises(EngineError, match="no runtime"):
        await lab.qubes.start(WORK)
    assert lab.untouched(NET)
    await starts_again(lab)


async def test_a_kill_ends_a_start(lab: Lab):
    """The start fails, the kill succeeds."""
    lab.engine.on_start = None
    starting = asyncio.create_task(lab.qubes.start(WORK))
    await until(lambda: WORK in lab.running())
    await lab.settle()
    await lab.qubes.kill(WORK)
    with pytest.raises(EngineError):
        await starting
    await starts_again(lab)


async def test_a_qube_that_cannot_be_killed_is_put_away_when_it_ends(lab: Lab):
    """A start that failed reports its own error, and the rest is caught up with."""
    lab.report = report("seccomp")
    kill = lab.engine.kill

    async def fail(_instance: object) -> None:
        raise EngineError("a process hangs in the kernel")

    lab.engine.kill = fail  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="seccomp"):
        await lab.qubes.start(WORK)
    assert lab.state(WORK) is PowerState.DYING
    with pytest.raises(CaissonError):
        await lab.qubes.remove(WORK)
    lab.engine.kill = kill  # type: ignore[method-assign]
    lab.instance(WORK).end()
    await until(lambda: lab.state(WORK) is PowerState.HALTED)
    await starts_again(lab)


async def test_what_a_full_store_kept_from_being_committed_is_committed_by_the_next_start(lab: Lab):
    """No write of the qube is lost, and no restart of the daemon is needed."""
    await lab.qubes.start(WORK)
    lab.write(WORK, "first")
    lab.refuse_writes()
    await lab.qubes.shutdown(WORK, wait=True)
    assert lab.state(WORK) is PowerState.HALTED
    assert lab.dirty(WORK) != []
    with pytest.raises(StorageError):
        await lab.qubes.start(WORK)
    lab.refuse_writes(really=False)
    lab.news()
    await lab.qubes.start(WORK)
    lab.write(WORK, "second")
    await lab.qubes.shutdown(WORK, wait=True)
    assert lab.untouched(WORK)
    assert (lab.read(WORK, "first"), lab.read(WORK, "second")) == ("x", "x")
