"""Qubes in the making: those of a chain, and those beside it that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import msgspec

from caisson.policy.flow import bits, newborn
from caisson.policy.flow.predicates import Profile
from caisson.policy.flow.universe import Universe
from caisson.policy.rules import Rule

_FORWARDER = "transport.Forward"


class Impossible(Exception):  # noqa: N818 - no error: the members are just not of one system
    """The members of a chain cannot be together in one system."""


class QubeDraft(msgspec.Struct):
    """A qube in the making."""

    name: str
    type: str
    uuid: str
    tags: set[str]
    net: bool
    is_base: bool = False
    default_dispvm: str | None = None
    is_default_set: bool = False
    template: str | None = None
    gives_tags: set[str] = msgspec.field(default_factory=set)

    def profile(self) -> Profile:
        """What predicates see of it."""
        return Profile(
            self.name, self.type, frozenset(self.tags), self.net, self.uuid, self.is_base
        )

    def may_be(self, profile: Profile) -> bool:
        """Whether it has all that a member has."""
        return (
            profile.name in {"", self.name}
            and profile.uuid in {"", self.uuid}
            and profile.type == self.type
            and profile.net is self.net
            and profile.tags <= self.tags
        )

    def add_heritage(self, base: QubeDraft) -> None:
        """Give a disposable what it has from its base."""
        base.is_base = True
        self.tags |= set(filter(newborn.must_inherit, base.tags))

    def set_default(self, name: str | None) -> None:
        """Fix its `default_dispvm`.

        Raises:
            Impossible: it is another one already.
        """
        if self.is_default_set and self.default_dispvm != name:
            raise Impossible
        self.default_dispvm, self.is_default_set = name, True


class Draft:
    """A system in the making."""

    def __init__(self, universe: Universe, rules: Sequence[Rule]) -> None:
        self._universe = universe
        words = {str(t) for r in rules for t in (r.source, r.target, r.redirect) if t}
        self._taken = {word.rpartition(":")[2] for word in words}
        self._taken |= {profile.name for profile in universe.profiles}
        self._numbers = count(1)
        self._qubes: dict[str, QubeDraft] = {}

    def qubes(self) -> list[QubeDraft]:
        """All of them."""
        return list(self._qubes.values())

    def add(self, members: Sequence[int]) -> QubeDraft | None:
        """Add a qube that is all of some members; None for the outside world.

        Raises:
            Impossible: there is a qube of that name already.
        """
        if members[0] == self._universe.internet:
            return None
        profiles = [self._universe.profiles[member] for member in members]
        name = max(p.name for p in profiles) or self._fresh(profiles[0])
        if name in self._qubes:
            raise Impossible
        tags = set().union(*(p.tags for p in profiles))
        uuid = max(p.uuid for p in profiles)
        first = profiles[0]
        is_base = first.is_base and self._universe.tells_bases
        made = QubeDraft(name, first.type, uuid, tags, first.net, is_base)
        self._qubes[name] = made
        return made

    def _fresh(self, profile: Profile) -> str:
        """A name that no rule knows."""
        stem = "disp" if profile.type == "DispVM" else "qube"
        return next(n for i in self._numbers if (n := f"{stem}{i}") not in self._taken)

    def beside(self, member: int) -> QubeDraft:
        """A qube that the chain needs beside it: a member.

        Raises:
            Impossible: there is a different one of that name.
        """
        profile = self._universe.profiles[member]
        found = self._qubes.get(profile.name)
        if found is None:
            found = self.add([member])
        if found is None or found.type != profile.type or found.net is not profile.net:
            raise Impossible
        found.tags |= profile.tags
        return found

    def base_for(self, disposable: QubeDraft, bases: int) -> int:
        """The base, of several, that a disposable can be made of and has most of its tags from.

        Raises:
            Impossible: of none.
        """
        made_of = self._qubes.get(disposable.template or "")
        best, most = None, -1
        for number in bits.numbers(bases):
            profile = self._universe.profiles[number]
            left = set(filter(newborn.must_inherit, profile.tags))
            is_it = made_of is None or made_of.may_be(profile)
            fits = is_it and left <= disposable.tags and profile.net >= disposable.net
            if fits and len(left) > most:
                best, most = number, len(left)
        if best is None:
            raise Impossible
        return best

    def bear(self, disposable: QubeDraft, maker: QubeDraft, member: int) -> QubeDraft:
        """Let a disposable come from its base and its maker; returns the base."""
        base = self._qubes.get(disposable.template or "") or self.beside(member)
        disposable.template = base.name
        disposable.add_heritage(base)
        maker.gives_tags |= {
            tag
            for tag in disposable.tags - base.tags
            if newborn.must_inherit(tag) or tag.startswith(newborn.GUIVM)
        }
        disposable.tags.add(newborn.CREATED_BY + maker.name)
        disposable.tags.add(newborn.DISPOSABLE_CREATED_BY + maker.name)
        if not maker.is_default_set:
            maker.set_default(base.name)
        return base

    def domains(self) -> dict[str, dict[str, Any]]:
        """All of it, as in `internal.GetSystemInfo`.

        Raises:
            Impossible: there is nobody who could have the uplink.
        """
        uplink = self._uplink() if any(qube.net for qube in self.qubes()) else None
        for qube in self.qubes():
            if qube.default_dispvm is not None:
                self._qubes[qube.default_dispvm].is_base = True
        drafts = {qube.name: qube for qube in self.qubes()}
        drafts.setdefault("dom0", QubeDraft("dom0", "AdminVM", "", set(), net=False))
        return {name: _told(drafts[name], uplink) for name in sorted(drafts)}

    def _uplink(self) -> str:
        """The name of a qube with the uplink of the machine."""
        for wanted in ({"AppVM"}, {"AppVM", "StandaloneVM", "TemplateVM"}):
            for number, profile in enumerate(self._universe.profiles):
                if profile.net and profile.type in wanted and profile.name not in self._qubes:
                    return self.beside(number).name
        for qube in self.qubes():
            if qube.net and qube.type != "RemoteVM":
                return qube.name
        raise Impossible


def _told(qube: QubeDraft, uplink: str | None) -> dict[str, Any]:
    is_remote = qube.type == "RemoteVM"
    provides = qube.name == uplink
    told: dict[str, Any] = {
        "type": qube.type,
        "tags": sorted(qube.tags),
        "template_for_dispvms": qube.is_base,
        "default_dispvm": qube.default_dispvm,
        "relayvm": uplink if is_remote else None,
        "transport_rpc": _FORWARDER if is_remote else None,
        "power_state": "Running",
        "uuid": qube.uuid or None,
        "netvm": uplink if qube.net and not is_remote and not provides else None,
        "template": qube.template,
        "provides_network": provides,
    }
    return told | ({"created_tags": sorted(qube.gives_tags)} if qube.gives_tags else {})
