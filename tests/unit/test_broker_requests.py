"""What qubesd does for the broker, which is not trusted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon

from caisson.daemons.qubesd import broker_asked
from caisson.errors import PermissionDeniedError
from caisson.names import DOM0, QubeName
from caisson.qrexec import Operation


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with `base`, a template of disposables."""
    async with running_daemon(tmp_path) as running:
        await running.populate()
        yield running


async def test_a_broker_that_was_taken_over_gets_no_disposable_of_the_admin_qube(
    daemon: Daemon,
) -> None:
    """Those have no share, and the network of their template."""
    with pytest.raises(PermissionDeniedError):
        await broker_asked(daemon.qubes, Operation.DISPOSABLE, QubeName("base"), DOM0)
    assert not [name for name in daemon.qubes.system.qubes if name.startswith("disp")]


async def test_the_broker_ends_the_disposables_of_calls_only(daemon: Daemon) -> None:
    """A disposable for a call goes when the broker says so, and no other qube does."""
    work = QubeName("work")
    made = await broker_asked(daemon.qubes, Operation.DISPOSABLE, QubeName("base"), work)
    other = QubeName(await daemon.ok("admin.vm.CreateDisposable", "base"))
    for name in (other, work):
        with pytest.raises(PermissionDeniedError):
            await broker_asked(daemon.qubes, Operation.DISCARD, name, DOM0)
    await broker_asked(daemon.qubes, Operation.DISCARD, QubeName(made), DOM0)
    assert made not in daemon.qubes.system.qubes
    assert {other, work} <= set(daemon.qubes.system.qubes)
