"""The extension that keeps services and properties in step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with a few qubes."""
    async with running_daemon(tmp_path) as running:
        await running.populate()
        yield running


async def _property(daemon: Daemon, name: str) -> str:
    return (await daemon.ok(f"admin.vm.property.Get+{name}", "work")).split(" ", 2)[2]


async def test_meminfo_writer_is_a_way_to_say_maxmem(daemon: Daemon) -> None:
    """Section 6: `service.meminfo-writer` is translated and never stored, nor told of."""
    before = await _property(daemon, "maxmem")
    with daemon.qubes.events.subscribe() as heard:
        await daemon.ok("admin.vm.feature.Set+service.meminfo-writer", "work", b"")
        assert await _property(daemon, "maxmem") == "0"
        await daemon.ok("admin.vm.feature.Set+service.meminfo-writer", "work", b"1")
        assert await _property(daemon, "maxmem") == before
        names = [event.name for event in heard._events]
    assert names == [
        "property-pre-set:maxmem",
        "property-set:maxmem",
        "property-pre-reset:maxmem",
        "property-pre-del:maxmem",
        "property-reset:maxmem",
        "property-del:maxmem",
    ]
    assert await daemon.ok("admin.vm.feature.List", "work") == ""


async def test_clock_feature_follows_the_clock_qube(daemon: Daemon) -> None:
    """Section 5.3: `service.clocksync` is on where `clockvm` says."""
    await daemon.ok("admin.property.Set+clockvm", payload=b"work")
    assert await daemon.ok("admin.vm.feature.List", "work") == "service.clocksync\n"
    await daemon.ok("admin.property.Set+clockvm", payload=b"base")
    assert await daemon.ok("admin.vm.feature.List", "work") == ""
    assert await daemon.ok("admin.vm.feature.Get+service.clocksync", "base") == "1"
    await daemon.ok("admin.property.Reset+clockvm")
    assert await daemon.ok("admin.vm.feature.List", "base") == ""
