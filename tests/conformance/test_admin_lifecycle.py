"""Sleep, consoles, and what the admin qube and a RemoteVM answer (section 2.4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon
from test_admin_empty_sets import add_remote

from caisson.admin.registry import Door

MISSING = "QubesNotImplementedError"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with `tpl`, `work`, `base` and a RemoteVM `far`."""
    async with running_daemon(tmp_path) as running:
        await running.populate()
        await add_remote(running)
        yield running


async def internal(daemon: Daemon, method: str) -> bytes:
    """Call a method of the internal socket on the admin qube."""
    return await daemon.send(
        f"internal.{method}+ dom0 name dom0".encode() + b"\0", door=Door.INTERNAL
    )


async def state(daemon: Daemon, name: str) -> str:
    """What a qube is doing."""
    return (await daemon.ok("admin.vm.CurrentState", name)).rpartition("power_state=")[2]


async def test_suspend_is_a_pause_and_resume_its_end(daemon: Daemon) -> None:
    """A container has no state of sleep; clients see the events of both."""
    assert await daemon.refused("admin.vm.Suspend", "work") == "QubesVMNotRunningError"
    assert await daemon.refused("admin.vm.Resume", "work") == "QubesVMNotPausedError"
    await daemon.ok("admin.vm.Start", "work")
    heard = daemon.qubes.events.subscribe()
    assert await daemon.ok("admin.vm.Suspend", "work") == ""
    assert await state(daemon, "work") == "Paused"
    assert await daemon.refused("admin.vm.Suspend", "work") == "QubesVMNotRunningError"
    assert await daemon.ok("admin.vm.Resume", "work") == ""
    assert await state(daemon, "work") == "Running"
    assert await daemon.refused("admin.vm.Resume", "work") == "QubesVMNotPausedError"
    assert [event.name for event in heard._events] == [
        "domain-pre-paused",
        "domain-paused",
        "domain-pre-unpaused",
        "domain-unpaused",
        "domain-resumed",
    ]
    await daemon.ok("admin.vm.Pause", "work")
    assert await daemon.ok("admin.vm.Resume", "work") == ""


async def test_console_says_what_is_missing(daemon: Daemon) -> None:
    """After every other reason to refuse it."""
    assert await daemon.refused("admin.vm.Console", "work") == "QubesVMNotRunningError"
    await daemon.ok("admin.vm.Start", "work")
    assert await daemon.refused("admin.vm.Console", "work") == MISSING
    assert await daemon.refused("admin.vm.Console") == "QubesVMError"
    assert await daemon.refused("admin.vm.Console", "far") == "QubesVMError"


async def test_machine_sleeps_and_exactly_the_same_qubes_go_on(daemon: Daemon) -> None:
    """One that a person paused stays paused; one that ended meanwhile is no error."""
    await daemon.ok("admin.vm.Create.AppVM", payload=b"name=third label=red")
    for name in ("work", "base", "third"):
        await daemon.ok("admin.vm.Start", name)
    await daemon.ok("admin.vm.Pause", "base")
    assert await internal(daemon, "SuspendPre") == b"0\0"
    for name in ("work", "base", "third"):
        assert await state(daemon, name) == "Paused"
    await daemon.ok("admin.vm.Kill", "third")
    assert await internal(daemon, "SuspendPre") == b"0\0"
    assert await internal(daemon, "SuspendPost") == b"0\0"
    assert await state(daemon, "work") == "Running"
    assert await state(daemon, "base") == "Paused"
    assert await state(daemon, "third") == "Halted"
    await daemon.ok("admin.vm.Pause", "work")
    assert await internal(daemon, "SuspendPost") == b"0\0"
    assert await state(daemon, "work") == "Paused"


async def test_what_cannot_be_frozen_does_not_keep_the_others(daemon: Daemon) -> None:
    """The machine goes to sleep anyway."""
    from caisson.engines import Instance  # noqa: PLC0415 - what the engine is asked to pause
    from caisson.errors import EngineError  # noqa: PLC0415

    pause = daemon.engine.pause

    async def stubborn(instance: Instance) -> None:
        if instance.name == "base":
            raise EngineError("no freezer")
        await pause(instance)

    daemon.engine.pause = stubborn  # type: ignore[method-assign]
    for name in ("base", "work"):
        await daemon.ok("admin.vm.Start", name)
    assert await internal(daemon, "SuspendPre") == b"0\0"
    assert (await state(daemon, "base"), await state(daemon, "work")) == ("Running", "Paused")
    assert await internal(daemon, "SuspendPost") == b"0\0"
    assert await state(daemon, "work") == "Running"


@pytest.mark.parametrize("name", ["dom0", "far"])
async def test_qubes_that_always_run(daemon: Daemon, name: str) -> None:
    """Section 2.4: the admin qube and those of other machines are neither started nor stopped."""
    line = await daemon.ok("admin.vm.List", name)
    assert line.count("\n") == 1 or name == "dom0"
    assert "state=Running" in line.splitlines()[0]
    assert await daemon.ok("admin.vm.CurrentState", name) == (
        "mem=0 mem_static_max=0 cputime=0 power_state=Running"
    )
    assert await daemon.refused("admin.vm.Start", name) == "QubesVMNotHaltedError"
    for method in ("Shutdown", "Kill", "Pause", "Unpause", "Suspend", "Resume", "Console"):
        assert await daemon.refused(f"admin.vm.{method}", name) == "QubesVMError", method
    assert await daemon.ok("admin.vm.volume.List", name) == ""


async def test_second_admin_qube_is_refused(daemon: Daemon) -> None:
    """After the payload was found to be well-formed."""
    for method, payload, error in (
        ("Create", b"name=other label=black", "QubesException"),
        ("CreateInPool", b"name=other label=black pool=varlibqubes", "QubesException"),
        ("Create", b"name=other", "ProtocolError"),
    ):
        assert await daemon.refused(f"admin.vm.{method}.AdminVM", payload=payload) == error


async def test_methods_that_create_remote_qubes_exist(daemon: Daemon) -> None:
    """Their payload is checked like that of the others."""
    assert await daemon.refused("admin.vm.Create.RemoteVM", payload=b"name=x") == "ProtocolError"
    payload = b"name=x label=red"
    found = await daemon.refused("admin.vm.CreateInPool.RemoteVM", payload=payload)
    assert found == "ProtocolError"
    found = await daemon.refused("admin.vm.Create.RemoteVM+tpl", payload=payload)
    assert found == "ProtocolError"


async def test_preloading_says_what_is_missing(daemon: Daemon) -> None:
    """Other arguments are still refused as such."""
    assert await daemon.refused("admin.vm.CreateDisposable+preload", "base") == MISSING
    assert await daemon.refused("admin.vm.CreateDisposable+x", "base") == "PermissionDenied"
