"""The policy language: text → syntax → checked rules → decision.

Trusts the snapshot of the system that it is given; trusts neither the request nor the files'
text, and answers both with a decision or a `PolicyError`, never with another exception.
Pure: no I/O, no clock. Anyone may call it; the broker is the one that acts on it.
"""

from __future__ import annotations

from types import MappingProxyType

from caisson.errors import PolicyError
from caisson.policy import load as _load
from caisson.policy import reference as _reference
from caisson.policy.index import Index
from caisson.policy.load import Files, Source
from caisson.policy.outcome import Allow, Ask, Decision, Deny, Reason, Request
from caisson.policy.rules import Action, Rule
from caisson.policy.syntax import Location
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.visit import Visits

__all__ = [
    "Action",
    "Allow",
    "Ask",
    "BrokenPolicy",
    "Decision",
    "Deny",
    "Domain",
    "Files",
    "Location",
    "PolicyError",
    "PolicySet",
    "Reason",
    "Request",
    "Rule",
    "Source",
    "SystemInfo",
    "decide",
    "decide_by_reference",
    "parse_policy",
]


class PolicySet:
    """All rules of a policy, in order, and their index. Immutable.

    Args:
        rules: in the order in which they are tried.
        visits: what its files say, for the load that comes after this.
        index: of these rules, if it is made already.
    """

    def __init__(
        self,
        rules: tuple[Rule, ...],
        visits: Visits = MappingProxyType({}),
        index: Index | None = None,
    ) -> None:
        self.rules = rules
        self.visits = visits
        self._index = index or Index(rules)

    def decide(self, request: Request, domains: SystemInfo) -> Decision:
        """Decide one call on one snapshot of the system."""
        return self._index.decide(request, domains)

    def preceded_by(self, rules: tuple[Rule, ...]) -> PolicySet:
        """This policy with a few rules tried first; costs what those rules cost."""
        index = self._index.preceded_by(rules)
        return PolicySet(index.rules, self.visits, index)


class BrokenPolicy:
    """A policy that does not load: every call is denied until it is mended."""

    def __init__(self, error: PolicyError) -> None:
        self.error = error
        self.rules: tuple[Rule, ...] = ()
        self._deny = Deny(Reason.SYNTAX, f"the policy is broken: {error.message}", notify=False)

    def decide(self, request: Request, domains: SystemInfo) -> Decision:  # noqa: ARG002
        """Deny, and say where the policy is broken."""
        return self._deny


def parse_policy(
    files: Files,
    over: Files | None = None,
    legacy: Files | None = None,
    former: PolicySet | None = None,
) -> PolicySet:
    """Make a policy of its files.

    Args:
        files: name → text of `/etc/qubes/policy.d`; included files stand beside the policies
            (`include/web`), or under their absolute path.
        over: the same of `/run/qubes/policy.d`, whose files hide those of `files` by name.
        legacy: the same of `/etc/qubes-rpc/policy`, for `!compat-4.0`.
        former: the policy before a few lines of it changed. The result is the same, sooner.

    Raises:
        PolicyError: something is wrong anywhere; names file, line and column.
    """
    source = Source(files, over or {}, legacy or {})
    return PolicySet(*_load.load(source, former.visits if former else {}))


def decide(request: Request, policy: PolicySet | BrokenPolicy, domains: SystemInfo) -> Decision:
    """Decide one call on one snapshot of the system."""
    return policy.decide(request, domains)


def decide_by_reference(
    request: Request, policy: PolicySet | BrokenPolicy, domains: SystemInfo
) -> Decision:
    """Decide as `decide` does, by trying one rule after the other."""
    if isinstance(policy, BrokenPolicy):
        return policy.decide(request, domains)
    return _reference.decide(request, policy.rules, domains)
