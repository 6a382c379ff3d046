"""The grants in force: noticed when their file changes, dropped when their time is over.

Neither needs qubesd: what was granted for ten minutes ends after ten minutes.
"""

from __future__ import annotations

import time

import structlog

from caisson.errors import StorageError
from caisson.policy import Rule
from caisson.policy.grants import Grant, live, rules_of
from caisson.qrexec.watching import Watch
from caisson.store.grants import GrantFile

_log = structlog.get_logger("policy")


class Granted:
    """The rules of all grants that hold.

    Args:
        file: where they are.
    """

    def __init__(self, file: GrantFile) -> None:
        self._file = file
        self._watch = Watch()
        self._grants: tuple[Grant, ...] = ()
        self._rules: tuple[Rule, ...] = ()
        self._next_end = 0

    def rules(self) -> tuple[Rule, ...]:
        """The rules, the same object for as long as nothing changed."""
        if self._watch.changed():
            self._read()
        elif self._grants and (now := self._file.clock.now()) >= self._next_end:
            self._take(live(self._grants, now))
        return self._rules

    def _read(self) -> None:
        self._watch.note({str(self._file.path): False}, time.time_ns())
        try:
            grants = self._file.read()
        except StorageError as error:
            _log.error("nothing is granted", error=error.message)
            grants = ()
        self._take(grants)

    def _take(self, grants: tuple[Grant, ...]) -> None:
        if grants != self._grants:
            self._grants = grants
            self._rules = rules_of(grants)
            self._next_end = min((grant.expires for grant in grants), default=0)
