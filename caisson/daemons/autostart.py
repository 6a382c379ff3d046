"""Qubes that start with the machine: once a boot, whoever starts the daemon how often."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from caisson.errors import CaissonError
from caisson.lifecycle import Qubes
from caisson.names import PropertyName, QubeName

_AT_ONCE = 4
_AUTOSTART = PropertyName("autostart")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger("qubesd")


def first_of_boot(marker: Path, boot_id: Path = _BOOT_ID) -> bool:
    """Whether this is asked for the first time since the machine started.

    Args:
        marker: remembers the boot; written before anything starts, so that a qube which takes the
            daemon down is not started again and again.
        boot_id: names the present boot.
    """
    boot = boot_id.read_text()
    if marker.exists() and marker.read_text() == boot:
        return False
    marker.write_text(boot)
    return True


async def start_all(qubes: Qubes) -> None:
    """Start every qube whose property `autostart` is set.

    Network qubes start as their clients need them. One that fails keeps no other from starting.
    """
    wanted = [qube.name for qube in qubes.system.qubes.values() if _AUTOSTART in qube.stored]
    few = asyncio.Semaphore(_AT_ONCE)

    async def start(name: QubeName) -> None:
        async with few:
            try:
                if qubes.system.value(qubes.system.qube(name), _AUTOSTART):
                    await qubes.start(name)
            except CaissonError as error:
                _log.error("a qube did not start with the machine", qube=name, error=str(error))

    async with asyncio.TaskGroup() as group:
        for name in wanted:
            group.create_task(start(name))
