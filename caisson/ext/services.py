"""Services: features `service.NAME`, and the two of them that stand for a property."""

from __future__ import annotations

from dataclasses import replace

from caisson.ext.interface import Extension, rule
from caisson.model import Change, Op, Qube, ResetProperty, SetFeature, SetProperty, System
from caisson.model.events import feature_removed, feature_set
from caisson.names import FeatureName, PropertyName, QubeName

MEMINFO_WRITER = FeatureName("service.meminfo-writer")
CLOCKSYNC = FeatureName("service.clocksync")
_CLOCKVM = PropertyName("clockvm")


class ServicesExtension(Extension):
    """Keeps services and properties that mean the same in step."""

    @rule
    def balance_memory(self, system: System, change: Change) -> Change:
        """The service that reports memory is on where `maxmem` is not 0; it is never stored."""
        for op in change.ops:
            if isinstance(op, SetFeature) and op.name == MEMINFO_WRITER:
                qube = system.by_uuid.get(op.uuid)
                change = _without_feature(change, op, qube)
                if qube not in (None, system.dom0) and system.has(qube, "maxmem"):
                    change += _balanced(system, qube, on=bool(op.value))
        return change

    @rule
    def move_clock(self, system: System, change: Change) -> Change:
        """The qube that the others take the time from offers the service for it."""
        for op in change.ops:
            match op:
                case SetProperty(None, name, text) if name == _CLOCKVM:
                    change += _clock_moved(system, text)
                case ResetProperty(None, name) if name == _CLOCKVM:
                    change += _clock_moved(system, "")
                case _:
                    pass
        return change


def _without_feature(change: Change, op: Op, qube: Qube | None) -> Change:
    """The change without one feature of one qube, as if nobody had asked for it."""

    def stays(event_name: str, subject: object) -> bool:
        about = event_name.startswith("domain-feature-") and event_name.endswith(MEMINFO_WRITER)
        return not (about and qube is not None and subject == qube.name)

    return replace(
        change,
        ops=tuple(each for each in change.ops if each is not op),
        events=tuple(e for e in change.events if stays(e.name, e.subject)),
        before=tuple(e for e in change.before if stays(e.name, e.subject)),
    )


def _balanced(system: System, qube: Qube, *, on: bool) -> Change:
    maxmem = PropertyName("maxmem")
    if not on:
        return system.plan_set(qube, maxmem, "0", lambda _: False)
    if system.value(qube, maxmem):
        return Change()
    return system.plan_reset(qube, maxmem, lambda _: False)


def _clock_moved(system: System, name: str) -> Change:
    former = system.value(None, _CLOCKVM)
    clock = system.qubes.get(QubeName(name)) if name else None
    change = Change()
    if former is clock:
        return change
    if isinstance(former, Qube) and CLOCKSYNC in former.features:
        change += feature_removed(former, CLOCKSYNC)
    if clock is not None:
        change += feature_set(clock, CLOCKSYNC, "1")
    return change
