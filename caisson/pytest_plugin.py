"""The pytest plugin: tables of expected decisions as tests; policies and services for tests.

It is loaded into every run of pytest where Caisson is installed, so it imports nothing else until
a table is found or the fixture is used. The format: `docs/guides/test-a-policy.md`.
Services: `docs/guides/write-a-service.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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


class ServiceAnswer(NamedTuple):
    """What a call of a service came to."""

    code: int
    stdout: bytes
    stderr: bytes


class CallService(Protocol):
    """What the fixture `qrexec_service` is."""

    def __call__(
        self,
        service: str,
        *,
        stdin: bytes = b"",
        source: str = "caller",
        path: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> ServiceAnswer:
        """Call a service.

        Args:
            service: its name, with `+` and its argument if there is one.
            stdin: what the caller sends.
            source: the qube that seems to call.
            path: a directory with `etc/qubes-rpc` in it, relative to the run's root directory;
                None: that of the test, or the nearest one above it.
            environment: what it has beside what services have, such as another `PATH`.
            timeout: seconds after which it is ended, and the test fails.
        """


@pytest.fixture
def qrexec_service(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> CallService:
    """Call a service without a qube, as an agent would: by name, with an argument and input.

    `qrexec_service("my.GetBTCprice+EUR", source="wallet").stdout`
    """
    from caisson.tools.service import trying

    def call(
        service: str,
        *,
        stdin: bytes = b"",
        source: str = "caller",
        path: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> ServiceAnswer:
        top = pytestconfig.rootpath
        place = trying.nearest(request.path.parent, top) if path is None else top / path
        done = trying.call(service, place, stdin, source, environment or {}, timeout)
        return ServiceAnswer(done.returncode, done.stdout, done.stderr)

    return call


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    """Collect the tables among the files."""
    if not (file_path.name.startswith(_PREFIX) and file_path.name.endswith(_SUFFIX)):
        return None
    from caisson.tools.policy.pytest_tables import TableFile

    collected: pytest.File = TableFile.from_parent(parent, path=file_path)
    return collected
