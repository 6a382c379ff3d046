"""Small changes that are told the same way wherever they come from (sections 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from caisson.model.changes import (
    AddTag,
    Change,
    Event,
    RemoveFeature,
    RemoveTag,
    SetFeature,
)
from caisson.model.property import Owner
from caisson.model.qube import Qube
from caisson.names import FeatureName, Tag

_NOTHING: Mapping[str, str] = MappingProxyType({})


def event_of(owner: Owner, name: str, kwargs: Mapping[str, str] = _NOTHING) -> Event:
    """An event about a qube, or about the system."""
    if owner is None:
        return Event(None, name, kwargs)
    return Event(owner.name, name, kwargs, owner.uuid)


def reset_event(qube: Qube, name: str) -> Event:
    """A computed property has another value now."""
    return event_of(qube, f"property-reset:{name}", {"name": name})


def joined(changes: Iterable[Change]) -> Change:
    """One change of many."""
    parts = tuple(changes)
    return Change(
        ops=tuple(op for change in parts for op in change.ops),
        events=tuple(event for change in parts for event in change.events),
        before=tuple(event for change in parts for event in change.before),
    )


def tagged(qube: Qube, tag: Tag) -> Change:
    """A qube gets a tag."""
    return Change(
        ops=(AddTag(qube.uuid, tag),),
        events=(event_of(qube, f"domain-tag-add:{tag}", {"tag": str(tag)}),),
    )


def untagged(qube: Qube, tag: Tag) -> Change:
    """A qube loses a tag."""
    return Change(
        ops=(RemoveTag(qube.uuid, tag),),
        events=(event_of(qube, f"domain-tag-delete:{tag}", {"tag": str(tag)}),),
    )


def feature_set(qube: Qube, name: FeatureName, value: str) -> Change:
    """A feature is stored."""
    kwargs = {"feature": str(name), "value": value}
    if name in qube.features:
        kwargs["oldvalue"] = qube.features[name]
    return Change(
        ops=(SetFeature(qube.uuid, name, value),),
        before=(event_of(qube, f"domain-feature-pre-set:{name}", kwargs),),
        events=(
            event_of(qube, f"domain-feature-set:{name}", kwargs),
            *_icon_follows(qube, name),
        ),
    )


def feature_removed(qube: Qube, name: FeatureName) -> Change:
    """A feature goes."""
    kwargs = {"feature": str(name)}
    return Change(
        ops=(RemoveFeature(qube.uuid, name),),
        before=(event_of(qube, f"domain-feature-pre-delete:{name}", kwargs),),
        events=(
            event_of(qube, f"domain-feature-delete:{name}", kwargs),
            *_icon_follows(qube, name),
        ),
    )


def _icon_follows(qube: Qube, feature: FeatureName) -> tuple[Event, ...]:
    return (reset_event(qube, "icon"),) if feature == "servicevm" else ()
