"""Every method of the Admin API, by subject; importing this package declares them all."""

from caisson.admin.methods import (
    backup,
    classes,
    devices,
    events,
    features,
    firewall,
    internal,
    labels,
    lifecycle,
    misc,
    notes,
    own,
    pools,
    properties,
    stats,
    tags,
    volumes,
)
from caisson.admin.registry import METHODS

__all__ = [
    "METHODS",
    "backup",
    "classes",
    "devices",
    "events",
    "features",
    "firewall",
    "internal",
    "labels",
    "lifecycle",
    "misc",
    "notes",
    "own",
    "pools",
    "properties",
    "stats",
    "tags",
    "volumes",
]
