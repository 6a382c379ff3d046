"""Features that a template announces about itself: what it supports, what system it is.

Source: specification sheet `qrexec`, section 6 (`qubes.FeaturesRequest`, `qubes.NotifyTools`).
Everything announced is the qube's own word. It is taken only where a false word harms nobody but
the qube itself, and never where an administrator has decided already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, islice

import structlog

from caisson.errors import CaissonError
from caisson.ext.interface import Core, Extension, on
from caisson.model import Change, Event, Qube
from caisson.model.events import event_of, joined
from caisson.model.limits import MOST_FEATURES
from caisson.names import FeatureName, shown

REQUESTS = "features-request/"
TOOLS = "qubes-tools/"
MOST_ANNOUNCED = 1_000
LEFT_TO_OTHERS = 100
"""Features that a qube cannot take by announcing: room for its administrator, and for updates."""
_VALUE = re.compile(r"[A-Za-z0-9.,_= -]{0,255}")
# Taken over as soon as a template says so, and only if nothing is stored yet.
_ONCE = frozenset({"gui", "gui-emulated", "qrexec", "vmexec"})
# Facts about the template: what it says last counts.
_FACTS = re.compile(r"os|os-(?:distribution|distribution-like|version|eol)|boot-mode\..+")
# Sets of facts: what is not announced any more goes.
_SETS = ("supported-service.", "supported-feature.", "supported-rpc.")
_log = structlog.get_logger("features")


class CoreFeaturesExtension(Extension):
    """Takes over what templates announce."""

    @on("features-request")
    async def take_over(self, event: Event) -> None:
        """Store what a qube that is its own template announces."""
        qube = None if event.subject is None else self.core.system.qubes.get(event.subject)
        if qube is None:
            return
        if not self.core.system.value(qube, "updateable"):
            _log.info("a qube with a template announces features: left out", qube=qube.name)
            return
        requested = announced(self.core, qube)
        before = "qrexec" in qube.features
        change = self._planned(qube, requested)
        await self.core.qubes.commit(change)
        if not before and qube.features.get(FeatureName("qrexec")):
            self.core.qubes.events.publish(event_of(qube, "template-postinstall"))

    def _planned(self, qube: Qube, requested: Mapping[str, str]) -> Change:
        system = self.core.system
        changes: list[Change] = []
        room = MOST_FEATURES - LEFT_TO_OTHERS - len(qube.features)
        for name, value in requested.items():
            stored = qube.features.get(FeatureName(name))
            once = name in _ONCE and stored is None and value == "1"
            fact = _FACTS.fullmatch(name) or name.startswith(_SETS)
            if once or (fact and stored != value):
                # Each is planned without the others: together they may be too many.
                if stored is None and (room := room - 1) < 0:
                    _log.warning("a qube has too many features", qube=qube.name)
                    break
                try:
                    changes.append(system.plan_feature(qube, name, value))
                except CaissonError as error:
                    _log.warning("a feature is left out", qube=qube.name, error=str(error))
        outdated = [n for n in qube.features if n.startswith(_SETS) and n not in requested]
        return joined([*changes, *(system.plan_remove_feature(qube, name) for name in outdated)])


def announced(core: Core, qube: Qube) -> dict[str, str]:
    """The features that a qube announces: those whose names and values are such.

    The older way of announcing (`qubes-tools/…`) counts where the newer one says nothing.
    """
    found: dict[str, str] = {}
    left_out: list[str] = []
    untrusted = chain(
        core.untrusted_announced(qube).items(), core.untrusted_announcing.get(qube.uuid, {}).items()
    )
    for key, untrusted_value in islice(untrusted, MOST_ANNOUNCED):
        prefix = next((p for p in (REQUESTS, TOOLS) if key.startswith(p)), None)
        if prefix is None:
            continue
        try:
            name = FeatureName.parse(key.removeprefix(prefix))
        except CaissonError:
            left_out.append(key)
            continue
        if not _VALUE.fullmatch(untrusted_value):
            left_out.append(key)
        elif prefix == REQUESTS or name not in found:
            found[name] = untrusted_value
    if left_out:  # one line, however many a hostile qube sends
        _log.warning(
            "announced features are left out",
            qube=qube.name,
            count=len(left_out),
            first=shown(left_out[0]),
        )
    return found
