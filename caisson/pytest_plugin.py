"""The pytest plugin: tables of expected decisions as tests, and a policy for tests in Python.

It is loaded into every run of pytest where Caisson is installed, so it imports nothing else until
a table is found or the fixture is used. The format: `docs/guides/test-a-policy.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from caisson.store.policy_tables import PolicyUnderTest

_PREFIX, _SUFFIX = "test_", ".policy.toml"


class LoadPolicy(Protocol):
    """What the fixture `caisson_policy` is."""

    def __call__(
        self, directory: str | Path, system: str | Path | Mapping[str, Any]
    ) -> PolicyUnderTest:
        """Load a policy directory; see `PolicyUnderTest.load`."""


@pytest.fixture(scope="session")
def caisson_policy(pytestconfig: pytest.Config) -> LoadPolicy:
    """Load a policy directory and decide by it; paths are relative to the run's root directory.

    `caisson_policy("policy.d", {"work": {}, "vault": {}}).decide("work", "vault", "s.X")`
    """
    from caisson.store.policy_tables import PolicyUnderTest

    def load(directory: str | Path, system: str | Path | Mapping[str, Any]) -> PolicyUnderTest:
        top = pytestconfig.rootpath
        known = system if isinstance(system, Mapping) else top / system
        return PolicyUnderTest.load(top / directory, known)

    return load


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    """Collect the tables among the files."""
    if not (file_path.name.startswith(_PREFIX) and file_path.name.endswith(_SUFFIX)):
        return None
    from caisson.tools.policy.pytest_tables import TableFile

    collected: pytest.File = TableFile.from_parent(parent, path=file_path)
    return collected
