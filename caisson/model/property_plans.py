"""Plans for properties: set, reset, and what follows from either (sections 2.2, 3.2, 5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

from caisson.errors import NoSuchPropertyError, PropertyValueError, ValueRefusedError
from caisson.model import limits, parsing, tags
from caisson.model.changes import Change, ResetProperty, SetProperty
from caisson.model.events import (
    event_of,
    joined,
    reset_event,
    tagged,
    untagged,
)
from caisson.model.facts import Facts
from caisson.model.property import Missing, Owner, Property, PropertyType, Running, Value, told
from caisson.model.property import render as rendered
from caisson.model.qube import Qube
from caisson.model.records import FOLLOWED
from caisson.names import PropertyName, QubeName, Tag, shown

_FOLLOWED_BY: Mapping[str, tuple[str, ...]] = {
    "label": ("icon",),
    "template_for_dispvms": ("icon",),
    "provides_network": ("ip", "ip6", "dns", "gateway", "gateway6"),
    "ip": ("visible_ip", "gateway"),
    "ip6": ("visible_ip6", "gateway6"),
    "netvm": ("ip", "ip6", "dns", "visible_gateway", "visible_netmask", "visible_gateway6"),
    "memory": ("maxmem",),
    "kernel": ("kernelopts",),
    "guivm": ("keyboard_layout",),
    "auto_cleanup": ("include_in_backups",),
}
"""What follows from another property of the same qube, where it is not stored."""
_OF_CLIENTS: Mapping[str, str] = {"gateway": "visible_gateway", "gateway6": "visible_gateway6"}
"""What clients take from their network qube."""
_WITHOUT_TEMPLATE: Mapping[str, str] = {
    "default_kernel": "kernel",
    "management_dispvm": "management_dispvm",
    "default_qrexec_timeout": "qrexec_timeout",
    "default_shutdown_timeout": "shutdown_timeout",
}
"""Global defaults of what a template hands down: they count for qubes without one."""


class PropertyPlans(Facts):
    """What may become of properties."""

    def plan_set(self, owner: Owner, name: str, untrusted_value: str, running: Running) -> Change:
        """Plan to store a property.

        Args:
            owner: the qube; None for a global property.
            name: the property.
            untrusted_value: its text as on the wire.
            running: tells whether a qube runs.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name, or it is set once.
            ValueRefusedError: the value does not fit the type.
            PropertyValueError: it does not fit the property, or the property is computed.
            CaissonError: the rest of the system forbids it.
        """
        declared = self._changeable(owner, name)
        value = self._parsed(declared, untrusted_value)
        if declared.read_only:
            raise PropertyValueError(
                f"property `{declared.name}` is computed", hint="change what it follows from"
            )
        if declared.check is not None:
            declared.check(self, owner, value, running)
        kwargs = {"name": str(declared.name), "newvalue": told(value)} | self._old(owner, declared)
        set_it = Change(
            ops=(SetProperty(_uuid(owner), declared.name, rendered(value)),),
            before=(event_of(owner, f"property-pre-set:{declared.name}", kwargs),),
            events=(event_of(owner, f"property-set:{declared.name}", kwargs),),
        )
        return set_it + self._consequences(owner, declared, value)

    def plan_reset(self, owner: Owner, name: str, running: Running) -> Change:
        """Plan to let a property have its default; the default must pass the same checks.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name, or it is set once.
            ValueRefusedError: it has to be stored.
            CaissonError: the rest of the system forbids the default.
        """
        declared = self._changeable(owner, name)
        if declared.required:
            raise ValueRefusedError(
                f"property `{declared.name}` has no default", hint="set it to another value"
            )
        if declared.read_only or self.is_default(owner, declared.name):
            return Change()
        default = declared.default(self, owner)
        value = None if isinstance(default, Missing) else default
        if declared.check is not None:
            declared.check(self, owner, value, running)
        kwargs = {"name": str(declared.name)} | self._old(owner, declared)
        reset_it = Change(
            ops=(ResetProperty(_uuid(owner), declared.name),),
            before=tuple(
                event_of(owner, f"property-{step}:{declared.name}", kwargs)
                for step in ("pre-reset", "pre-del")
            ),
            events=tuple(
                event_of(owner, f"property-{step}:{declared.name}", kwargs)
                for step in ("reset", "del")
            ),
        )
        return reset_it + self._consequences(owner, declared, value)

    def _changeable(self, owner: Owner, name: str) -> Property:
        declared = self.property(owner, name)
        if declared.write_once:
            raise NoSuchPropertyError(
                f"property `{declared.name}` is given at creation, it cannot change",
                hint="make another qube",
            )
        return declared

    def _parsed(self, declared: Property, untrusted_value: str) -> Value:
        if not untrusted_value.isascii():
            raise ValueRefusedError(
                f"value `{shown(untrusted_value)}` of `{declared.name}` is not ASCII",
                hint="use ASCII",
            )
        match declared.type:
            case PropertyType.BOOL:
                return parsing.boolean(untrusted_value)
            case PropertyType.INT:
                return _within(declared, parsing.number(untrusted_value))
            case PropertyType.QUBE:
                return self._referred(declared, untrusted_value)
            case PropertyType.LABEL:
                return self.label(untrusted_value)
            case PropertyType.STR:
                limits.check_text(declared.name, untrusted_value)
                return declared.decode(declared.normalise(parsing.text(untrusted_value)))

    def _referred(self, declared: Property, untrusted_value: str) -> Qube | None:
        if not untrusted_value:
            if declared.optional:
                return None
            raise PropertyValueError(
                f"property `{declared.name}` cannot be empty", hint="name a qube"
            )
        try:
            return self._names[QubeName.parse(untrusted_value)]
        except KeyError:
            raise PropertyValueError(
                f"no qube `{shown(untrusted_value)}`", hint="list the qubes with `qvm-ls`"
            ) from None

    def _old(self, owner: Owner, declared: Property) -> dict[str, str]:
        stored = not self.is_default(owner, declared.name)
        if not stored and isinstance(declared.default(self, owner), Missing):
            return {}
        return {"oldvalue": told(self.value(owner, declared.name))}

    def _consequences(self, owner: Owner, declared: Property, value: Value) -> Change:
        """What follows from a property: tags, features, computed properties that change."""
        if owner is None:
            return self._global_consequences(declared, value)
        moved = self._following(owner, declared.name)
        if declared.name == "template":
            inherited = (each for each in self.properties(owner).values() if each.inherited)
            moved += [(owner, each.name) for each in inherited if each.name not in owner.stored]
        elif declared.inherited:
            moved += self._handed_down(owner, declared.name)
        change = self._moved(moved)
        if declared.name in tags.REFERENCES:
            change += self._retagged(owner, tags.REFERENCES[declared.name], value)
        return change

    def _global_consequences(self, declared: Property, value: Value) -> Change:
        followers = self.followers_of(declared.name)
        moved = joined(self._default_moved(qube, declared.name, value) for qube in followers)
        name = _WITHOUT_TEMPLATE.get(declared.name)
        if name is None:
            return moved
        return moved + self._moved(
            (qube, name)
            for qube in self._names.values()
            if not self.template_of(qube) and self._has_default(qube, name)
        )

    def _default_moved(self, qube: Qube, default: PropertyName, value: Value) -> Change:
        """What a new default means for a qube that follows it."""
        change = Change()
        for name, follows in FOLLOWED[qube.klass].items():
            if follows == default and name not in qube.stored:
                change += self._moved([(qube, name)])
                if name in tags.REFERENCES:
                    change += self._retagged(qube, tags.REFERENCES[name], value)
        return change

    def _moved(self, properties: Iterable[tuple[Qube, str]]) -> Change:
        """Properties that are not stored have other values now, and what follows from them."""
        found: dict[tuple[Qube, str], None] = {}
        rest = deque(properties)
        while rest:
            each = rest.popleft()
            if each not in found:
                found[each] = None
                rest += self._following(*each)
                if self.properties(each[0])[PropertyName(each[1])].inherited:
                    rest += self._handed_down(*each)
        return Change(events=tuple(reset_event(qube, name) for qube, name in found))

    def _following(self, qube: Qube, name: str) -> list[tuple[Qube, str]]:
        """What has another value now because this property has, apart from inheritance."""
        following = [(qube, each) for each in _FOLLOWED_BY.get(name, ())]
        if name in _OF_CLIENTS:
            following += [(client, _OF_CLIENTS[name]) for client in self.clients_of(qube)]
        if name == "keyboard_layout":
            following += [(each, name) for each in self._shown_by(qube)]
        return [each for each in following if self._has_default(*each)]

    def _handed_down(self, qube: Qube, name: str) -> list[tuple[Qube, str]]:
        """What qubes take from this one, their template, and have another value of now."""
        return [
            (user, name)
            for user, reference in self.users_of(qube)
            if user is not None and reference == "template" and self._has_default(user, name)
        ]

    def _shown_by(self, gui: Qube) -> Iterator[Qube]:
        """The qubes whose GUI qube it is, by choice or by default."""
        for user, name in self.users_of(gui):
            if user is not None and name == "guivm":
                yield user
        if self.value(None, "default_guivm") is gui:
            yield from self.followers_of("default_guivm")

    def _has_default(self, qube: Qube, name: str) -> bool:
        return self.has(qube, name) and name not in qube.stored

    def _retagged(self, qube: Qube, prefix: str, value: Value) -> Change:
        wanted = Tag.parse(prefix + value.name) if isinstance(value, Qube) else None
        outdated = sorted(tag for tag in qube.tags if tag.startswith(prefix) and tag != wanted)
        change = joined(untagged(qube, tag) for tag in outdated)
        if wanted is not None and wanted not in qube.tags:
            change += tagged(qube, wanted)
        return change


def _uuid(owner: Owner) -> UUID | None:
    return None if owner is None else owner.uuid


def _within(declared: Property, value: int) -> int:
    low, high = declared.at_least, declared.at_most
    if (low is not None and value < low) or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"{low} to {high}"
        raise PropertyValueError(
            f"value `{value}` of `{declared.name}` is out of range", hint=f"use {limit}"
        )
    return value
