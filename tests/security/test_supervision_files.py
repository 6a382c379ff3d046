"""What `caisson up` leaves where other users of the machine look.

Class: a lock or a socket of root's that anybody can take or write to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from caisson.errors import DaemonError
from caisson.paths import Paths
from caisson.tools import supervision

pytestmark = pytest.mark.root


def test_nobody_else_can_hold_the_lock_or_say_that_a_daemon_is_ready(tmp_path: Path):
    """A held lock would name a process, long gone, that root then ends."""
    paths = Paths(tmp_path)
    paths.run.mkdir(parents=True)
    with supervision._only_one(paths):
        assert stat.S_IMODE((paths.run / "caisson-up.lock").stat().st_mode) == 0o600
    notify = paths.run / "caisson-up.notify"
    with supervision._notifications(notify):
        assert stat.S_IMODE(notify.stat().st_mode) == 0o600


def test_stopping_without_root_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The lock cannot even be looked at."""

    def closed(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(DaemonError, match="needs root"):
        supervision.down(str(tmp_path))
