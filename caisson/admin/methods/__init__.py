"""Every method of the Admin API, by subject; importing this package declares them all."""

from caisson.admin.methods import (
    classes,
    events,
    features,
    internal,
    labels,
    lifecycle,
    misc,
    own,
    properties,
    stats,
    tags,
    volumes,
)
from caisson.admin.registry import METHODS

__all__ = [
    "METHODS",
    "classes",
    "events",
    "features",
    "internal",
    "labels",
    "lifecycle",
    "misc",
    "own",
    "properties",
    "stats",
    "tags",
    "volumes",
]
