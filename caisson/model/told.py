"""What the broker is told of each qube, and when it has to hear of it anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from caisson.model import tags
from caisson.model.changes import (
    AddQube,
    AddTag,
    Change,
    RemoveFeature,
    RemoveQube,
    RemoveTag,
    ResetProperty,
    SetFeature,
    SetProperty,
)
from caisson.model.facts import Facts
from caisson.model.klass import PowerState
from caisson.model.labels import Label
from caisson.model.property import render
from caisson.model.qube import Qube
from caisson.names import DOM0, FeatureName, QubeName, Tag

_TOLD_PROPERTIES = frozenset(
    {
        "label",
        "template",
        "template_for_dispvms",
        "default_dispvm",
        "guivm",
        "relayvm",
        "transport_rpc",
    }
)
_ISOLATION = {
    "container": "container",
    "pvh": "virtual machine",
    "hvm": "virtual machine",
    "pv": "virtual machine",
}
# What a qube takes from its template, and the broker hears of.
_TOLD_INHERITED = frozenset({"template", "virt_mode", "default_user"})
_TOLD_FEATURES = frozenset({"internal", "servicevm"})


class Told(Facts):
    """What is told."""

    def info(self, power_state: Callable[[Qube], PowerState]) -> dict[str, dict[str, Any]]:
        """All qubes as `internal.GetSystemInfo` tells them under `domains`."""
        return {
            str(name): self.info_of(qube, power_state(qube)) for name, qube in self._names.items()
        }

    def info_of(self, qube: Qube, power_state: PowerState) -> dict[str, Any]:
        """One qube as `internal.GetSystemInfo` tells it (sheet `qrexec`, section 4.2)."""
        label = self.value(qube, "label") if self.has(qube, "label") else None
        internal = qube.features.get(FeatureName("internal"))
        return {
            # Policy asks for its truth only, and its owner chooses how long it is.
            "internal": internal and "1",
            "tags": sorted(map(str, qube.tags)),
            "type": qube.klass.value,
            "template_for_dispvms": self._told(qube, "template_for_dispvms") == "True",
            "default_dispvm": self._told(qube, "default_dispvm"),
            "icon": self._told(qube, "icon"),
            "label": label.color if isinstance(label, Label) else None,
            "guivm": self._told(qube, "guivm"),
            "relayvm": self._told(qube, "relayvm"),
            "transport_rpc": self._told(qube, "transport_rpc"),
            "power_state": power_state.value,
            "uuid": str(qube.uuid),
            # Not upstream's: how the qube is walled off, for prompts; who runs its services; and
            # of the admin qube, whose clock it goes by.
            "isolation": self.runtime(qube, "isolation")
            or _ISOLATION.get(self._told(qube, "virt_mode") or ""),
            "default_user": self._told(qube, "default_user"),
        } | ({"clockvm": self._global("clockvm")} if qube.name == DOM0 else {})

    def wiring_of(self, qube: Qube) -> dict[str, Any]:
        """What of one qube decides where data may flow without a call; the broker is not told.

        `created_tags` are those that it gives to what it makes (`caisson.model.life_plans`).
        """
        given = tags.free_ones(qube.features.get(FeatureName("tag-created-vm-with"), "").split())
        guivm = QubeName(qube.features.get(FeatureName("set-created-guivm"), ""))
        if guivm in self._names:
            given.add(Tag.parse(tags.REFERENCES["guivm"] + guivm))
        return {
            "netvm": self._told(qube, "netvm"),
            "template": self._told(qube, "template"),
            "provides_network": self._told(qube, "provides_network") == "True",
            "created_tags": sorted(given),
        }

    def _global(self, name: str) -> str | None:
        value = self.value(None, name)
        return None if value is None else render(value)

    def _told(self, qube: Qube, name: str) -> str | None:
        declared = self._declared(qube, name)
        value = None if declared is None else self._value_of(qube, declared)
        return None if value is None else render(value)

    def affected_by(self, change: Change) -> set[QubeName]:
        """The qubes for which `info_of` tells something else once the change is applied.

        Ask before `apply`: a qube that the change removes is then still known.
        """
        names: set[QubeName] = set()
        for op in change.ops:
            match op:
                case AddQube():
                    names.add(op.name)
                case SetProperty(uuid=None) | ResetProperty(uuid=None):
                    names.update(self._hear_of(op.name))
                case SetProperty(uuid=UUID() as uuid) | ResetProperty(uuid=UUID() as uuid) if (
                    op.name in _TOLD_INHERITED
                ):
                    names.update(self._built_on(uuid))
                case SetProperty() | ResetProperty() if op.name not in _TOLD_PROPERTIES:
                    pass
                case SetFeature() | RemoveFeature() if op.name not in _TOLD_FEATURES:
                    pass
                case (
                    RemoveQube(uuid=UUID() as uuid)
                    | SetProperty(uuid=UUID() as uuid)
                    | ResetProperty(uuid=UUID() as uuid)
                    | SetFeature(uuid=uuid)
                    | RemoveFeature(uuid=uuid)
                    | AddTag(uuid=uuid)
                    | RemoveTag(uuid=uuid)
                ):
                    if uuid in self._uuids:
                        names.add(self._uuids[uuid].name)
                case _:
                    pass
        return names

    def _hear_of(self, name: str) -> set[QubeName]:
        """The qubes of which something else is told when a property of the system changes."""
        if name in {"default_dispvm", "default_guivm"}:
            return {qube.name for qube in self.followers_of(name)}
        return {DOM0} if name == "clockvm" else set()

    def _built_on(self, uuid: UUID) -> set[QubeName]:
        """The qube, and all that have it in their chain of templates."""
        qube = self._uuids.get(uuid)
        return set() if qube is None else {each.name for each in (qube, *self.based_on(qube))}
