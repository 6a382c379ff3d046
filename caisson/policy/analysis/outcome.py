"""What comparing decisions knows of them: their words without their place, and who says them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from caisson.policy.analysis.slices import Entry, Label
from caisson.policy.outcome import Allow, Ask, Decision, Deny
from caisson.policy.rules import Rule
from caisson.policy.system import SystemInfo

_DISPOSABLE = "@dispvm:"
_WIDTH = {"deny": 0, "ask": 1, "allow": 2}


class Direction(StrEnum):
    """Whether a change lets qubes do more."""

    WIDER = "wider"
    NARROWER = "narrower"
    OTHER = "other"


class Relation(StrEnum):
    """Which pairs of the sources and targets of a change are meant."""

    OTHERS = "others"
    ITSELF = "itself"
    ITSELF_BY_UUID = "itself-by-uuid"
    ITSELF_BY_KEYWORD = "itself-by-keyword"


class Outcome(msgspec.Struct, frozen=True):
    """What a policy decides, for all calls of one change.

    `target`: where it goes; None is what the caller asked for. `offers`: what a person can pick
    from, of which nobody is offered itself. `reason`: why it is denied. `rule`: None, no rule.
    """

    decision: str
    rule: Rule | None = None
    target: str | None = None
    user: str | None = None
    autostart: bool = True
    notify: bool = False
    offers: tuple[str, ...] = ()
    default: str | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The outcome for scripts."""
        found: dict[str, Any] = {"decision": self.decision, "notify": self.notify}
        found["rule"] = str(self.rule.location) if self.rule else None
        if self.decision == "deny":
            return found | {"reason": self.reason}
        found |= {"target": self.target, "user": self.user, "autostart": self.autostart}
        if self.decision == "ask":
            found |= {"offers": list(self.offers), "default_target": self.default}
        return found


class Change(msgspec.Struct, frozen=True):
    """Calls between qubes that exist, which two policies decide differently in the same way.

    With the relation `others` they are those of every source to every target but itself;
    otherwise those of every source to itself, by name, by uuid or as `@adminvm`.
    """

    services: tuple[Label, ...]
    old: Outcome
    new: Outcome
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    relation: Relation

    @property
    def direction(self) -> Direction:
        """Whether qubes may do more by it."""
        return direction(self.old, self.new)

    def calls(self) -> int:
        """How many pairs of source and target it is about, for each service."""
        if self.relation is not Relation.OTHERS:
            return len(self.sources)
        own = set(self.sources) & set(self.targets)
        both = len(self.sources) * len(self.targets) - len(own)
        return both - ("dom0" in self.sources and "@adminvm" in self.targets)


def outcome_of(
    decision: Decision, entry: Entry | None, offers: tuple[str, ...] | None = None
) -> Outcome:
    """A decision in words that hold for all calls that it stands for."""
    rule = entry.rule if entry else None
    if isinstance(decision, Deny):
        return Outcome("deny", rule, notify=decision.notify, reason=str(decision.reason))
    return Outcome(
        "ask" if isinstance(decision, Ask) else "allow",
        rule,
        target=str(rule.redirect) if rule and rule.redirect else None,
        user=decision.user,
        autostart=decision.autostart,
        notify=decision.notify,
        offers=(decision.targets if offers is None else offers)
        if isinstance(decision, Ask)
        else (),
        default=decision.default_target if isinstance(decision, Ask) else None,
    )


def content(decision: Decision, domains: SystemInfo) -> tuple[Any, ...]:
    """All that a decision says, but for the rule and the reason of a denial.

    A qube is one qube, by whichever of its names a rule has it.
    """
    if isinstance(decision, Deny):
        return ("deny", decision.notify)
    flags = (decision.requested_target, decision.user, decision.autostart, decision.notify)
    if isinstance(decision, Allow):
        target = _one_name(decision.target, domains)
        return ("allow", target, decision.service, decision.relay, *flags)
    targets = decision.targets
    if len(targets) == 1:
        # Only a redirect can name a qube by its uuid.
        targets = (_one_name(targets[0], domains),)
    default = decision.default_target and _one_name(decision.default_target, domains)
    return ("ask", targets, default, *flags)


_Told = TypeVar("_Told", bound=msgspec.Struct)


def with_services_together(changes: Iterable[_Told]) -> list[_Told]:
    """The changes, where those that differ in their services only are made one."""
    found: dict[_Told, tuple[Label, ...]] = {}
    for change in changes:
        services: tuple[Label, ...] = change.services  # type: ignore[attr-defined]
        bare = msgspec.structs.replace(change, services=())
        found[bare] = found.get(bare, ()) + services
    return [msgspec.structs.replace(bare, services=all_) for bare, all_ in found.items()]


def _one_name(target: str, domains: SystemInfo) -> str:
    prefix = _DISPOSABLE if target.startswith(_DISPOSABLE) else ""
    qube = domains.find(target[len(prefix) :])
    return target if qube is None else prefix + qube.name


def direction(old: Outcome, new: Outcome) -> Direction:
    """Whether a change lets qubes do more, less, or neither can be said."""
    before, behind = _WIDTH[old.decision], _WIDTH[new.decision]
    if before == behind == _WIDTH["ask"]:
        lost, won = set(old.offers) - set(new.offers), set(new.offers) - set(old.offers)
        before, behind = bool(lost), bool(won)
        if lost and won:
            return Direction.OTHER
    if before == behind:
        return Direction.OTHER
    return Direction.WIDER if behind > before else Direction.NARROWER
