"""Tables of expected decisions as pytest sees them: a file of tests, one a decision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from caisson.errors import CaissonError
from caisson.policy import PolicySet, SystemInfo
from caisson.policy.table import Case, Table, TableError, judge
from caisson.store import policy_tables
from caisson.tools.terminal import harmless


class UnexpectedDecisionError(Exception):
    """A decision is not what its table expects."""


class TableFile(pytest.File):
    """A table of expected decisions."""

    def collect(self) -> Iterator[TableItem]:
        """One test for every decision that is expected.

        Raises:
            CollectError: the table cannot be used.
        """
        try:
            table = policy_tables.read_table(self.path)
            system = policy_tables.system_info_of(table, self.path)
        except TableError as error:
            raise self.CollectError(harmless(f"{self.path}: {error}")) from None
        if table.policy_dir is None or system is None:
            raise self.CollectError(f"{self.path}: a test needs both `policy-dir` and `system`")
        policy = _Policy(table, self.path)
        for case in table.cases:
            request = case.request
            target = request.target or "@default"
            name = harmless(f"expect-{case.number}[{request.source}-{target}-{request.descriptor}]")
            yield TableItem.from_parent(self, name=name, case=case, policy=policy, system=system)


class _Policy:
    """The policy of a table, loaded by the first test: one that is broken fails the tests."""

    def __init__(self, table: Table, path: Path) -> None:
        self._table, self._path = table, path

    @cached_property
    def loaded(self) -> PolicySet | None:
        return policy_tables.policy_of(self._table, self._path)


class TableItem(pytest.Item):
    """One decision that a table expects."""

    def __init__(self, *, case: Case, policy: _Policy, system: SystemInfo, **known: Any) -> None:
        super().__init__(**known)
        self._case, self._policy, self._system = case, policy, system

    def runtest(self) -> None:
        """Decide, and compare.

        Raises:
            UnexpectedDecisionError: the decision is another.
            CaissonError: the policy does not load, or the table cannot be used.
        """
        if self._policy.loaded is None:
            raise TableError("the table names no policy")
        result = judge(self._case, self._policy.loaded, self._system)
        if result.differences:
            raise UnexpectedDecisionError(f"expectation {self._case.number}: {result.text}")

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], *arguments: Any, **options: Any
    ) -> Any:
        """What was expected and what came, without a traceback."""
        if isinstance(excinfo.value, UnexpectedDecisionError | CaissonError):
            return harmless(f"{self.path}: {excinfo.value}")
        return super().repr_failure(excinfo, *arguments, **options)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test stands."""
        return self.path, None, self.name
