"""How a property is declared."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from caisson.model.defaults import global_property, of_template
from caisson.model.property import Default, Property, PropertyType
from caisson.names import PropertyName

MEMORY_MAX = 1 << 24
CPUS_MAX = 4_096
SECONDS_MAX = 1_000_000

Table = Mapping[PropertyName, Property]

STR, INT, BOOL = PropertyType.STR, PropertyType.INT, PropertyType.BOOL
QUBE, LABEL = PropertyType.QUBE, PropertyType.LABEL


def prop(name: str, kind: PropertyType, text: str, **rest: Any) -> Property:
    """A property that can be set; `rest` as in `Property`."""
    return Property(name=PropertyName(name), type=kind, help=text, **rest)


def computed(name: str, kind: PropertyType, text: str, **rest: Any) -> Property:
    """A property that follows from others."""
    return prop(name, kind, text, read_only=True, cloned=False, **rest)


def following(name: str, text: str, follows: str, **rest: Any) -> Property:
    """A reference to a qube whose default is that global property."""
    return prop(
        name,
        QUBE,
        text,
        default=global_property(follows),
        follows=PropertyName(follows),
        **rest,
    )


def inherited(
    name: str, kind: PropertyType, text: str, otherwise: Default, **rest: Any
) -> Property:
    """A property whose default is what the template has; `otherwise` without a template."""
    return prop(name, kind, text, default=of_template(name, otherwise), inherited=True, **rest)


def table(*declared: Property) -> Table:
    """Declarations by name."""
    return MappingProxyType({each.name: each for each in declared})


def extended(base: Table, *declared: Property) -> Table:
    """A table with more declarations, or other ones of the same name."""
    return MappingProxyType({**base, **table(*declared)})
