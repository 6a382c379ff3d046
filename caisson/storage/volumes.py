"""What a start, a stop, a crash and a revert do to the volumes of a qube.

Pure: from the states of volumes to new states and lists of layers; `lay_out` alone touches
the disk. Flags per class: specification sheet `admin-api`, section 7.2.

The caller keeps this order, so that a kill at any moment loses nothing:

1. start: `plan_start`, `lay_out`, store the `begun` states, then mount;
2. stop: after the last unmount `plan_stop`, `Pool.seal` what is kept, store the new state,
   then `Pool.remove` the `garbage` among what was dropped;
3. at the start of the daemon, for each qube that does not run any more: as for a stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from caisson.errors import NotHaltedError, StorageError
from caisson.model.volumes import HOST, PRIVATE, ROOT, Revision, VolumeState, fitting
from caisson.names import VolumeName
from caisson.storage.pool import Pool

DEEPEST: Final = 12
"""A stack with more layers than this is due for flattening."""

Volumes = Mapping[VolumeName, VolumeState]


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """How one volume is mounted.

    Args:
        lower: immutable layers, newest first.
        upper: the layer that takes the writes; None until `lay_out` made it.
        kept: True where the writes are committed at shutdown.
        writable: False where nothing may be written.
    """

    lower: tuple[str, ...]
    upper: str | None = None
    kept: bool = False
    writable: bool = True


@dataclass(frozen=True, slots=True)
class StartPlan:
    """What a qube needs on disk to start.

    Args:
        root: the tree at `/`.
        private: the tree at `/rw`; None where the qube has no private volume.
        host_usr: True where `/usr` is the machine's own.
    """

    root: VolumePlan
    private: VolumePlan | None
    host_usr: bool


@dataclass(frozen=True, slots=True)
class StopPlan:
    """What becomes of one volume when its qube has stopped.

    Args:
        state: the volume from now on.
        seal: the layer to seal before `state` is stored.
        dropped: layers that this volume does not need any more; others may.
        flatten: True where the stack has grown deep: see `plan_flatten`.
    """

    state: VolumeState
    seal: str | None = None
    dropped: tuple[str, ...] = ()
    flatten: bool = False


def is_kept(state: VolumeState) -> bool:
    """Tell whether writes to the volume survive a shutdown."""
    return state.rw and state.save_on_stop and not state.snap_on_start and state.pool != HOST


def origin(name: VolumeName, chain: Sequence[Volumes]) -> VolumeState:
    """The volume that a start of `name` is based on: its own, or that of a template.

    Args:
        name: `root` or `private`.
        chain: the volumes of the qube, of its template, of the template's template and so on.
    """
    for volumes in chain:
        state = volumes.get(name)
        if state is None:
            break
        if not state.snap_on_start:
            if state.layers:
                return state
            raise StorageError(
                f"volume `{name}` has no content yet",
                hint="build or install the template first: `caisson template build NAME`",
            )
    raise StorageError(f"volume `{name}` is based on a template that does not have one")


def plan_start(qube: Volumes, *templates: Volumes) -> StartPlan:
    """Say which layers a start mounts.

    Args:
        qube: the volumes of the qube.
        templates: those of its template, of the template's template and so on, nearest first.

    Raises:
        StorageError: a volume has no content.
        NotHaltedError: a volume still has the writable layer of an earlier run.
    """
    for name in (ROOT, PRIVATE):
        state = qube.get(name)
        if state is not None and state.dirty is not None:
            raise NotHaltedError(
                f"volume `{name}` is in use, or was not committed after a crash",
                hint="shut the qube down first; after a crash restart the daemon",
            )
    chain = (qube, *templates)
    root = origin(ROOT, chain)
    private = origin(PRIVATE, chain) if PRIVATE in qube else None
    return StartPlan(
        root=VolumePlan(root.layers, kept=is_kept(qube[ROOT]), writable=qube[ROOT].rw),
        private=None
        if private is None
        else VolumePlan(private.layers, kept=is_kept(qube[PRIVATE]), writable=qube[PRIVATE].rw),
        host_usr=root.pool == HOST,
    )


def lay_out(pool: Pool, plan: StartPlan) -> StartPlan:
    """Make the writable layers of a start; none is left behind on failure."""
    made: list[str] = []

    def with_upper(part: VolumePlan) -> VolumePlan:
        if not part.writable:
            return part
        made.append(pool.new_layer(like=part.lower[0]))
        return replace(part, upper=made[-1])

    try:
        root = with_upper(plan.root)
        private = None if plan.private is None else with_upper(plan.private)
    except BaseException:
        pool.remove(made)
        raise
    return replace(plan, root=root, private=private)


def begun(qube: Volumes, plan: StartPlan) -> tuple[VolumeState, ...]:
    """The states to store before the mount: writable layers noted, borrowed ones held.

    A borrowed volume names its layers while the qube runs, so that `garbage` spares them
    when the template moves on. One that cannot be written gets no writable layer.
    """
    states = []
    for name, part in ((ROOT, plan.root), (PRIVATE, plan.private)):
        if part is not None:
            states.append(replace(qube[name], layers=part.lower, dirty=part.upper))
    return tuple(states)


def is_begun(state: VolumeState) -> bool:
    """Tell whether the volume is in use, or was not put away after a crash.

    Of a volume of its own that a qube only reads, the state does not tell.
    """
    return state.dirty is not None or (state.snap_on_start and bool(state.layers))


def plan_stop(state: VolumeState, *, empty: bool, now: int) -> StopPlan:
    """Say what becomes of a volume whose qube has stopped, cleanly or by a crash.

    Args:
        state: the volume as stored.
        empty: what `Pool.is_empty` says of its writable layer.
        now: seconds since the epoch.
    """
    dirty = state.dirty
    if not is_kept(state):
        left = () if state.snap_on_start else state.layers
        gone = () if dirty is None else (dirty,)
        return StopPlan(replace(state, layers=left, dirty=None), dropped=gone)
    if dirty is None:
        return StopPlan(state)
    if empty:
        return StopPlan(replace(state, dirty=None), dropped=(dirty,))
    committed = replace(state, layers=(dirty, *state.layers), dirty=None)
    after = replace(committed, revisions=_revisions(state, now))
    return StopPlan(
        after,
        seal=dirty,
        dropped=_dropped(state, after),
        flatten=len(after.layers) > DEEPEST,
    )


def is_outdated(state: VolumeState, chain: Sequence[Volumes]) -> bool:
    """Tell whether the source of a running qube's borrowed volume has changed since its start."""
    if not state.snap_on_start or not state.layers:
        return False
    return origin(state.name, chain).layers != state.layers


