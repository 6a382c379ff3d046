"""Volumes and pools, as far as they can be looked at."""

from __future__ import annotations

import asyncio

from caisson.admin.methods.text import listing
from caisson.admin.registry import Call, Scope, Text, To, method
from caisson.errors import PermissionDeniedError
from caisson.model import Klass, Qube, VolumeState
from caisson.model.volumes import LAYERS, POOLS
from caisson.names import VolumeName, shown

_ORDER = ("root", "private", "volatile", "kernel")


@method("admin.vm.volume.List", help="List the volumes of a qube.")
async def list_volumes(call: Call) -> str:
    """List the volumes of a qube."""
    return listing(name for name in _ORDER if VolumeName(name) in call.destination.volumes)


@method("admin.vm.volume.Info", argument=Text.REQUIRED, help="Tell all about a volume.")
async def volume_info(call: Call) -> str:
    """Tell all about a volume, one `key=value` a line, in the order of the sheet."""
    volume = _volume(call)
    return listing(f"{key}={value}" for key, value in (await _facts(call, volume)).items())


@method(
    "admin.vm.volume.ListSnapshots",
    argument=Text.REQUIRED,
    help="List the revisions of a volume, oldest first.",
)
async def list_revisions(call: Call) -> str:
    """List the revisions of a volume, oldest first."""
    return listing(revision.id for revision in _volume(call).revisions)


@method("admin.pool.List", to=To.ADMIN, scope=Scope.GLOBAL, help="List the pools.")
async def list_pools(_call: Call) -> str:
    """List the pools."""
    return listing(POOLS)


@method(
    "admin.pool.Info",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    help="Tell how a pool is set up.",
)
async def pool_info(call: Call) -> str:
    """Tell how a pool is set up, one `key=value` a line, sorted."""
    if call.untrusted_argument not in POOLS:
        raise PermissionDeniedError(f"pool `{shown(call.untrusted_argument)}` does not exist")
    revisions = 1 if call.untrusted_argument == LAYERS else 0
    return listing(
        (
            f"driver={call.untrusted_argument}",
            "ephemeral_volatile=False",
            f"name={call.untrusted_argument}",
            f"revisions_to_keep={revisions}",
        )
    )


def _volume(call: Call) -> VolumeState:
    volume = call.destination.volumes.get(VolumeName(call.untrusted_argument))
    if volume is None:
        raise PermissionDeniedError(
            f"qube `{call.destination.name}` has no volume `{shown(call.untrusted_argument)}`"
        )
    return volume


async def _facts(call: Call, volume: VolumeState) -> dict[str, object]:
    own = [*volume.layers, *([volume.dirty] if volume.dirty else ())]
    return {
        "pool": volume.pool,
        "vid": _vid(call.destination, volume),
        "size": volume.size,
        "usage": await asyncio.to_thread(lambda: sum(map(call.services.layer_usage, own))),
        "rw": volume.rw,
        "source": _source(call, volume),
        "path": "",
        "save_on_stop": volume.save_on_stop,
        "snap_on_start": volume.snap_on_start,
        "revisions_to_keep": volume.revisions_to_keep,
        "ephemeral": False,
        "is_outdated": False,
    }


def _vid(qube: Qube, volume: VolumeState) -> str:
    kind = "vm-templates" if qube.klass is Klass.TEMPLATE else "appvms"
    return f"{kind}/{qube.name}/{volume.name}"


def _source(call: Call, volume: VolumeState) -> str:
    """The volume that a snapshot is taken of: found by walking templates to an original."""
    if not volume.snap_on_start:
        return ""
    for qube in call.qubes.system.template_chain(call.destination):
        origin = qube.volumes.get(volume.name)
        if origin is not None and not origin.snap_on_start:
            return _vid(qube, origin)
    return ""
