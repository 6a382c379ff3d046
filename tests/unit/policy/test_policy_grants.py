"""What a grant may say, and for how long."""

from __future__ import annotations

from typing import Any

import pytest
from granting import SECOND, VAULT, WORK, granted

from caisson.errors import CaissonError
from caisson.policy import parse_policy
from caisson.policy.grants import LONGEST_SECONDS, live, rule_of, rules_of

NIL = "uuid:00000000-0000-0000-0000-000000000000"


def test_a_grant_is_named_by_its_id_in_every_decision():
    """Audit and explanations say which grant let a call pass; it stands in no file."""
    rule = rule_of(granted(0x3FA2))
    assert (str(rule.location), rule.location.rule) == ("grant-00003fa2", "grant-00003fa2")
    assert (rule.action, rule.autostart, rule.notify) == ("allow", True, False)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, f"my.Service + {WORK} {VAULT} allow"),
        ({"argument": "*"}, f"my.Service * {WORK} {VAULT} allow"),
        ({"argument": "+a+b", "user": "root"}, f"my.Service +a+b {WORK} {VAULT} allow user=root"),
        ({"target": "@dispvm"}, f"my.Service + {WORK} @dispvm allow"),
        ({"target": f"@dispvm:{VAULT}"}, f"my.Service + {WORK} @dispvm:{VAULT} allow"),
        # A disposable of the caller's own kind is another qube.
        ({"target": f"@dispvm:{WORK}"}, f"my.Service + {WORK} @dispvm:{WORK} allow"),
        (
            {"target": "@default", "redirect": f"@dispvm:{VAULT}"},
            f"my.Service + {WORK} @default allow target=@dispvm:{VAULT}",
        ),
    ],
)
def test_a_grant_is_one_line_of_a_policy(changed: dict[str, Any], line: str):
    """It stands for the rule of that line, the place of it aside."""
    (expected,) = parse_policy({"30-user.policy": line}).rules
    rule = rule_of(granted(**changed))
    for field in expected.__struct_fields__:
        if field != "location":
            assert getattr(rule, field) == getattr(expected, field), field


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "30-user.policy"},
        {"id": "grant-00000000\n"},
        {"service": "*", "argument": "*"},
        {"service": ""},
        {"service": "my.Service allow"},
        {"service": "x" * 256},
        {"service": "admin.vm.List"},
        {"service": "policy.RegisterArgument"},
        {"service": "Admin.vm.List"},
        {"service": "POLICY.Replace"},
        {"service": "internal.GetSystemInfo"},
        {"target": "@adminvm"},
        {"target": "dom0"},
        {"target": "@adminvm", "service": "qubes.FeaturesRequest"},
        {"target": "@default", "redirect": "@adminvm"},
        {"argument": ""},
        {"argument": "a"},
        {"argument": "+*"},
        {"argument": "+a b"},
        {"argument": "+" + "a" * 1024},
        {"source": "work"},
        {"source": "*"},
        {"source": "@anyvm"},
        {"source": "@adminvm"},
        {"source": NIL},
        {"source": "uuid:"},
        {"source": WORK.upper().replace("UUID", "uuid") + "A"},
        {"source": "@tag:t"},
        {"source": f"@dispvm:{WORK}"},
        {"target": "vault"},
        {"target": "*"},
        {"target": "@anyvm"},
        {"target": "@tag:t"},
        {"target": "@type:AppVM"},
        {"target": "@dispvm:dvm"},
        {"target": "@dispvm:@tag:t"},
        {"target": NIL},
        {"target": WORK},
        {"target": "@default"},
        {"target": "@default", "redirect": "vault"},
        {"target": "@default", "redirect": "@default"},
        {"target": "@default", "redirect": WORK},
        {"target": "@dispvm", "redirect": VAULT},
        {"user": "root notify=yes"},
        {"user": ""},
    ],
)
def test_what_no_grant_may_say_is_refused(changed: dict[str, Any]):
    """Every service, administration, many qubes, qubes by name, and what is no policy at all."""
    with pytest.raises(CaissonError):
        rule_of(granted(**changed))


def test_a_grant_holds_until_its_last_nanosecond_and_not_beyond():
    """Expiry exactly at the boundary."""
    grant = granted(expires=5 * SECOND)
    assert live([grant], 5 * SECOND - 1) == (grant,)
    assert live([grant], 5 * SECOND) == ()
    assert grant.seconds_left(5 * SECOND - 1) == 1
    assert grant.seconds_left(2 * SECOND) == 3


def test_a_grant_for_longer_than_any_is_none():
    """A day at most: such a file was not written by a grant."""
    longest = granted(expires=LONGEST_SECONDS * SECOND)
    assert live([longest], 0) == (longest,)
    assert live([granted(expires=LONGEST_SECONDS * SECOND + 1)], 0) == ()


def test_the_latest_of_two_grants_counts():
    """Who grants the same call again, for another user, means the second."""
    rules = rules_of([granted(1), granted(2, user="root")])
    assert [str(rule.location) for rule in rules] == ["grant-00000002", "grant-00000001"]
