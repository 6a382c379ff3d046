"""Questions about policies as a whole: what a change changes, which rules can never match.

Abstraction: a policy is cut into slices, one a service and argument (`slices`); sources and
targets are told apart only as far as rules and the evaluator can (`targets`, `existing`); qubes
that do not exist are represented by those that meet just the demands of rules (`profiles`,
`census`, `future`). Nothing is sampled, and every difference was decided by the real evaluator.
Trusts the snapshot of the system that it is given; trusts no text of a policy.
Pure: no I/O, no clock. Tools and the editor of policies may call it; no decision depends on it.
"""

from __future__ import annotations

from caisson.policy.analysis.differences import Differences, differences
from caisson.policy.analysis.findings import Finding, Severity
from caisson.policy.analysis.future import Possible
from caisson.policy.analysis.lint import lint_policy, lint_redundant
from caisson.policy.analysis.outcome import Change, Direction, Outcome, Relation
from caisson.policy.analysis.texts import lint_text

__all__ = [
    "Change",
    "Differences",
    "Direction",
    "Finding",
    "Outcome",
    "Possible",
    "Relation",
    "Severity",
    "differences",
    "lint_policy",
    "lint_redundant",
    "lint_text",
]
