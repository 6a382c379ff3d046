"""A daemon with qubes whose volumes are looked at and written to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon

from caisson.admin import Services
from caisson.model import VolumeState
from caisson.names import VolumeName
from caisson.storage import Pool

SIZE = 2 << 30


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with `tpl`, `work`, `base` and `other`, a second AppVM."""
    services = Services(
        layer_usage=lambda layer: Pool(tmp_path / "var/lib/qubes/pool").usage(layer),
        pool_space=lambda name: (1000, 10) if name == "varlibqubes" else None,
    )
    async with running_daemon(tmp_path, services=services) as running:
        await running.populate()
        await running.ok("admin.vm.Create.AppVM", payload=b"name=other label=red")
        yield running


def volume(daemon: Daemon, name: str, of: str = "private") -> VolumeState:
    """What the daemon knows of a volume."""
    return daemon.qubes.system.qube(name).volumes[VolumeName(of)]


async def info(daemon: Daemon, name: str, of: str = "private") -> dict[str, str]:
    """What the daemon tells of a volume."""
    lines = (await daemon.ok(f"admin.vm.volume.Info+{of}", name)).splitlines()
    return dict(line.split("=", 1) for line in lines)


async def write(daemon: Daemon, name: str, file: str, text: str) -> None:
    """Let a qube run once and write a file into its private volume."""
    await daemon.ok("admin.vm.Start", name)
    instance = next(i for i in daemon.engine.running.values() if i.name == name)
    assert instance.spec.private is not None
    assert instance.spec.private.upper is not None
    (daemon.paths.pool / instance.spec.private.upper / "d" / file).write_text(text)
    await daemon.ok("admin.vm.Shutdown+wait", name)


def content(daemon: Daemon, name: str) -> dict[str, str]:
    """The files at the top of a private volume that `write` left."""
    files: dict[str, str] = {}
    for layer in reversed(volume(daemon, name).layers):
        tree = daemon.paths.pool / layer / "d"
        files |= {each.name: each.read_text() for each in tree.iterdir() if each.is_file()}
    return files


def on_disk(daemon: Daemon) -> set[str]:
    """Every layer that is there."""
    return {each.name for each in daemon.paths.pool.iterdir() if not each.name.startswith(".")}


def known(daemon: Daemon) -> set[str]:
    """Every layer that some volume needs."""
    from caisson.storage import layers_of  # noqa: PLC0415 - what it is compared with

    qubes = daemon.qubes.system.qubes.values()
    return layers_of(state for qube in qubes for state in qube.volumes.values())


class News:
    """What listeners of the daemon are told, from now on."""

    def __init__(self, daemon: Daemon) -> None:
        self._heard = daemon.qubes.events.subscribe()

    def take(self) -> list[tuple[str | None, str, list[tuple[str, str]]]]:
        """The events since the last look."""
        events = self._heard.take()
        return [(event.subject, event.name, list(event.kwargs.items())) for event in events]


MACHINE = b"name=machine label=black pool:root=host"
