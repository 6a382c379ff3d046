"""Qubes that start with the machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon
from structlog.testing import capture_logs

from caisson.daemons.autostart import first_of_boot, start_all


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon whose `work` starts with the machine; `base` would, but may not start at all."""
    async with running_daemon(tmp_path) as running:
        await running.populate()
        for name in ("work", "base"):
            await running.ok("admin.vm.property.Set+autostart", name, b"True")
        await running.ok("admin.vm.feature.Set+prohibit-start", "base", b"1")
        yield running


async def _state(daemon: Daemon, name: str) -> str:
    return (await daemon.ok("admin.vm.List", name)).split("state=")[1].split()[0]


async def test_qubes_start_with_the_machine(daemon: Daemon) -> None:
    """Those that are set to; one that fails is written down and keeps no other from starting."""
    with capture_logs() as logs:
        await start_all(daemon.qubes)
    assert await _state(daemon, "work") == "Running"
    assert await _state(daemon, "base") == "Halted"
    assert [log["qube"] for log in logs if log["log_level"] == "error"] == ["base"]


async def test_a_qube_that_says_no_is_not_started(daemon: Daemon) -> None:
    """Set to False is as good as not set."""
    await daemon.ok("admin.vm.property.Set+autostart", "work", b"False")
    await start_all(daemon.qubes)
    assert await _state(daemon, "work") == "Halted"


def test_a_second_daemon_of_the_same_boot_starts_nothing(tmp_path: Path) -> None:
    """Else a restart of the daemon would start what a person shut down."""
    boot, marker = tmp_path / "boot", tmp_path / "marker"
    boot.write_text("one")
    assert first_of_boot(marker, boot)
    assert not first_of_boot(marker, boot)
    boot.write_text("two")
    assert first_of_boot(marker, boot)
