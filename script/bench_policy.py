"""The rows about the policy: decisions and loads, in this process; no daemon runs."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from bench_analysis import policy_analysis
from bench_measure import Row, clock, p50, p99

from caisson.paths import Paths
from caisson.policy import (
    Ask,
    Decision,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)
from caisson.qrexec.rules import Rules

_TAGS = 50


class Ground:
    """A policy, a system and requests, as they come from a seed.

    Args:
        rules: how many.
        qubes: how many, besides dom0; every twentieth can be the base of disposables.
        services: among how many the rules are divided.
    """

    def __init__(self, rules: int, qubes: int, services: int) -> None:
        self._chance = random.Random(rules)  # noqa: S311 - the same ground for everybody
        self._names = [f"qube-{number}" for number in range(qubes)]
        self._services = [f"bench.Service{number}" for number in range(services)]
        self.lines = [self._rule() for _ in range(rules)]
        # What is said about every service stands last, as `90-default.policy` does.
        self.lines[-3:] = ["* * @tag:tag-7 @anyvm ask", "* * @type:AppVM @dispvm allow",
                           "* * @anyvm @adminvm deny notify=no"]  # fmt: skip
        self.policy = parse_policy({"30-user.policy": "\n".join(self.lines)})
        self.system = SystemInfo.from_dict(
            {"dom0": {"type": "AdminVM"}} | {name: self._qube(name) for name in self._names}
        )

    def requests(self, count: int) -> list[Request]:
        """Calls of all kinds, mostly to a qube by its name."""
        pick = self._chance.choice
        return [
            Request(
                pick(self._services),
                pick(("+", f"+a{self._chance.randrange(20)}")),
                pick(self._names),
                pick((pick(self._names), pick(self._names), pick(self._names), "@dispvm", "")),
            )
            for _ in range(count)
        ]

    def change(self) -> dict[str, object]:
        """A change of one qube, for a new snapshot."""
        name = self._chance.choice(self._names)
        return {name: self._qube(name)}

    def _rule(self) -> str:
        pick, qube = self._chance.choice, self._chance.choice(self._names)
        tag = f"@tag:tag-{self._chance.randrange(_TAGS)}"
        service, argument = pick(self._services), pick(("*", "*", "*", "+", "+a7"))
        source = pick(("*", "@anyvm", "@type:AppVM", tag, pick(self._names)))
        target = pick(("@anyvm", "@default", "@dispvm", tag, qube, f"@dispvm:{qube}"))
        action = pick(("allow", "deny", "ask"))
        if action == "allow" and target == "@default":
            action = f"allow target={qube}"
        elif action == "ask":
            action = pick(("ask", f"ask default_target={qube}", "ask autostart=no"))
        return f"{service} {argument} {source} {target} {action}"

    def _qube(self, name: str) -> dict[str, object]:
        number = int(name.rpartition("-")[2])
        return {
            "type": "AppVM", "uuid": f"00000000-0000-4000-8000-{number:012}",
            "tags": [f"tag-{self._chance.randrange(_TAGS)}" for _ in range(3)],
            "template_for_dispvms": number % 20 == 0, "default_dispvm": "qube-0",
            "power_state": self._chance.choice(("Running", "Halted")),
        }  # fmt: skip


def _answer(evaluate: Evaluator, request: Request, ground: Ground) -> None:
    decision = evaluate(request, ground.policy, ground.system)
    if isinstance(decision, Ask):
        _ = decision.targets


Evaluator = Callable[[Request, PolicySet, SystemInfo], Decision]


def _microseconds(evaluate: Evaluator, requests: list[Request], ground: Ground) -> list[float]:
    return [clock(lambda: _answer(evaluate, r, ground)) * 1e3 for r in requests]  # noqa: B023


def _decisions(ground: Ground, samples: int) -> tuple[list[float], dict[str, float]]:
    """Decisions in µs, none of a request twice in a row; and the peers.

    The peers: the reference evaluator on some of the same requests, and the first decision after
    each of a series of new snapshots.
    """
    wanted = ground.requests(200 * samples)
    _microseconds(decide, wanted[: 100 * samples], ground)
    ours = _microseconds(decide, wanted[100 * samples :], ground)
    reference = _microseconds(decide_by_reference, wanted[-samples:], ground)
    first: list[float] = []
    for request in wanted[:samples]:
        ground.system = ground.system.with_changes(ground.change())  # type: ignore[arg-type]
        first += _microseconds(decide, [request], ground)
    return ours, {"reference": p50(reference), "reference-p99": p99(reference),
                  "first-of-a-snapshot": p50(first), "first-p99": p99(first)}  # fmt: skip


def decide_100(samples: int, _work: Path) -> Row:
    """A decision, lists of targets read; 100 rules and 50 qubes."""
    ours, peers = _decisions(Ground(rules=100, qubes=50, services=10), samples)
    return Row("decide-100", "µs", len(ours), p50(ours), p99(ours), p50(ours), "p50 <= 8 µs",
               p50(ours) <= 8, peers)  # fmt: skip


def decide_10000(samples: int, _work: Path) -> Row:
    """A decision, lists of targets read; 10,000 rules and 1,000 qubes."""
    ours, peers = _decisions(Ground(rules=10_000, qubes=1000, services=200), samples)
    return Row("decide-10000", "µs", len(ours), p50(ours), p99(ours), p50(ours),
               "p50 <= 10 µs, p99 <= 100 µs", p50(ours) <= 10 and p99(ours) <= 100,
               peers)  # fmt: skip


def policy_load(samples: int, work: Path) -> Row:
    """From the look at the files to the new policy: all of 10,000 rules; one line changed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    ground = Ground(rules=10_000, qubes=1000, services=200)
    paths = Paths(work / "policy")
    for directory in paths.policy_dirs:
        directory.mkdir(parents=True)
    file = paths.policy_dirs[1] / "30-user.policy"
    file.write_text("\n".join(ground.lines))
    rules, full, again = Rules(paths), [], []
    rules.current()
    for text in _edits(ground.lines, max(samples // 2, 6)):
        full.append(clock(lambda: Rules(paths).current()))
        file.write_text(text)
        again.append(clock(rules.current))
    return Row("policy-load", "ms", len(full), p50(full), p99(full), p50(full),
               "<= 150 ms; one line changed <= 20 ms", p50(full) <= 150 and p50(again) <= 20,
               {"one-line": p50(again), "one-line-p99": p99(again)})  # fmt: skip


def _edits(lines: list[str], count: int) -> Iterator[str]:
    """Texts that each differ from the one before in a line: changed, inserted, removed, in turn."""
    lines = list(lines)
    chance = random.Random(count)  # noqa: S311
    for number in range(count):
        place, line = chance.randrange(len(lines)), f"bench.New{number} * * * deny"
        match number % 3:
            case 0:
                lines[place] = line
            case 1:
                lines.insert(place, line)
            case _:
                del lines[place]
        yield "\n".join(lines)


POLICY_ROWS: dict[str, Callable[[int, Path], Row]] = {
    "decide-100": decide_100,
    "decide-10000": decide_10000,
    "policy-load": policy_load,
    "policy-analysis": policy_analysis,
}
