"""Qubes in the making: those of a chain, and those beside it that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import msgspec

from caisson.policy.flow import bits, newborn
from caisson.policy.flow.predicates import Profile
from caisson.policy.flow.universe import Universe
from caisson.policy.rules import Rule

_REMOTE = "RemoteVM"
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
    is_relay: bool = False
    relay: str | None = None
    gives_tags: set[str] = msgspec.field(default_factory=set)

    def profile(self) -> Profile:
        """What predicates see of it."""
        return Profile(
            self.name,
            self.type,
            frozenset(self.tags),
            self.net,
            self.uuid,
            self.is_base,
            self.is_relay,
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

    def set_relay(self, relay: QubeDraft) -> None:
        """Connect a RemoteVM.

        Raises:
            Impossible: it is connected through another already.
        """
        if self.relay not in {None, relay.name}:
            raise Impossible
        self.relay, relay.is_relay = relay.name, True

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
        made.is_relay = first.is_relay and self._universe.tells_relays
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

    def root(self, qube: QubeDraft, root: QubeDraft) -> None:
        """Let a qube come from a template, maybe by the base that it is a disposable of.

        Raises:
            Impossible: it comes from another.
        """
        base = self._qubes.get(qube.template or "") if qube.type == "DispVM" else qube
        if base is root:
            return
        if base is None or base.type != "AppVM" or base.template not in {None, root.name}:
            raise Impossible
        base.template = root.name

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
            Impossible: there is nobody who could have the uplink, or need a relay.
        """
        self._connect()
        uplink = self._uplink() if any(qube.net for qube in self.qubes()) else None
        for qube in self.qubes():
            if qube.default_dispvm is not None:
                self._qubes[qube.default_dispvm].is_base = True
        drafts = {qube.name: qube for qube in self.qubes()}
        drafts.setdefault("dom0", QubeDraft("dom0", "AdminVM", "", set(), net=False))
        return {name: _told(drafts[name], uplink) for name in sorted(drafts)}

    def _connect(self) -> None:
        """Give each RemoteVM its relay, if any can be one, and each relay a RemoteVM."""
        profiles = self._universe.profiles
        for relay in self.qubes():
            if relay.is_relay and all(qube.relay != relay.name for qube in self.qubes()):
                self._first(p.type == _REMOTE for p in profiles).set_relay(relay)
        alone = [q for q in self.qubes() if q.type == _REMOTE and q.relay is None]
        if alone and any(p.is_relay for p in profiles):
            found = self._first(p.is_relay for p in profiles)
            for remote in alone:
                remote.set_relay(found)

    def _first(self, fits: Iterable[bool]) -> QubeDraft:
        """A qube beside the chain: the plainest member that fits and is not there."""
        for profile, (number, is_it) in zip(self._universe.profiles, enumerate(fits), strict=True):
            if is_it and profile.name not in self._qubes:
                return self.beside(number)
        raise Impossible

    def _uplink(self) -> str:
        """The name of a qube with the uplink of the machine."""
        for wanted in ({"AppVM"}, {"AppVM", "StandaloneVM", "TemplateVM"}):
            for number, profile in enumerate(self._universe.profiles):
                if profile.net and profile.type in wanted and profile.name not in self._qubes:
                    return self.beside(number).name
        for qube in self.qubes():
            if qube.net:
                return qube.name
        raise Impossible


def _told(qube: QubeDraft, uplink: str | None) -> dict[str, Any]:
    provides = qube.name == uplink
    told: dict[str, Any] = {
        "type": qube.type,
        "tags": sorted(qube.tags),
        "template_for_dispvms": qube.is_base,
        "default_dispvm": qube.default_dispvm,
        "relayvm": qube.relay,
        "transport_rpc": _FORWARDER if qube.type == _REMOTE else None,
        "power_state": "Running",
        "uuid": qube.uuid or None,
        "netvm": uplink if qube.net and not provides else None,
        "template": qube.template,
        "provides_network": provides,
    }
    return told | ({"created_tags": sorted(qube.gives_tags)} if qube.gives_tags else {})
