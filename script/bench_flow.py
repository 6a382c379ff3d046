"""A policy and a system of some size, for the measurements of the analyses."""

from __future__ import annotations

import random
import time
from typing import Any

from caisson.policy import PolicySet, parse_policy
from caisson.policy.flow import (
    Answer,
    Facts,
    Flows,
    Options,
    check,
    parse_assertion,
    parse_assumption,
)

_KEPT_APART = "vault"
_TYPES = ["AppVM"] * 8 + ["StandaloneVM", "TemplateVM"]
_ACTIONS = ["allow", "allow", "ask", "ask", "deny", "deny"]


def generated_policy(rules: int, qubes: int, seed: int = 1) -> PolicySet:
    """A policy of the mixed kind that people write; nothing leaves what is tagged `vault`."""
    rng = random.Random(seed)  # noqa: S311 - the same data each time
    names, tags = [f"qube-{i}" for i in range(qubes)], [f"t{i}" for i in range(20)]
    services = [f"my.Service{i}" for i in range(max(rules // 10, 1))]
    lines = [f"* * @tag:{_KEPT_APART} * deny", f"* * * @tag:{_KEPT_APART} deny"]
    for _ in range(rules - len(lines)):
        words = [rng.choice(names), f"@tag:{rng.choice(tags)}", "@anyvm", "@type:AppVM"]
        source = rng.choices(words, [5, 4, 2, 1])[0]
        words = [rng.choice(names), f"@tag:{rng.choice(tags)}", "@anyvm", "@dispvm", "@default"]
        target = rng.choices(words, [5, 4, 1, 2, 1])[0]
        action = rng.choice(_ACTIONS)
        argument = rng.choices(["*", "+", f"+a{rng.randrange(3)}"], [6, 2, 2])[0]
        line = f"{rng.choice(services)} {argument} {source} {target} {action}"
        if action != "deny" and (target == "@default" or rng.random() < 0.1):
            line += " target=gate"
        lines.append(line)
    return parse_policy({"30-user.policy": "\n".join(lines)})


def generated_system(qubes: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """A system as `internal.GetSystemInfo` tells it; one in twenty is a base of disposables."""
    rng = random.Random(seed)  # noqa: S311 - the same data each time
    found: dict[str, dict[str, Any]] = {"dom0": {"type": "AdminVM"}}
    for i in range(qubes):
        is_base = i % 20 == 0
        found[f"qube-{i}"] = {
            "type": "AppVM" if is_base else rng.choice(_TYPES),
            "tags": rng.sample([f"t{t}" for t in range(20)], 2),
            "template_for_dispvms": is_base,
            "default_dispvm": f"qube-{rng.randrange(0, qubes, 20)}",
            "power_state": "Running",
            "netvm": rng.choice([None, None, "qube-1", "qube-2"]),
            "template": None,
            "provides_network": i in {1, 2},
        }
    return found


def measured_reach(rules: int, qubes: int, options: Options) -> dict[str, float]:
    """Seconds for the flows from one qube, to it, and for an assertion about every system."""
    policy, facts = generated_policy(rules, qubes), Facts.from_dict(generated_system(qubes))
    started = time.perf_counter()
    flows = Flows(policy.rules, facts, options)
    flows.onward("qube-3")
    onward = time.perf_counter()
    flows.inward("qube-3")
    inward = time.perf_counter()
    verdict = check(
        parse_assertion(f"tag:{_KEPT_APART} never reaches netvm"),
        policy.rules,
        options,
        [
            parse_assumption(f"no tag:{_KEPT_APART} and {each}")
            for each in ("type:TemplateVM", "type:DispVM", "gate")
        ],
    )
    done = time.perf_counter()
    if verdict.answer is not Answer.HOLDS:
        raise AssertionError(f"the generated policy lets data out: {verdict.answer}")
    return {"from": onward - started, "to": inward - onward, "assertion": done - inward}
