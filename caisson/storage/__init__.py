"""Volumes on disk: layers in a pool, templates, and the files that every qube gets.

Trusts the machine's own files and the state in the store.
Does not trust what qubes wrote into layers: such a tree is stacked, copied whole by `cp` or
erased by `rm`, never interpreted.
Called by `lifecycle`. Engines mount what lies here; nothing here mounts for a qube.
"""

from caisson.storage import debian_template, host_template, qube_files
from caisson.storage.pool import OVERLAY_OPTIONS, Building, Pool
from caisson.storage.skeleton import new_private
from caisson.storage.volumes import (
    DEEPEST,
    StartPlan,
    StopPlan,
    VolumePlan,
    begun,
    flattened,
    garbage,
    is_begun,
    is_kept,
    is_outdated,
    lay_out,
    layers_of,
    origin,
    plan_clone,
    plan_flatten,
    plan_replace,
    plan_revert,
    plan_start,
    plan_stop,
    require_own,
)

__all__ = [
    "DEEPEST",
    "OVERLAY_OPTIONS",
    "Building",
    "Pool",
    "StartPlan",
    "StopPlan",
    "VolumePlan",
    "begun",
    "debian_template",
    "flattened",
    "garbage",
    "host_template",
    "is_begun",
    "is_kept",
    "is_outdated",
    "lay_out",
    "layers_of",
    "new_private",
    "origin",
    "plan_clone",
    "plan_flatten",
    "plan_replace",
    "plan_revert",
    "plan_start",
    "plan_stop",
    "qube_files",
    "require_own",
]
