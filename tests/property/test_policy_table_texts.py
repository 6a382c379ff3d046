"""What holds for every table of expected decisions."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from test_policy_language import policies, requests, systems

from caisson.policy import BrokenPolicy, Request, SystemInfo, decide, parse_policy
from caisson.policy.table import Expectation, Table, TableError, judge, parse_table
from caisson.policy.tokens import is_admin_qube

KEYS = [
    *("source", "target", "service", "decision", "requested_source", "to", "user", "autostart"),
    *("targets", "default_target", "notify", "rule", "reason", "system", "policy-dir", "expect"),
]
VALUES = ['"work"', '"s.X+a"', '"allow"', '"deny"', '"ask"', "true", "1", "[]", '["a", "b"]', "{}"]
lines = (
    st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))
    | st.sampled_from(["[[expect]]", "[system]", "[system.work]", "[", "work = {}"])
    | st.text(max_size=10)
)


def _parsed(text: str) -> Table | TableError:
    try:
        return parse_table(text)
    except TableError as error:
        return error


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=12).map("\n".join))
def test_any_text_is_a_table_or_an_error_on_one_line(text: str):
    """No text crashes, and none is a table that expects nothing."""
    table = _parsed(text)
    if isinstance(table, TableError):
        assert table.message.isprintable()
        assert len(table.message) < 300
    else:
        assert table.cases


def _entry(call: Request, decision: dict[str, Any]) -> str:
    """An expectation of all that a decision says; TOML's strings are those of JSON here."""
    expected = {"to" if key == "target" else key: value for key, value in decision.items()}
    keys: dict[str, Any] = {
        "source": call.source,
        "target": call.target,
        "service": call.descriptor,
        "requested_source": call.requested_source,
    }
    for key in Expectation.__struct_fields__:
        if key in expected and (key, expected[key]) != ("rule", None):
            keys[key] = "" if expected[key] is None else expected[key]
    return "[[expect]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


@settings(max_examples=60, deadline=None)
@given(policies, systems(), st.lists(requests, min_size=1, max_size=4))
def test_expectation_of_what_is_decided_holds_and_of_anything_else_fails(
    text: str, domains: dict[str, dict[str, Any]], calls: list[Request]
):
    """A table that states a decision key by key holds; with one key changed it does not."""
    policy, system = parse_policy({"30-user.policy": text}), SystemInfo.from_dict(domains)
    assert not isinstance(policy, BrokenPolicy)
    for call in calls:
        if is_admin_qube(call.source):
            continue  # no policy judges it, so a table has no word for it
        entry = _entry(call, decide(call, policy, system).as_dict())
        (case,) = parse_table(entry).cases
        assert judge(case, policy, system).differences == ()
        notify = case.expectation.notify
        flipped = msgspec.structs.replace(case.expectation, notify=not notify)
        case = msgspec.structs.replace(case, expectation=flipped)
        assert [each.key for each in judge(case, policy, system).differences] == ["notify"]
