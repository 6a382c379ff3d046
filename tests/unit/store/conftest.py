"""A directory of policy files for every test of their store."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_folder import CANARY, RULE

from caisson.paths import Paths
from caisson.store.policy_store import PolicyStore


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """An instance with a policy in two files, of which one includes a third."""
    made = Paths(tmp_path)
    for directory in made.policy_dirs:
        directory.mkdir(parents=True)
    policies = made.etc / "policy.d"
    (policies / "include").mkdir()
    (policies / "30-user.policy").write_bytes(RULE)
    (policies / "include/web").write_text("work @default ask\n")
    (policies / "90-more.policy").write_text(f"!include-service my.Web +{CANARY} include/web\n")
    return made


@pytest.fixture
def store(paths: Paths) -> PolicyStore:
    """Its store, which waits for nobody."""
    return PolicyStore(paths, lock_seconds=0.0)


@pytest.fixture
def folder(paths: Paths) -> Path:
    """Where the files are."""
    return paths.etc / "policy.d"
