"""The policy in force: read anew as soon as a file changes, before the next decision."""

from __future__ import annotations

import os
import time
from pathlib import Path

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

# What breaks a policy may lie where nothing is watched: an include that is missing elsewhere.
_MEND_NS = 1_000_000_000
_MOST_WATCHED = 10_000


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
        self._told = ""
        self._granted = Granted(GrantFile(paths, clock))
        self._put_first: tuple[Rule, ...] = ()
        self._whole: PolicySet | BrokenPolicy = self._policy

    def current(self) -> PolicySet | BrokenPolicy:
        """The policy as the files say it now; a broken one denies everything."""
        if self._watch.changed() or (self._mend_at and time.time_ns() >= self._mend_at):
            self._load()
            self._whole = preceded(self._policy, self._put_first)
        if (granted := self._granted.rules()) is not self._put_first:
            self._put_first = granted
            self._whole = preceded(self._policy, granted)
        return self._whole

    def _load(self) -> None:
        started = time.time_ns()
        watched: list[str] = []
        try:
            base = self._read(self._base, watched)
            over = self._read(self._over, watched)
            _watch_tree(watched, self._legacy)
            legacy = read_legacy_directory(self._legacy)
            _watch_files(watched, self._legacy, legacy)
            self._policy = parse_policy(base, over, legacy)
        except (PolicyError, OSError) as e:
            error = e if isinstance(e, PolicyError) else PolicyError(f"it cannot be read: {e}")
            self._policy = BrokenPolicy(error)
            self._mend_at = started + _MEND_NS
            self._tell(f"the policy is broken, every call is denied: {error}")
        else:
            self._mend_at = 0
            self._tell(f"policy loaded: {len(self._policy.rules)} rules")
        self._watch.note(tuple(watched), started)

    def _read(self, directory: Path, watched: list[str]) -> Files:
        _watch_tree(watched, directory)
        files = read_policy_directory(directory)
        _watch_files(watched, directory, files)
        return files

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            _log.info(what)


def _watch_tree(watched: list[str], root: Path) -> None:
    """Watch a directory and all below it, for new and renamed files."""
    below = [directory for directory, _, _ in os.walk(root)]
    watched += below[:_MOST_WATCHED] or [str(root)]


def _watch_files(watched: list[str], root: Path, files: Files) -> None:
    watched += [str(root / name) for name in files]
