"""A large system for the benchmark, as a person's would be: written into the database directly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

from caisson.model import Change, Host, Klass, Qube, System
from caisson.model.changes import SetVolume
from caisson.model.volumes import PRIVATE, ROOT, Revision, VolumeState
from caisson.names import DOM0
from caisson.paths import SHIPPED_POLICY, Paths
from caisson.store import Store

_TEMPLATES = ("debian", "fedora", "whonix")
_LABELS = ("red", "orange", "yellow", "green", "gray", "blue", "purple", "black")
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


class _Author:
    """Plans changes as the daemon does, and keeps their operations for the store."""

    def __init__(self, pool: Path) -> None:
        self.system = System(Host(memory=16_000, cpus=4))
        self._changes: list[Change] = []
        self._pool = pool
        self._layers = count()

    def keep(self, path: Path) -> None:
        """Write everything to the database, at once."""
        with Store.open(path) as store:
            store.write(op for change in self._changes for op in change.ops)

    def do(self, change: Change) -> None:
        """Take a change in."""
        self.system.apply(change)
        self._changes.append(change)

    def create(
        self, klass: Klass, name: str, label: str, template: str | None = None, **properties: str
    ) -> Qube:
        """Make a qube whose own volumes have layers on disk, as they have once they were used."""
        self.do(self.system.plan_create(klass, name, label, template, DOM0))
        qube = self.system.qube(name)
        for volume in tuple(qube.volumes.values()):
            if volume.save_on_stop and volume.name in {ROOT, PRIVATE}:
                self.do(Change(ops=(SetVolume(qube.uuid, self._used(volume)),)))
        for key, value in properties.items():
            self.set(qube, key, value)
        return qube

    def set(self, owner: Qube | None, name: str, value: str) -> None:
        """Set a property."""
        self.do(self.system.plan_set(owner, name, value, lambda _: False))

    def _used(self, volume: VolumeState) -> VolumeState:
        first, second = self._layer(), self._layer()
        former = Revision("1700000000-before", (first,), 1_700_000_000)
        return replace(volume, layers=(second, first), revisions=(former,))

    def _layer(self) -> str:
        number = next(self._layers)
        name = "".join(_BASE32[number >> shift & 31] for shift in range(35, -1, -5))
        (self._pool / name / "d").mkdir(parents=True)
        return name


def build(root: Path, qubes: int) -> None:
    """Lay down an instance with that many qubes, the admin qube included.

    Templates, a chain of network qubes, and AppVMs with a few stored properties, three to five
    features and three tags each.
    """
    paths = Paths(root)
    policy = root / "etc/qubes/policy.d"
    shutil.copytree(SHIPPED_POLICY, policy)
    author = _Author(paths.pool)
    for template in _TEMPLATES:
        author.create(Klass.TEMPLATE, template, "black")
    author.set(None, "default_template", _TEMPLATES[0])
    author.create(Klass.APP, "sys-net", "red", provides_network="True", netvm="")
    author.create(Klass.APP, "sys-firewall", "red", provides_network="True", netvm="sys-net")
    author.create(Klass.APP, "sys-vpn", "orange", provides_network="True", netvm="sys-firewall")
    author.set(None, "default_netvm", "sys-firewall")
    author.create(Klass.APP, "default-dvm", "red", template_for_dispvms="True")
    author.set(None, "default_dispvm", "default-dvm")
    for number in range(len(author.system.qubes), qubes):
        _furnish(author, number)
    author.keep(paths.database)


def _furnish(author: _Author, number: int) -> None:
    label, template = _LABELS[number % 8], _TEMPLATES[number % 3]
    klass = Klass.STANDALONE if number % 50 == 0 else Klass.APP
    qube = author.create(
        klass, f"qube-{number}", label, template if klass is Klass.APP else None,
        memory=str(400 + number % 7 * 100), vcpus=str(1 + number % 4),
    )  # fmt: skip
    if number % 3 == 0:
        author.set(qube, "netvm", ("sys-vpn", "")[number % 2])
    if number % 10 == 0:
        author.set(qube, "shutdown_timeout", "120")
    features = {
        "service.cups": "1", "menu-items": "firefox.desktop thunderbird.desktop", "os": "Linux",
        "last-update": str(1_700_000_000 + number), "gui": "1",
    }  # fmt: skip
    for name, value in tuple(features.items())[: 3 + number % 3]:
        author.do(author.system.plan_feature(qube, name, value))
    for tag in (f"team-{number % 100}", f"project-{number % 1000}"):  # and `created-by-dom0`
        author.do(author.system.plan_tag(qube, tag, DOM0))
