"""What holds for every policy, every system, every request, and whatever is granted."""

from __future__ import annotations

from typing import Any

from granting import granted
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_policy_language import UUIDS, policies, requests, systems

from caisson.errors import CaissonError
from caisson.policy import Ask, Decision, Request, SystemInfo, decide, parse_policy
from caisson.policy.grants import Grant, live, rules_of
from caisson.store.grants import preceded

OTHERS = [f"uuid:{uuid}" for name, uuid in UUIDS.items() if name != "dom0"] + [
    "uuid:00000000-0000-4000-8000-999999999999"
]
uuids = st.sampled_from(OTHERS)
places = uuids | st.just("@dispvm") | st.builds("@dispvm:{}".format, uuids)


@st.composite
def grants(draw: st.DrawFn) -> Grant:
    """A grant that is one."""
    elsewhere = draw(st.integers(0, 4)) == 0
    place = draw(places)
    source = draw(uuids)
    assume(place != source)
    return granted(
        draw(st.integers(0, 2**32 - 1)),
        service=draw(st.sampled_from(["s.X", "s.X", "s.Y"])),
        argument=draw(st.sampled_from(["*", "+", "+a", "+b"])),
        source=source,
        target="@default" if elsewhere else place,
        redirect=place if elsewhere else None,
        user=draw(st.sampled_from([None, None, "root"])),
        expires=draw(st.integers(1, 20)),
    )


def _answers(decision: Decision) -> list[dict[str, Any]]:
    """A decision and what every choice would lead to, without the name of the rule."""
    found = [decision]
    if isinstance(decision, Ask):
        found += [decision.choose(choice) for choice in (*decision.targets, "dom0")]
    return [
        {key: value for key, value in each.as_dict().items() if key not in {"rule", "text"}}
        for each in found
    ]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(grants(), max_size=6),
    st.integers(0, 21),
    policies,
    systems(),
    st.lists(requests, min_size=1, max_size=6),
)
def test_grants_decide_as_their_lines_put_first_would(
    made: list[Grant],
    now: int,
    text: str,
    domains: dict[str, dict[str, Any]],
    calls: list[Request],
):
    """A grant that holds is a line of the policy, no more; one that is over is none."""
    held = live(made, now)
    assert held == tuple(grant for grant in made if grant.expires > now)
    first = "\n".join(" ".join(grant.fields) for grant in reversed(held))
    whole = parse_policy({"00-grants.policy": first, "30-user.policy": text})
    policy = preceded(parse_policy({"30-user.policy": text}), rules_of(held))
    system = SystemInfo.from_dict(domains)
    ids = {grant.id for grant in held}
    for call in calls:
        decision, expected = decide(call, policy, system), decide(call, whole, system)
        assert _answers(decision) == _answers(expected)
        by_grant = str(expected.as_dict()["rule"]).startswith("00-grants.policy")
        assert (decision.as_dict()["rule"] in ids) == by_grant


HOSTILE = st.sampled_from(
    [
        "",
        " ",
        "*",
        "+",
        "@anyvm",
        "@adminvm",
        "@tag:t",
        "admin.vm.List",
        "a b",
        "x\n* * * * allow",
        "\0",
        "é",
    ]
) | st.text(max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["id", "service", "argument", "source", "target", "redirect", "user"]),
        HOSTILE,
        min_size=1,
        max_size=3,
    ),
    requests,
    systems(),
)
def test_whatever_is_written_into_a_grant_allows_one_service_or_nothing(
    changed: dict[str, str], call: Request, domains: dict[str, dict[str, Any]]
):
    """No text in any field makes a second rule, another action, a wildcard or an exception."""
    try:
        rules = rules_of([granted(**changed)])
    except CaissonError:
        return
    (rule,) = rules
    assert rule.service != "*"
    assert not rule.service.startswith(("admin.", "policy."))
    assert "@adminvm" not in (str(rule.target), str(rule.redirect))
    assert str(rule.source).startswith("uuid:")
    assert (rule.action, rule.notify, rule.default_target) == ("allow", False, None)
    policy = preceded(parse_policy({"30-user.policy": "* * * * deny"}), rules)
    assert decide(call, policy, SystemInfo.from_dict(domains)).as_dict()["decision"] == "deny"
