"""The policy in force: read anew as soon as a file changes, before the next decision."""

from __future__ import annotations

import os
import time

import structlog

from caisson.errors import PolicyError
from caisson.paths import Paths
from caisson.policy import (
    BrokenPolicy,
    Files,
    PolicySet,
    parse_policy,
)
from caisson.store.policy_files import read_legacy_directory, read_policy_directory

_log = structlog.get_logger("policy")

# Two changes within one tick of the file system's clock look like one: read again after it.
_TICK_NS = 50_000_000
# What breaks a policy may be nothing that a file's state shows: no descriptor left to read it.
_MEND_NS = 1_000_000_000

Fingerprint = tuple[tuple[int, ...] | None, ...]


class Rules:
    """The policy of an instance.

    Looking is cheap (one `stat` a file), so it is done for every decision: whoever has changed
    a policy file can rely on the very next call being judged by it.
    """

    def __init__(self, paths: Paths) -> None:
        self._over, self._base = paths.policy_dirs
        self._legacy = paths.root / "etc/qubes-rpc/policy"
        self._watched: tuple[str, ...] = ()
        self._seen: Fingerprint = ()
        self._young = True
        self._mend_at = 0
        self._policy: PolicySet | BrokenPolicy = BrokenPolicy(PolicyError("it is not read yet"))
        self._files: tuple[Files, ...] | None = None
        self._sound: PolicySet | None = None
        self._told = ""

    def current(self) -> PolicySet | BrokenPolicy:
        """The policy as the files say it now; a broken one denies everything."""
        if (
            self._young
            or _fingerprint(self._watched) != self._seen
            or (self._mend_at and time.time_ns() >= self._mend_at)
        ):
            self._load()
        return self._policy

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
        self._watched = tuple(watched)
        self._seen = _fingerprint(self._watched)
        newest = max((mark[0] for mark in self._seen if mark is not None), default=0)
        # A change while the files were read is younger than `started`, and so read next time;
        # so is what went away meanwhile.
        self._young = newest + _TICK_NS > started or any(
            found and mark is None for found, mark in zip(watched.values(), self._seen, strict=True)
        )

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            _log.info(what)


def _fingerprint(paths: tuple[str, ...]) -> Fingerprint:
    marks: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            s = os.stat(path)  # noqa: PTH116 - in every decision's way
        except OSError:
            marks.append(None)
        else:
            marks.append((s.st_ctime_ns, s.st_mtime_ns, s.st_size, s.st_ino, s.st_dev))
    return tuple(marks)