def plan_revert(state: VolumeState, revision: str | None, *, now: int) -> StopPlan:
    """Go back to a former state; the present one becomes a revision.

    Args:
        state: the volume, of a halted qube.
        revision: its id; None for the newest.
        now: seconds since the epoch.
    """
    if state.dirty is not None:
        raise StorageError(f"volume `{state.name}` is in use", hint="shut the qube down first")
    if not state.revisions:
        raise StorageError(f"volume `{state.name}` has no revisions")
    wanted = next(
        (r for r in reversed(state.revisions) if revision is None or r.id == revision), None
    )
    if wanted is None:
        known = ", ".join(f"`{r.id}`" for r in state.revisions)
        raise StorageError(
            f"volume `{state.name}` does not have that revision", hint=f"it has {known}"
        )
    after = replace(state, layers=wanted.layers, revisions=_revisions(state, now))
    return StopPlan(after, dropped=_dropped(state, after))


def plan_replace(state: VolumeState, layers: Sequence[str], *, now: int) -> StopPlan:
    """Give a volume new content; the old becomes a revision."""
    _require_halted(state)
    revisions = _revisions(state, now) if state.layers else state.revisions
    after = replace(state, layers=tuple(layers), revisions=revisions)
    return StopPlan(after, dropped=_dropped(state, after), flatten=len(after.layers) > DEEPEST)


