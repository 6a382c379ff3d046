"""What every test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from grounds.engine import Ground, engine_ground
from grounds.whole import Whole, whole_instance
from hypothesis import HealthCheck, settings

from caisson.engines import enter_private_namespace
from caisson.qrexec import sparing

ROOT = os.geteuid() == 0

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Enter a mount namespace before the first thread, as the daemon does.

    Whatever a test mounts is gone with the test run.
    """
    config.addinivalue_line("markers", "root: needs root, to start real qubes")
    # A shell has its background jobs ignore Ctrl-C, and nohup a hang-up; every program of a test
    # would inherit that, but no handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if ROOT:
        enter_private_namespace()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root without it."""
    skip = pytest.mark.skip(reason="needs root: real qubes are started")
    for item in items:
        if not ROOT and item.get_closest_marker("root"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fresh_log_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test all log lines of a qube, whatever the test before it caused."""
    monkeypatch.setattr(sparing, "_budgets", {})


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    """An engine with a small template."""
    async with engine_ground() as made:
        yield made


@pytest.fixture(scope="session")
def whole() -> Iterator[Whole]:
    """An instance with both daemons and the `host` template, for all tests that spoil nothing."""
    with whole_instance() as made:
        yield made
        made.down()
        assert made.left() == []
