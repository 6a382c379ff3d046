"""`caisson policy …` about the running system: its qubes, and the policy in force."""

from __future__ import annotations

import json

import pytest
from grounds.whole import Whole

pytestmark = pytest.mark.root

CALL = {"service": "t.Explain", "argument": "+", "source": "exp-one", "target": "exp-two"}


def test_a_suggestion_that_is_followed_holds_in_the_running_system(whole: Whole) -> None:
    """Explained without options, allowed by the line that was suggested, and denied without it."""
    before = (whole.paths.etc / "policy.d/30-user.policy").read_text()
    try:
        whole.app("exp-one")
        whole.app("exp-two")
        words = ("exp-one", "exp-two", "t.Explain")
        told = json.loads(whole.command("caisson", "policy", "explain", "--json", *words).out)
        assert told["decision"]["reason"] == "no-rule"
        (line,) = (s["line"] for s in told["would_change"] if s["becomes"] == "allow")
        request = json.dumps(CALL).encode()
        denied = whole.command("caisson", "policy", "decide", stdin=request)
        assert json.loads(denied.out)["decision"] == "deny"
        whole.policy(f"{line}\n")
        allowed = whole.command("caisson", "policy", "decide", stdin=request)
        assert json.loads(allowed.out)["rule"] == "30-user.policy:1"
        explained = whole.command("caisson", "policy", "explain", *words)
        assert "allowed by 30-user.policy:1: it goes to `exp-two`" in explained.out
        table = whole.paths.root / "some.policy.toml"
        table.write_text(
            '[[expect]]\nsource = "exp-one"\ntarget = "exp-two"\nservice = "t.Explain"\n'
            'decision = "allow"\nto = "exp-two"\n'
        )
        assert whole.command("caisson", "policy", "test", str(table)).code == 0
        whole.policy(before)
        assert whole.command("caisson", "policy", "test", str(table)).code == 1
    finally:
        whole.policy(before)
        whole.discard("exp-one")
        whole.discard("exp-two")
