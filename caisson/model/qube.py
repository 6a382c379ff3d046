"""A qube as the model knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from caisson.model.klass import Klass
from caisson.model.volumes import VolumeState
from caisson.names import FeatureName, PropertyName, QubeName, Tag, VolumeName

ADMIN_UUID = UUID(int=0)


@dataclass(eq=False, slots=True)
class Qube:
    """The stored facts about one qube; only `System.apply` changes them.

    Identity is the object itself: two qubes never share one, and a qube stays the same object
    from its creation to its removal.
    """

    uuid: UUID
    name: QubeName
    klass: Klass
    qid: int
    stored: dict[PropertyName, str] = field(default_factory=dict)
    features: dict[FeatureName, str] = field(default_factory=dict)
    tags: set[Tag] = field(default_factory=set)
    volumes: dict[VolumeName, VolumeState] = field(default_factory=dict)
    notes: str = ""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.klass} {self.name} {self.uuid}>"
