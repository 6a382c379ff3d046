"""Rules that decide no call of any qubes that there could be, or none that matters.

By the argument of `profiles` a rule decides some call if and only if it decides one between
qubes that meet just its own demands, so trying these few is enough. All earlier rules that
decide them instead are the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from caisson.policy.analysis.census import Census
from caisson.policy.analysis.future import Forecast
from caisson.policy.analysis.slices import Entry, Slice, slices
from caisson.policy.analysis.tables import Table, implied, keys_of, table_of
from caisson.policy.rules import Rule
from caisson.policy.syntax import Location
from caisson.policy.system import SystemInfo


def rules_that_never_match(rules: Sequence[Rule]) -> list[tuple[Rule, tuple[Rule, ...]]]:
    """The rules that decide no call, each with those that decide its calls.

    Without such rules, no qube can be what the rule speaks of.
    A line that is included several times is meant only if none of its rules decides.
    """
    census = Census(SystemInfo({}), rules, any_admin=True)
    alive: set[Location] = set()
    blockers: dict[Location, dict[Location, Rule]] = {}
    for slice_ in slices(rules, rules):
        table = table_of(slice_.old)
        for number, entry in enumerate(slice_.old):
            place = entry.rule.location
            if place in alive or place.line is None:
                continue
            deciding = _deciding(census, slice_, table, number, entry)
            if number in deciding:
                alive.add(place)
            else:
                earlier = [slice_.old[n].rule for n in sorted(deciding)]
                blockers.setdefault(place, {}).update({rule.location: rule for rule in earlier})
    dead = {rule.location: rule for rule in reversed(rules) if rule.location not in alive}
    return [
        (rule, tuple(blockers.get(place, {}).values()))
        for place, rule in reversed(dead.items())
        if place.line is not None
    ]


def redundant_rules(rules: Sequence[Rule]) -> list[Rule]:
    """The rules without which every call of any qubes is decided as it is with them.

    Each is redundant for itself; of two that repeat each other, one has to stay.
    """
    found = []
    for number, rule in enumerate(rules):
        without = (*rules[:number], *rules[number + 1 :])
        forecast = Forecast(rules, without, SystemInfo({}), any_admin=True)
        if not any(forecast.differ(slice_) for slice_ in slices(rules, without)):
            found.append(rule)
    return found


def _deciding(census: Census, slice_: Slice, table: Table, number: int, entry: Entry) -> set[int]:
    """The rules that decide calls which a rule matches; only itself, if it decides one."""
    rule = entry.rule
    covering = table.first(implied([rule.source]), implied([rule.target]))
    if covering is not None and covering < number:
        return {covering}
    found: set[int] = set()
    for case in census.cases([rule.source], [rule.target]):
        first = table.first(*keys_of(case, slice_.service, slice_.argument))
        if first == number:
            return {number}
        if first is not None and first < number:
            found.add(first)
    return found
