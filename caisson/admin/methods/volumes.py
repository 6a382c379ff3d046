"""Volumes of qubes (specification sheet, sections 2.5, 7.2 and 7.3)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import copy_context

from caisson.admin.methods.payloads import boolean, integer, natural
from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Scope, Text, method
from caisson.errors import (
    NotHaltedError,
    NotImplementedHereError,
    ProtocolError,
    QubeNotFoundError,
)
from caisson.ext import Question
from caisson.model import Change, PowerState, Qube, VolumeState
from caisson.names import VolumeName, shown
from caisson.storage import require_own

_ORDER = ("root", "private", "volatile", "kernel")
_REVISION = re.compile(r"[A-Za-z0-9:_.-]+")
_SIZE_LINE = re.compile(rb"[0-9]{1,19}\n")


@method("admin.vm.volume.List", help="List the volumes of a qube.")
async def list_volumes(call: Call) -> str:
    """List the volumes of a qube."""
    return listing(name for name in _ORDER if VolumeName(name) in call.destination.volumes)


@method("admin.vm.volume.Info", argument=Text.REQUIRED, help="Tell all about a volume.")
async def volume_info(call: Call) -> str:
    """Tell all about a volume, one `key=value` a line, in the order of the sheet."""
    return listing(f"{key}={value}" for key, value in (await _facts(call, _volume(call))).items())


@method(
    "admin.vm.volume.ListSnapshots",
    argument=Text.REQUIRED,
    help="List the revisions of a volume, oldest first.",
)
async def list_revisions(call: Call) -> str:
    """List the revisions of a volume, oldest first."""
    return listing(revision.id for revision in _volume(call).revisions)


@method(
    "admin.vm.volume.Revert",
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    access=Access.WRITE,
    help="Let a volume of a halted qube be what it was; the payload names the revision.",
)
async def revert(call: Call) -> None:
    """Go back to a revision."""
    volume = _volume(call)
    untrusted_revision = call.untrusted_text
    if not _REVISION.fullmatch(untrusted_revision):
        raise ProtocolError(
            f"revision `{shown(untrusted_revision)}` is not valid",
            hint="use letters, digits, `:`, `_`, `.` and `-`",
        )
    await call.qubes.volumes.revert(call.destination, volume.name, untrusted_revision, call.commit)


@method(
    "admin.vm.volume.Resize",
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    access=Access.WRITE,
    help="Let a volume grow to a size in bytes. Sizes are stored and shown, not enforced yet.",
)
async def resize(call: Call) -> None:
    """Let a volume grow."""
    volume = _volume(call)
    size = natural(call)
    await call.commit(call.qubes.system.plan_resize(call.destination, volume, size))


@method(
    "admin.vm.volume.Clear",
    argument=Text.REQUIRED,
    access=Access.WRITE,
    help="Empty a volume of a halted qube; what was in it becomes a revision.",
)
async def clear(call: Call) -> None:
    """Empty a volume."""
    await call.qubes.volumes.clear(call.destination, _volume(call).name, call.commit)


@method(
    "admin.vm.volume.CloneFrom",
    argument=Text.REQUIRED,
    access=Access.WRITE,
    help="Begin to copy a volume; tell a token for `admin.vm.volume.CloneTo`, good for one use "
    "within 10 minutes.",
)
async def clone_from(call: Call) -> str:
    """Hand out a token for a copy."""
    return call.services.copies.issue(call.origin, (call.destination, _volume(call).name))


@method(
    "admin.vm.volume.CloneTo",
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    access=Access.WRITE,
    help="Overwrite a volume of a halted qube with the one that the token in the payload is for; "
    "the right to `admin.vm.volume.CloneFrom` is needed anew.",
)
async def clone_to(call: Call) -> None:
    """Finish a copy; the token is used up whatever comes of it.

    What is copied is what the source is now, so that the right to it must still be there.
    """
    volume = _volume(call)
    source, name = call.services.copies.redeem(call.origin, call.untrusted_text.strip())
    if call.qubes.system.qubes.get(source.name) is not source:
        raise QubeNotFoundError(f"qube `{source.name}` does not exist any more")
    begun = Question(call.origin, "admin.vm.volume.CloneFrom", source, name)

    async def commit(change: Change) -> None:
        # In a context of its own: what was agreed to is this call, not that one.
        copy_context().run(call.extensions.ask, begun)
        await call.commit(change)

    await call.qubes.volumes.clone((source, name), (call.destination, volume.name), commit)


@method(
    "admin.vm.volume.Set.revisions_to_keep",
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    access=Access.WRITE,
    help="Set how many revisions of a volume stay, from its next one on; -1 allows no snapshots.",
)
async def set_revisions(call: Call) -> None:
    """Set how many revisions stay."""
    volume = _volume(call)
    number = integer(call)
    system = call.qubes.system
    await call.commit(system.plan_revisions(call.destination, volume, number, _halted(call)))


@method(
    "admin.vm.volume.Set.rw",
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    access=Access.WRITE,
    help="Set whether a halted qube may write to a volume.",
)
async def set_writable(call: Call) -> None:
    """Set whether a volume can be written."""
    volume = _volume(call)
    rw = boolean(call)
    system = call.qubes.system
    await call.commit(system.plan_writable(call.destination, volume, rw, _halted(call)))


@method(
    "admin.vm.volume.Set.ephemeral",
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    access=Access.WRITE,
    help="Set whether a volume is encrypted with a key that is thrown away; not available here.",
)
async def set_ephemeral(call: Call) -> None:
    """Accept that a volume is not ephemeral."""
    volume = _volume(call)
    await call.commit(call.qubes.system.plan_ephemeral(volume, boolean(call)))


@method(
    "admin.vm.volume.Import",
    argument=Text.REQUIRED,
    payload=Text.OPTIONAL,
    access=Access.WRITE,
    help="Overwrite a volume of a halted qube with a stream of data; not available yet.",
)
async def import_data(call: Call) -> None:
    """Refuse an import, after what would refuse it anyway."""
    _refuse_import(call, _volume(call))


@method(
    "admin.vm.volume.ImportWithSize",
    argument=Text.REQUIRED,
    payload=Text.OPTIONAL,
    access=Access.WRITE,
    help="Overwrite a volume of a halted qube with a line of its size and data; not available yet.",
)
async def import_data_with_size(call: Call) -> None:
    """Refuse an import, after what would refuse it anyway."""
    volume = _volume(call)
    if call.untrusted_payload and not _SIZE_LINE.match(call.untrusted_payload):
        raise ProtocolError("the payload does not begin with a line of its size")
    _refuse_import(call, volume)


@method(
    "internal.vm.volume.ImportBegin",
    argument=Text.REQUIRED,
    payload=Text.OPTIONAL,
    scope=Scope.INTERNAL,
    access=Access.WRITE,
    help="Begin an import: tell the size and a path to copy to; not available yet.",
)
async def import_begin(call: Call) -> None:
    """Refuse an import, after what would refuse it anyway."""
    volume = call.destination.volumes.get(VolumeName(call.untrusted_argument))
    if volume is None:
        raise ProtocolError(
            f"qube `{call.destination.name}` has no volume `{shown(call.untrusted_argument)}`"
        )
    if call.untrusted_payload:
        natural(call)
    _refuse_import(call, volume)


@method(
    "internal.vm.volume.ImportEnd",
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.INTERNAL,
    access=Access.WRITE,
    help="End an import: the payload is `ok`, or `fail` and a message; not available yet.",
)
async def import_end(call: Call) -> None:
    """Refuse the end of an import: none can have been begun."""
    verdict, _, _ = call.untrusted_payload.partition(b"\n")
    if verdict not in (b"ok", b"fail"):
        raise ProtocolError("the payload is neither `ok` nor `fail` and a message")
    raise _no_import()


def _refuse_import(call: Call, volume: VolumeState) -> None:
    require_own(volume)
    if not _halted(call)(call.destination):
        raise NotHaltedError(
            f"qube `{call.destination.name}` is not halted",
            hint=f"shut it down first: `qvm-shutdown --wait {call.destination.name}`",
        )
    raise _no_import()


def _no_import() -> NotImplementedHereError:
    return NotImplementedHereError(
        "volumes cannot be imported yet: images of disks are not turned into layers",
        hint="copy files into the running qube with `qvm-run --pass-io`",
    )


def _volume(call: Call) -> VolumeState:
    return call.qubes.system.volume(call.destination, call.untrusted_argument)


def _halted(call: Call) -> Callable[[Qube], bool]:
    def halted(qube: Qube) -> bool:
        return call.qubes.state_of(qube) is PowerState.HALTED

    return halted


async def _facts(call: Call, volume: VolumeState) -> dict[str, object]:
    system, qube = call.qubes.system, call.destination
    source = system.source_of(qube, volume) if volume.snap_on_start else None
    # What a snapshot borrows belongs to its source.
    own = () if volume.snap_on_start else volume.layers
    layers = [*own, *([volume.dirty] if volume.dirty else ())]
    outdated = call.qubes.volumes.is_outdated(qube, volume)
    return {
        "pool": volume.pool,
        "vid": system.volume_id(qube, volume),
        "size": system.size_of(qube, volume),
        "usage": await asyncio.to_thread(lambda: sum(map(call.services.layer_usage, layers))),
        "rw": volume.rw,
        "source": "" if source is None else system.volume_id(*source),
        "path": "",
        "save_on_stop": volume.save_on_stop,
        "snap_on_start": volume.snap_on_start,
        "revisions_to_keep": volume.revisions_to_keep,
        "ephemeral": False,
        "is_outdated": outdated,
    }
