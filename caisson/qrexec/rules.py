"""The policy in force: read anew as soon as a file changes, before the next decision."""

from __future__ import annotations

import time

import structlog

from caisson.errors import PolicyError
from caisson.paths import Paths
from caisson.policy import (
    BrokenPolicy,
    Files,
    PolicySet,
    Rule,
    parse_policy,
)
from caisson.qrexec.granted import Granted
from caisson.qrexec.watching import Watch
from caisson.store.grants import Clock, GrantFile, preceded
from caisson.store.policy_files import read_legacy_directory, read_policy_directory

_log = structlog.get_logger("policy")

# What breaks a policy may be nothing that a file's state shows: no descriptor left to read it.
_MEND_NS = 1_000_000_000


class Rules:
    """The policy of an instance, with what is granted for a while before everything else.

    Looking is cheap (one `stat` a file), so it is done for every decision: whoever has changed
    a policy file can rely on the very next call being judged by it.

    Args:
        paths: the instance.
        clock: ends grants; injected by tests.
    """

    def __init__(self, paths: Paths, clock: Clock | None = None) -> None:
        self._over, self._base = paths.policy_dirs
        self._legacy = paths.legacy_policy
        self._watch = Watch()
        self._mend_at = 0
        self._policy: PolicySet | BrokenPolicy = BrokenPolicy(PolicyError("it is not read yet"))
        self._files: tuple[Files, ...] | None = None
        self._sound: PolicySet | None = None
        self._told = ""
        self._granted = Granted(GrantFile(paths, clock))
        self._put_first: tuple[Rule, ...] = ()
        self._whole: PolicySet | BrokenPolicy = self._policy

    def current(self) -> PolicySet | BrokenPolicy:
        """The policy as the files say it now; a broken one denies everything."""
        if self._watch.changed() or (self._mend_at and time.time_ns() >= self._mend_at):
            before = self._policy
            self._load()
            if self._policy is not before:
                self._whole = preceded(self._policy, self._put_first)
        if (granted := self._granted.rules()) is not self._put_first:
            self._put_first = granted
            self._whole = preceded(self._policy, granted)
        return self._whole

    def _load(self) -> None:
        started = time.time_ns()
        watched: dict[str, bool] = {}
        try:
            files = (
                read_policy_directory(self._base, watched),
                read_policy_directory(self._over, watched),
                read_legacy_directory(self._legacy, watched),
            )
            # A file that was only touched, or looked at again because it is young.
            if files != self._files:
                self._policy = self._sound = parse_policy(*files, former=self._sound)
                self._files = files
        except (PolicyError, OSError) as e:
            error = e if isinstance(e, PolicyError) else PolicyError(f"it cannot be read: {e}")
            self._policy = BrokenPolicy(error)
            self._files = None
            self._mend_at = started + _MEND_NS
            self._tell(f"the policy is broken, every call is denied: {error}")
        else:
            self._mend_at = 0
            self._tell(f"policy loaded: {len(self._policy.rules)} rules")
        self._watch.note(watched, started)

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            _log.info(what)
