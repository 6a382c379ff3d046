"""The life of a qube over the real server (sheet `admin-api`, sections 2.4 and 10)."""

from __future__ import annotations

import asyncio

import pytest
from admin_daemons import daemon, peopled
from admin_lab import REPORT, SOON, Daemon, until

__all__ = ["daemon", "peopled"]


@pytest.mark.parametrize(
    ("method", "payload", "error"),
    [
        ("Create.AppVM", b"name=work label=red", "QubesVMAlreadyExistsError"),
        ("Create.AppVM+nosuch", b"name=new label=red", "QubesVMNotFoundError"),
        ("Create.AppVM", b"name=new label=nosuch", "QubesLabelNotFoundError"),
        ("Create.AppVM", b"name=new label=1", "QubesInvalidLabelError"),
        ("Create.AppVM", b"name=-new label=red", "QubesValueError"),
        ("Create.AppVM", b"name=new", "ProtocolError"),
        ("Create.AppVM", b"name=new label=red label=red", "ProtocolError"),
        ("Create.AppVM", b"name=new label=red pool=layers", "ProtocolError"),
        ("Create.AppVM", b"name=new label=red extra=1", "ProtocolError"),
        ("Create.AppVM", b"name=new  label=red", "ProtocolError"),
        ("Create.AppVM", b"name=n\xc3\xa9 label=red", "ProtocolError"),
        ("Create.AppVM", b"", "ProtocolError"),
        ("Create.TemplateVM+tpl", b"name=new label=red", "ProtocolError"),
        ("Create.AdminVM", b"name=new label=red", "QubesException"),
        ("Create.DispVM+work", b"name=new label=red", "QubesValueError"),
        ("CreateInPool.AppVM", b"name=new label=red pool=nosuch", "QubesException"),
        ("CreateInPool.AppVM", b"name=new label=red", "ProtocolError"),
        ("CreateInPool.AppVM", b"name=new label=red pool=layers pool:root=layers", "ProtocolError"),
    ],
)
async def test_refused_creations_leave_nothing(
    peopled: Daemon, method: str, payload: bytes, error: str
) -> None:
    """Section 2.4."""
    assert await peopled.refused(f"admin.vm.{method}", payload=payload) == error
    assert await peopled.refused("admin.vm.List", "new") == "QubesVMNotFoundError"


async def test_life_of_a_qube(peopled: Daemon) -> None:
    """Traps 8 and 9: what is no error to start twice, and what is to stop twice."""
    await peopled.ok("admin.vm.Start", "work")
    await peopled.ok("admin.vm.Start", "work")
    state = await peopled.ok("admin.vm.CurrentState", "work")
    words = dict(word.split("=") for word in state.split(" "))
    assert list(words) == ["mem", "mem_static_max", "cputime", "power_state"]
    assert words["power_state"] == "Running"
    assert await peopled.refused("admin.vm.Remove", "work") == "QubesVMNotHaltedError"
    await peopled.ok("admin.vm.Pause", "work")
    assert "power_state=Paused" in await peopled.ok("admin.vm.CurrentState", "work")
    assert await peopled.refused("admin.vm.Pause", "work") == "QubesVMNotRunningError"
    assert await peopled.refused("admin.vm.Shutdown", "work") == "QubesVMNotRunningError"
    await peopled.ok("admin.vm.Unpause", "work")
    assert await peopled.refused("admin.vm.Unpause", "work") == "QubesVMNotPausedError"
    assert await peopled.refused("admin.vm.Shutdown+now", "work") == "ProtocolError"
    await peopled.ok("admin.vm.Shutdown+wait", "work")
    assert "state=Halted" in await peopled.ok("admin.vm.List", "work")
    assert await peopled.refused("admin.vm.Shutdown", "work") == "QubesVMNotStartedError"
    assert await peopled.refused("admin.vm.Kill", "work") == "QubesVMNotStartedError"
    await peopled.ok("admin.vm.Remove", "work")
    assert await peopled.refused("admin.vm.List", "work") == "QubesVMNotFoundError"


async def test_admin_qube_is_never_started_or_stopped(daemon: Daemon) -> None:
    """Trap 8: this very error tells clients that the admin qube is there."""
    assert await daemon.refused("admin.vm.Start") == "QubesVMNotHaltedError"
    assert await daemon.refused("admin.vm.Shutdown") == "QubesVMError"
    assert await daemon.refused("admin.vm.Kill") == "QubesVMError"
    assert await daemon.refused("admin.vm.Remove") == "QubesVMInUseError"


async def test_disposable_is_gone_after_its_shutdown(peopled: Daemon) -> None:
    """Trap 10: once `Shutdown+wait` returns, `List` does not tell of it any more."""
    name = await peopled.ok("admin.vm.CreateDisposable", "base")
    assert name.startswith("disp")
    await peopled.ok("admin.vm.Start", name)
    assert "class=DispVM state=Running" in await peopled.ok("admin.vm.List", name)
    await peopled.ok("admin.vm.Shutdown+wait", name)
    assert await peopled.refused("admin.vm.List", name) == "QubesVMNotFoundError"


async def test_disposable_of_the_caller(peopled: Daemon) -> None:
    """Called on the admin qube, the disposable is based on the caller's own default."""
    await peopled.ok("admin.vm.property.Set+default_dispvm", "work", b"base")
    peopled.policy.text = "admin.vm.CreateDisposable * work * allow target=dom0\n"
    reply = await peopled.ask("admin.vm.CreateDisposable", payload=b"uuid", source="work")
    assert reply.startswith(b"0\0uuid:")
    tags = await peopled.ok("admin.vm.tag.List", reply[2:].decode())
    assert {"created-by-work", "disp-created-by-work"} <= set(tags.splitlines())
    assert await peopled.refused("admin.vm.CreateDisposable+x", "base") == "PermissionDenied"
    assert await peopled.refused("admin.vm.CreateDisposable", "base", b"x") == "ProtocolError"


# --- section 10: concurrency ---------------------------------------------------------------


async def test_long_operation_delays_nobody(peopled: Daemon) -> None:
    """Trap 14: one client waits for a shutdown, others go on."""
    peopled.engine.obeys = False
    await peopled.ok("admin.vm.Start", "work")
    waiting = asyncio.create_task(peopled.ask("admin.vm.Shutdown+wait", "work"))
    while "state=Halting" not in await peopled.ok("admin.vm.List", "work"):
        pass
    assert await peopled.ok("admin.label.Index+red") == "1"
    assert not waiting.done()
    await peopled.ok("admin.vm.Kill", "work")
    assert await waiting == b"0\0"


async def test_operation_goes_on_without_its_client(peopled: Daemon) -> None:
    """Section 1.3: a client that disconnects does not cancel what it began."""
    started: list[object] = []
    peopled.engine.on_start = started.append
    _, writer = await peopled.connect()
    writer.write(b"admin.vm.Start+ dom0 name work\0")
    writer.write_eof()
    await until(lambda: started)
    writer.close()
    await writer.wait_closed()
    # A whole other conversation later the agent answers, and the start is brought to its end.
    assert "state=Transient" in await peopled.ok("admin.vm.List", "work")
    instance = started[0]
    peopled.qubes.running.agent_said(instance.name, instance.pid, REPORT)
    async with asyncio.timeout(SOON):
        while "state=Running" not in await peopled.ok("admin.vm.List", "work"):
            pass
