"""The row about questions to policies as a whole: `diff` and `reach`; no daemon runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_measure import Row, clock, p50, p99

from caisson.policy import PolicySet, SystemInfo, parse_policy
from caisson.policy.analysis import differences
from caisson.policy.flow import (
    Answer,
    Facts,
    Flows,
    Options,
    check,
    parse_assertion,
    parse_assumption,
)
from caisson.tools.policy.powers import power, powerful

_KEPT_APART = "vault"
_TYPES = ["AppVM"] * 8 + ["StandaloneVM", "TemplateVM"]
_ACTIONS = ["allow", "allow", "ask", "ask", "deny", "deny"]


def _lines(rules: int, qubes: int, seed: int = 1) -> list[str]:
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
    return lines


def _policy(lines: list[str]) -> PolicySet:
    return parse_policy({"30-user.policy": "\n".join(lines)})


def _edited(lines: list[str], count: int) -> list[str]:
    """The same rules with some changed, some gone and some new, in equal parts."""
    rng, edited = random.Random(count), list(lines)  # noqa: S311 - the same data each time
    others = _lines(len(lines), 200, seed=2)[2:]
    for number in range(count):
        place = rng.randrange(2, len(edited))
        match number % 3:
            case 0:
                edited[place] = others[number]
            case 1:
                edited.insert(place, others[number])
            case _:
                del edited[place]
    return edited


def _system(qubes: int, seed: int = 1) -> dict[str, dict[str, Any]]:
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


def policy_analysis(samples: int, _work: Path) -> Row:
    """`diff` after 20 of 1,000 rules were edited, and `reach` of one qube among 200."""
    lines = _lines(1000, 200)
    old, new, other = _policy(lines), _policy(_edited(lines, 20)), _policy(_lines(1000, 200, 2))
    system = _system(200)
    info, facts = SystemInfo.from_dict(system), Facts.from_dict(system)
    options = Options(power=power, admin_services=powerful())

    def reached() -> None:
        flows = Flows(old.rules, facts, options)
        flows.onward("qube-3")
        flows.inward("qube-3")

    def asserted() -> None:
        apart = ("type:TemplateVM", "type:DispVM", "type:RemoteVM", "relay", "gate")
        verdict = check(
            parse_assertion(f"tag:{_KEPT_APART} never reaches netvm"),
            old.rules,
            options,
            [parse_assumption(f"no tag:{_KEPT_APART} and {each}") for each in apart],
        )
        if verdict.answer is not Answer.HOLDS:
            raise AssertionError(f"the generated policy lets data out: {verdict.answer}")

    parts: dict[str, Callable[[], object]] = {
        "diff": lambda: differences(old, new, info),
        "reach": reached,
        "assertion": asserted,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(max(samples // 10, 3)):
        for name, run in parts.items():
            times[name].append(clock(run) / 1e3)
    both = [diff + reach for diff, reach in zip(times["diff"], times["reach"], strict=True)]
    apart = clock(lambda: differences(old, other, info)) / 1e3
    peers = {name: p50(values) for name, values in times.items()} | {"diff-of-strangers": apart}
    return Row("policy-analysis", "s", len(both), p50(both), p99(both), p50(both),
               "<= 2 s", p50(both) <= 2, peers)  # fmt: skip
