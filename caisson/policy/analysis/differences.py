"""The difference between two policies, put together."""

from __future__ import annotations

import msgspec

from caisson.errors import PolicyError
from caisson.policy import BrokenPolicy, PolicySet
from caisson.policy.analysis.existing import Comparison
from caisson.policy.analysis.future import Forecast, Possible
from caisson.policy.analysis.outcome import Change, Direction
from caisson.policy.analysis.slices import slices
from caisson.policy.rules import EVERY, Action, Rule
from caisson.policy.syntax import Location
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import ANY, NIL_UUID

_ORDER = {Direction.WIDER: 0, Direction.OTHER: 1, Direction.NARROWER: 2}


class Differences(msgspec.Struct, frozen=True):
    """What two policies decide differently.

    Args:
        existing: calls between the qubes of the system, all of them.
        future: classes of calls in systems that have more qubes.
        broken: the errors of the policies, old and new; None where a policy is sound.
    """

    existing: tuple[Change, ...]
    future: tuple[Possible, ...]
    broken: tuple[PolicyError | None, PolicyError | None] = (None, None)

    def __bool__(self) -> bool:
        return bool(self.existing or self.future)


def differences(
    old: PolicySet | BrokenPolicy,
    new: PolicySet | BrokenPolicy,
    system: SystemInfo,
    *,
    existing_only: bool = False,
) -> Differences:
    """Compare two policies: exactly, for all services, arguments, sources and targets.

    Decisions are compared whole, but for the place of the rule and the reason of a denial. A
    policy that does not load is one that denies everything and tells nobody.

    Args:
        old: the one policy.
        new: the other.
        system: the qubes that there are; without dom0, it is added.
        existing_only: leave out what concerns qubes that do not exist.
    """
    before, behind = rules_of(old), rules_of(new)
    system = _with_admin(system)
    comparison = Comparison(before, behind, system)
    forecast = Forecast(before, behind, system)
    for slice_ in slices(before, behind):
        comparison.compare(slice_)
        if not existing_only:
            forecast.compare(slice_)
    existing = comparison.changes()
    known = {_rules(change) for change in existing}
    # What changes today needs no example of qubes that happen not to run.
    future = [found for found in forecast.changes() if found.made or _rules(found) not in known]
    return Differences(
        tuple(sorted(existing, key=_place)),
        tuple(sorted(future, key=_place)),
        (_error(old), _error(new)),
    )


def rules_of(policy: PolicySet | BrokenPolicy) -> tuple[Rule, ...]:
    """The rules of a policy; of a broken one, a rule that does what it does."""
    error = _error(policy)
    if error is None:
        return policy.rules
    place = Location(error.file or "the policy", error.line)
    return (Rule(EVERY, EVERY, ANY, ANY, Action.DENY, place, notify=False),)


def _error(policy: PolicySet | BrokenPolicy) -> PolicyError | None:
    return policy.error if isinstance(policy, BrokenPolicy) else None


def _with_admin(system: SystemInfo) -> SystemInfo:
    if system.find("dom0") is not None:
        return system
    admin = Domain("dom0", "AdminVM", NIL_UUID.removeprefix("uuid:"), power_state="Running")
    return SystemInfo({**system.domains, "dom0": admin})


def _rules(change: Change | Possible) -> tuple[Location | None, ...]:
    rules = (change.old.rule, change.new.rule)
    return tuple(None if rule is None else rule.location for rule in rules)


def _place(change: Change | Possible) -> tuple[object, ...]:
    """Wider ones first, then as the rules stand."""
    rules = [outcome.rule for outcome in (change.new, change.old)]
    places = [(rule is None, rule and str(rule.location.file), _line(rule)) for rule in rules]
    return (_ORDER[change.direction], change.services, *((a, b or "", c) for a, b, c in places))


def _line(rule: Rule | None) -> int:
    return rule.location.line or 0 if rule else 0
