"""Every method of the Admin API, by subject; importing this package declares them all."""

from caisson.admin.methods import (
    classes,
    events,
    features,
    internal,
    labels,
    lifecycle,
    own,
    properties,
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
    "own",
    "properties",
    "tags",
    "volumes",
]
