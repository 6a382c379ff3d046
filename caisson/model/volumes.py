"""Volumes as facts: which layers, which flags (sheet `admin-api`, section 7.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from caisson.errors import CaissonError
from caisson.model.klass import Klass
from caisson.names import PoolName, VolumeName, shown

GIB = 1 << 30
ROOT = VolumeName("root")
PRIVATE = VolumeName("private")
VOLATILE = VolumeName("volatile")
KERNEL = VolumeName("kernel")
LAYERS = PoolName("varlibqubes")
HOST = PoolName("host")
KERNELS = PoolName("linux-kernel")
POOLS = (LAYERS, HOST, KERNELS)


@dataclass(frozen=True, slots=True)
class PoolState:
    """All that is known about one pool.

    Args:
        name: its name.
        driver: what kind of pool it is.
        revisions_to_keep: how many former states a new volume of it keeps.
    """

    name: PoolName
    driver: str
    revisions_to_keep: int = 0


BUILT_IN_POOLS = (
    PoolState(LAYERS, "layers", 1),
    PoolState(HOST, "host"),
    PoolState(KERNELS, "linux-kernel"),
)
"""The pools of a new system; their settings may change, they themselves stay."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A former state of a volume.

    Args:
        id: its name, from `[A-Za-z0-9:_.-]`.
        layers: the stack it consists of, newest first.
        created: seconds since the epoch.
    """

    id: str
    layers: tuple[str, ...]
    created: int


@dataclass(frozen=True, slots=True)
class VolumeState:
    """All that is known about one volume of a qube.

    Args:
        name: `root`, `private`, `volatile` or `kernel`.
        layers: committed immutable layers, newest first.
        dirty: the writable layer while the qube runs, or after a crash.
        revisions: former states, oldest first.
        snap_on_start: starts as a snapshot of its source.
        save_on_stop: what was written is kept at shutdown.
        rw: may be written at all.
        size: bytes it may grow to.
        revisions_to_keep: how many former states stay; -1 disables snapshots.
        pool: where it lives: `varlibqubes` for layers, `host` for the machine's own system
            directories, `linux-kernel` for kernels.
    """

    name: VolumeName
    layers: tuple[str, ...] = ()
    dirty: str | None = None
    revisions: tuple[Revision, ...] = ()
    snap_on_start: bool = False
    save_on_stop: bool = False
    rw: bool = True
    size: int = 0
    revisions_to_keep: int = 1
    pool: PoolName = LAYERS


def _volatile(size: int) -> VolumeState:
    return VolumeState(VOLATILE, size=size, revisions_to_keep=0)


_KERNEL = VolumeState(KERNEL, rw=False, revisions_to_keep=0, pool=KERNELS)
_OWN_ROOT = VolumeState(ROOT, save_on_stop=True, size=10 * GIB)
_OWN_PRIVATE = VolumeState(PRIVATE, save_on_stop=True, size=2 * GIB)
_BORROWED_ROOT = VolumeState(ROOT, snap_on_start=True, size=10 * GIB, revisions_to_keep=0)
_BORROWED_PRIVATE = VolumeState(PRIVATE, snap_on_start=True, size=2 * GIB, revisions_to_keep=0)

INITIAL_VOLUMES: dict[Klass, tuple[VolumeState, ...]] = {
    Klass.ADMIN: (),
    Klass.TEMPLATE: (_OWN_ROOT, _OWN_PRIVATE, _volatile(10 * GIB), _KERNEL),
    Klass.STANDALONE: (_OWN_ROOT, _OWN_PRIVATE, _volatile(10 * GIB), _KERNEL),
    Klass.APP: (_BORROWED_ROOT, _OWN_PRIVATE, _volatile(10 * GIB), _KERNEL),
    Klass.DISPOSABLE: (_BORROWED_ROOT, _BORROWED_PRIVATE, _volatile(12 * GIB), _KERNEL),
    Klass.REMOTE: (),
}
"""What a new qube of each class has."""


def fitting(name: VolumeName) -> tuple[PoolName, ...]:
    """The pools that can hold a volume of that name."""
    if name == KERNEL:
        return (KERNELS,)
    return (LAYERS, HOST) if name == ROOT else (LAYERS,)


def placed(volume: VolumeState, pool: PoolName, pools: Mapping[PoolName, PoolState]) -> VolumeState:
    """An initial volume, moved to the pool that was asked for, with what that pool prescribes.

    Args:
        volume: as its class has it.
        pool: the name of the pool.
        pools: all that there are.

    Raises:
        CaissonError: there is no such pool, or it cannot hold the volume.
    """
    if pool not in pools:
        raise CaissonError(f"no pool `{shown(pool)}`", hint="use one of: " + ", ".join(pools))
    if pool != volume.pool and volume.snap_on_start:
        raise CaissonError(
            f"volume `{volume.name}` is a snapshot, it lives in the pool of its source",
            hint="leave out its pool",
        )
    if pool not in fitting(volume.name):
        raise CaissonError(
            f"pool `{pool}` cannot hold the volume `{volume.name}`",
            hint="use one of: " + ", ".join(fitting(volume.name)),
        )
    # What is not kept has no former states.
    kept = pools[pool].revisions_to_keep if volume.save_on_stop else 0
    return replace(volume, pool=pool, revisions_to_keep=kept)


def sized(volume: VolumeState, source: VolumeState | None) -> VolumeState:
    """An initial volume; a snapshot is as large as its source."""
    if not volume.snap_on_start or source is None:
        return volume
    return replace(volume, size=source.size)
