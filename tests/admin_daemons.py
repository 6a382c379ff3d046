"""A daemon that knows the admin qube only, and one with qubes, for tests of bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon that knows the admin qube only."""
    async with running_daemon(tmp_path) as running:
        yield running


@pytest.fixture
async def peopled(daemon: Daemon) -> Daemon:
    """A daemon with a template, a qube and a base for disposables."""
    await daemon.populate()
    return daemon
