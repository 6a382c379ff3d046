"""The walls around a qube by name, and the judgement on what its agent reports about them.

The agent looks from inside, before any foreign code runs; a barrier that is not reported is down.
"""

from __future__ import annotations

from collections.abc import Mapping

from caisson.names import shown

BARRIERS = frozenset(
    {
        "agent-read-only",
        "bpf",
        "capabilities",
        "cgroup-read-only",
        "descriptors",
        "devices",
        "kernel-modules",
        "keyrings",
        "mount-namespace-root",
        "network",
        "no-nested-namespaces",
        "no-new-privileges",
        "pid-namespace",
        "proc-masked",
        "proc-sys-read-only",
        "seccomp",
        "sys-read-only",
        "terminal-injection",
        "user-namespace",
    }
)


def missing(untrusted_report: object, expected: frozenset[str] = BARRIERS) -> list[str]:
    """Name the expected barriers that the report does not show as up, each with its detail.

    Args:
        untrusted_report: the agent's report, decoded: `{"barriers": {name: {"up", "detail"}}}`.
        expected: what `Engine.barriers` says for this qube.
    """
    untrusted_barriers = (
        untrusted_report.get("barriers") if isinstance(untrusted_report, Mapping) else None
    )
    if not isinstance(untrusted_barriers, Mapping):
        return [f"{name} (not reported)" for name in sorted(expected)]
    down = []
    for name in sorted(expected):
        untrusted_entry = untrusted_barriers.get(name)
        if not isinstance(untrusted_entry, Mapping):
            down.append(f"{name} (not reported)")
        elif untrusted_entry.get("up") is not True:
            untrusted_detail = untrusted_entry.get("detail")
            detail = shown(untrusted_detail) if isinstance(untrusted_detail, str) else ""
            down.append(f"{name} ({detail})" if detail else name)
    return down
