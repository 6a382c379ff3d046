"""What exists: qubes, properties, features, tags, labels, volumes, and how they may change.

Pure: no I/O, no asyncio, no clock. Trusts the operations that it applies (it planned them, or
the store kept them); trusts no text in a parameter named `untrusted_…`. Called by lifecycle and
by the Admin API from one thread.

A change is planned (`System.plan_…`: every check, nothing altered), written (`store`), applied
(`System.apply`: no check, cannot fail).
"""

from caisson.model.changes import (
    AddLabel,
    AddQube,
    AddTag,
    Change,
    Event,
    Op,
    RemoveFeature,
    RemoveLabel,
    RemoveQube,
    RemoveTag,
    RemoveVolume,
    ResetProperty,
    SetFeature,
    SetNotes,
    SetPool,
    SetProperty,
    SetVolume,
)
from caisson.model.klass import Klass, PowerState
from caisson.model.labels import BUILT_IN as BUILT_IN_LABELS
from caisson.model.labels import Label
from caisson.model.property import (
    NO_DEFAULT,
    Host,
    Property,
    PropertyType,
    Value,
    render,
)
from caisson.model.qube import ADMIN_UUID, Qube
from caisson.model.system import System
from caisson.model.volumes import PoolState, Revision, VolumeState

__all__ = [
    "ADMIN_UUID",
    "BUILT_IN_LABELS",
    "NO_DEFAULT",
    "AddLabel",
    "AddQube",
    "AddTag",
    "Change",
    "Event",
    "Host",
    "Klass",
    "Label",
    "Op",
    "PoolState",
    "PowerState",
    "Property",
    "PropertyType",
    "Qube",
    "RemoveFeature",
    "RemoveLabel",
    "RemoveQube",
    "RemoveTag",
    "RemoveVolume",
    "ResetProperty",
    "Revision",
    "SetFeature",
    "SetNotes",
    "SetPool",
    "SetProperty",
    "SetVolume",
    "System",
    "Value",
    "VolumeState",
    "render",
]
