"""Plans for the settings of volumes and pools (sections 2.5, 2.6, 7.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from caisson.errors import (
    NotHaltedError,
    NotImplementedHereError,
    PermissionDeniedError,
    ProtocolError,
    StorageError,
    ValueRefusedError,
)
from caisson.model.changes import Change, SetPool, SetVolume
from caisson.model.facts import Facts
from caisson.model.klass import Klass
from caisson.model.property import render
from caisson.model.qube import Qube
from caisson.model.volumes import KERNEL, LAYERS, PoolState, VolumeState
from caisson.names import PoolName, VolumeName, shown

Halted = Callable[[Qube], bool]
NO_SNAPSHOTS = -1
"""As a number of revisions: no former states, and no copy of a running qube's volume either."""


class StoragePlans(Facts):
    """What is known of volumes and pools, and which of their settings may change."""

    def volume(self, qube: Qube, untrusted_name: str) -> VolumeState:
        """The volume of a qube.

        Raises:
            PermissionDeniedError: it has none of that name.
        """
        volume = qube.volumes.get(VolumeName(untrusted_name))
        if volume is None:
            raise PermissionDeniedError(
                f"qube `{qube.name}` has no volume `{shown(untrusted_name)}`",
                hint=f"list them: `qvm-volume list {qube.name}`" if qube.volumes else None,
            )
        return volume

    def source_of(self, qube: Qube, volume: VolumeState) -> tuple[Qube, VolumeState] | None:
        """Where a volume takes its content from: itself, or by walking templates to an original.

        Returns:
            None where the chain does not end in one.
        """
        for link in self.template_chain(qube):
            found = link.volumes.get(volume.name)
            if found is None:
                return None
            if not found.snap_on_start:
                return link, found
        return None

    def size_of(self, qube: Qube, volume: VolumeState) -> int:
        """The size of a volume; a borrowed one follows its source."""
        source = self.source_of(qube, volume)
        return volume.size if source is None else source[1].size

    def volume_id(self, qube: Qube, volume: VolumeState) -> str:
        """The name of a volume within its pool."""
        if volume.name == KERNEL:
            return render(self.value(qube, "kernel"))
        kind = "vm-templates" if qube.klass is Klass.TEMPLATE else "appvms"
        return f"{kind}/{qube.name}/{volume.name}"

    def volumes_in(self, pool: PoolName) -> Iterator[tuple[Qube, VolumeState]]:
        """Every volume that lives in a pool."""
        for qube in self.qubes.values():
            for volume in qube.volumes.values():
                if volume.pool == pool:
                    yield qube, volume

    def pool(self, untrusted_name: str) -> PoolState:
        """The pool of that name.

        Raises:
            PermissionDeniedError: there is none.
        """
        pool = self.pools.get(PoolName(untrusted_name))
        if pool is None:
            raise PermissionDeniedError(
                f"no pool `{shown(untrusted_name)}`", hint="list them: `qvm-pool list`"
            )
        return pool

    def plan_resize(self, qube: Qube, volume: VolumeState, size: int) -> Change:
        """Plan another size, in bytes.

        Raises:
            StorageError: the volume cannot be written or is a snapshot, or it would shrink.
        """
        if volume.snap_on_start:
            raise StorageError(
                f"volume `{volume.name}` is a snapshot, it has the size of its source",
                hint="resize the volume of its template",
            )
        if not volume.rw or volume.pool != LAYERS:
            raise StorageError(f"volume `{volume.name}` is read-only, it has no size of its own")
        if size < volume.size:
            raise StorageError(
                f"volume `{volume.name}` cannot shrink from {volume.size} to {size} bytes",
                hint="give at least its present size",
            )
        return self._stored(qube, volume, replace(volume, size=size))

    def plan_writable(self, qube: Qube, volume: VolumeState, rw: bool, halted: Halted) -> Change:
        """Plan whether a qube may write to a volume.

        Raises:
            StorageError: that is fixed.
            NotHaltedError: the qube is not halted, or its last run was not put away.
        """
        if volume.pool != LAYERS and not volume.snap_on_start:
            raise StorageError(f"volume `{volume.name}` lives in `{volume.pool}`: that is fixed")
        # Writes that wait to be committed must not become writes that are thrown away.
        if not halted(qube) or volume.dirty is not None:
            raise _not_halted(qube)
        return self._stored(qube, volume, replace(volume, rw=rw))

    def plan_revisions(
        self, qube: Qube, volume: VolumeState, number: int, halted: Halted
    ) -> Change:
        """Plan how many former states of a volume stay, from its next commit on; see 7.2 for -1.

        Raises:
            ValueRefusedError: less than -1.
            StorageError: that is fixed.
            NotHaltedError: snapshots are switched on or off, and the qube or a disposable of it
                is not halted.
        """
        if number < NO_SNAPSHOTS:
            raise ValueRefusedError(
                f"`{number}` is no number of revisions", hint="use `-1` or more"
            )
        if volume.pool != LAYERS and not volume.snap_on_start:
            if number == volume.revisions_to_keep:
                return Change()
            raise StorageError(
                f"volume `{volume.name}` lives in `{volume.pool}`, which keeps no former states"
            )
        if (number == NO_SNAPSHOTS) != (volume.revisions_to_keep == NO_SNAPSHOTS):
            for each in (qube, *self._disposables_of(qube)):
                if not halted(each):
                    raise _not_halted(each)
        return self._stored(qube, volume, replace(volume, revisions_to_keep=number))

    def plan_ephemeral(self, volume: VolumeState, ephemeral: bool) -> Change:
        """Plan whether a volume is encrypted with a key that is thrown away.

        Raises:
            ValueRefusedError: its content is not thrown away anyway.
            NotImplementedHereError: nothing encrypts volumes here.
        """
        if not ephemeral:
            return Change()
        if not volume.rw or volume.snap_on_start or volume.save_on_stop or volume.pool != LAYERS:
            raise ValueRefusedError(
                f"volume `{volume.name}` cannot be ephemeral",
                hint="only `volatile` can: it is writable and empty at each start",
            )
        raise no_encryption()

    def plan_pool_revisions(self, pool: PoolState, number: int) -> Change:
        """Plan how many former states new volumes of a pool keep.

        Raises:
            ProtocolError: less than -1.
            StorageError: the pool keeps none.
        """
        if number < NO_SNAPSHOTS:
            raise ProtocolError(f"`{number}` is no number of revisions", hint="use `-1` or more")
        if number == pool.revisions_to_keep:
            return Change()
        if pool.name != LAYERS:
            raise StorageError(f"pool `{pool.name}` keeps no former states")
        return Change((SetPool(pool.name, number),))

    def _disposables_of(self, qube: Qube) -> Iterator[Qube]:
        for user, name in self.users_of(qube):
            if user is not None and user.klass is Klass.DISPOSABLE and name == "template":
                yield user

    def _stored(self, qube: Qube, before: VolumeState, after: VolumeState) -> Change:
        return Change() if after == before else Change((SetVolume(qube.uuid, after),))


def no_encryption() -> NotImplementedHereError:
    """The refusal of ephemeral volumes."""
    return NotImplementedHereError(
        "ephemeral volumes are not available: volumes are not encrypted here",
        hint="encrypt the disk that holds the pool",
    )


def _not_halted(qube: Qube) -> NotHaltedError:
    return NotHaltedError(
        f"qube `{qube.name}` is not halted",
        hint=f"shut it down first: `qvm-shutdown --wait {qube.name}`",
    )
