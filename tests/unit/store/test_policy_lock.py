"""Who changes policy files keeps others who do out, and can be kept out by nobody else."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest
from policy_folder import ANY, USER

from caisson.errors import PolicyAdminError
from caisson.paths import Paths
from caisson.store.policy_lock import changing_policy
from caisson.store.policy_store import PolicyStore


def test_two_do_not_change_policy_at_the_same_time(paths: Paths, store: PolicyStore):
    """The command and the daemon hold the same lock; the second one is told to try again."""
    for _ in range(2):
        with changing_policy(paths):
            with pytest.raises(PolicyAdminError, match="somebody else"), changing_policy(paths):
                pass
            with pytest.raises(PolicyAdminError, match="somebody else"):
                store.replace(USER, ANY, b"")
    store.replace(USER, ANY, b"")


def test_who_can_open_the_policy_directory_keeps_nobody_from_changing_it(
    store: PolicyStore, folder: Path
):
    """A lock on the directory, which everybody may read, is not asked for."""
    holder = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        store.replace(USER, ANY, b"# New.\n")
    finally:
        os.close(holder)
    assert store.read(USER) == b"# New.\n"


def test_the_lock_is_made_where_no_daemon_has_run_and_is_for_nobody_else(tmp_path: Path):
    """Whatever the umask, and the file stays: whoever waits for it waits for the same one."""
    paths = Paths(tmp_path)
    before = os.umask(0)
    try:
        for _ in range(2):
            with changing_policy(paths):
                pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(paths.policy_lock.lstat().st_mode) == 0o600
    assert stat.S_IMODE(paths.run.stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory", "open to others"])
def test_what_is_no_lock_of_ours_is_not_taken_for_one(paths: Paths, tmp_path: Path, kind: str):
    """Links are not followed; and what others can open they could hold for ever."""
    elsewhere = tmp_path / "elsewhere"
    match kind:
        case "link":
            elsewhere.touch(0o600)
            paths.policy_lock.symlink_to(elsewhere)
        case "dangling":
            paths.policy_lock.symlink_to(elsewhere)
        case "fifo":
            os.mkfifo(paths.policy_lock, 0o600)
        case "directory":
            paths.policy_lock.mkdir(0o700)
        case _:
            paths.policy_lock.touch(0o644)
    with pytest.raises(PolicyAdminError, match=r"policy\.lock"), changing_policy(paths):
        pass
    assert elsewhere.exists() == (kind == "link")