def plan_clone(
    state: VolumeState, source: VolumeState, *, revisions_to_keep: int, now: int
) -> StopPlan:
    """Let a volume share the layers of another; what it had becomes a revision.

    It also gets the size of its source, and moves to its pool: the machine's own directories
    cannot be had as layers, nor layers as those.

    Args:
        state: the volume that is overwritten, of a halted qube.
        source: one that has its own content.
        revisions_to_keep: of a volume that moves to another pool.
        now: seconds since the epoch.

    Raises:
        StorageError: the volume does not keep its content, or the source has none.
        NotHaltedError: the volume is in use.
    """
    require_own(state)
    if not source.layers or not source.save_on_stop:
        raise StorageError(f"volume `{source.name}` has no content to copy")
    if source.pool not in fitting(state.name):
        raise StorageError(
            f"pool `{source.pool}` cannot hold the volume `{state.name}`",
            hint="copy a volume of pool: " + ", ".join(fitting(state.name)),
        )
    plan = plan_replace(state, source.layers, now=now)
    after = replace(plan.state, size=source.size, pool=source.pool)
    if after.pool != state.pool:
        after = replace(after, revisions_to_keep=revisions_to_keep, revisions=())
    return replace(plan, state=after, dropped=_dropped(state, after))


def require_own(state: VolumeState) -> None:
    """Refuse to give content to a volume that would not keep it.

    Raises:
        StorageError: its content comes from elsewhere, or is thrown away.
    """
    if not state.save_on_stop or state.snap_on_start:
        why = "is a snapshot" if state.snap_on_start else "does not keep its content"
        raise StorageError(
            f"volume `{state.name}` {why}, nothing can be put into it",
            hint="give the content to the volume of its template" if state.snap_on_start else None,
        )
    if not state.rw:
        raise StorageError(
            f"volume `{state.name}` is read-only",
            hint="make it writable first: `qvm-volume config VM:VOLUME rw True`",
        )


def plan_flatten(state: VolumeState) -> tuple[str, ...]:
    """The layers to merge into one, newest first; empty where there is nothing to gain.

    Only what the volume and all its revisions share is merged, so that revisions stay
    small; the shared part always includes the lowest layer.
    """
    shared = state.layers
    for revision in state.revisions:
        shared = _common_tail(shared, revision.layers)
    if len(state.layers) - len(shared) >= DEEPEST:
        shared = state.layers
    return shared if len(shared) > 1 else ()


def flattened(state: VolumeState, merged: Sequence[str], new: str) -> StopPlan | None:
    """The volume after `merged` became the layer `new`.

    Returns:
        None where the volume moved on meanwhile: the caller removes `new`.

    Raises:
        NotHaltedError: the qube runs on the old layers; try again when it has stopped.
    """
    _require_halted(state)
    if not _ends_with(state.layers, merged):
        return None
    after = replace(
        state,
        layers=_exchanged(state.layers, merged, new),
        revisions=tuple(
            replace(r, layers=_exchanged(r.layers, merged, new)) for r in state.revisions
        ),
    )
    return StopPlan(after, dropped=_dropped(state, after))


def layers_of(states: Iterable[VolumeState]) -> set[str]:
    """Every layer that these volumes need, revisions and writable layers included."""
    needed: set[str] = set()
    for state in states:
        needed.update(state.layers)
        for revision in state.revisions:
            needed.update(revision.layers)
        if state.dirty is not None:
            needed.add(state.dirty)
    return needed


def garbage(dropped: Iterable[str], states: Iterable[VolumeState]) -> set[str]:
    """Those of `dropped` that none of `states` (all volumes of all qubes) needs any more."""
    return set(dropped) - layers_of(states)


def _require_halted(state: VolumeState) -> None:
    if state.dirty is not None:
        raise NotHaltedError(f"volume `{state.name}` is in use", hint="shut the qube down first")


def _revisions(state: VolumeState, now: int) -> tuple[Revision, ...]:
    if state.revisions_to_keep <= 0 or state.pool == HOST:
        return ()
    numbers = [int(r.id) for r in state.revisions if r.id.isdecimal()]
    present = Revision(str(max(numbers, default=0) + 1), state.layers, now)
    return (*state.revisions, present)[-state.revisions_to_keep :]


def _dropped(before: VolumeState, after: VolumeState) -> tuple[str, ...]:
    return tuple(sorted(layers_of([before]) - layers_of([after])))


def _common_tail(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    length = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        length += 1
    return one[len(one) - length :]


def _ends_with(stack: tuple[str, ...], tail: Sequence[str]) -> bool:
    return len(tail) > 0 and stack[-len(tail) :] == tuple(tail)


def _exchanged(stack: tuple[str, ...], tail: Sequence[str], new: str) -> tuple[str, ...]:
    return (*stack[: -len(tail)], new) if _ends_with(stack, tail) else stack
