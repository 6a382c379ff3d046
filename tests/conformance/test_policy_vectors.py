"""Decisions that an independent implementation of the policy language computed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from caisson.policy import (
    BrokenPolicy,
    PolicyError,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)

CHECKOUT = Path(__file__).parents[2]
OWN = Path(__file__).parent / "vectors" / "policy-own.jsonl"
SHARED = (
    Path(os.environ.get("CAISSON_SHARED", CHECKOUT.parent / "shared"))
    / "vectors"
    / "policy-decisions.jsonl"
)
FILES = [
    pytest.param(OWN, id="own"),
    pytest.param(
        SHARED,
        id="shared",
        marks=pytest.mark.skipif(
            not SHARED.exists(),
            reason=f"no shared vectors at {SHARED}; CAISSON_SHARED names their directory",
        ),
    ),
]


def _load(files: dict[str, str]) -> PolicySet | BrokenPolicy:
    try:
        return parse_policy(files)
    except PolicyError as e:
        return BrokenPolicy(e)


def _differences(expected: dict[str, Any], decision: dict[str, Any]) -> dict[str, Any]:
    return {k: (v, decision.get(k)) for k, v in expected.items() if v != decision.get(k)}


@pytest.mark.parametrize("evaluate", [decide, decide_by_reference])
@pytest.mark.parametrize("path", FILES)
def test_decisions_are_those_of_the_vectors(path: Path, evaluate: Any):
    """Every field that a vector states is the same: decision, targets, rule, notify and reason."""
    wrong, checked = [], 0
    for line in path.read_text().splitlines():
        vector = json.loads(line)
        policy = _load(vector["policy"])
        domains = SystemInfo.from_dict(vector["domains"])
        for request, expected in zip(vector["requests"], vector["expect"], strict=True):
            decision = evaluate(Request(**request), policy, domains).as_dict()
            checked += 1
            if different := _differences(expected, decision):
                wrong.append((vector.get("id"), request, different))
    assert checked
    assert not wrong, f"{len(wrong)} of {checked}; the first: {wrong[0]}"
