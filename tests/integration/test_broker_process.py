"""The broker as a process of the machine: its rights, and its start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from broker_rig import broker_account, broker_rig

pytestmark = pytest.mark.root


async def test_broker_holds_no_privilege():
    """No capability, no group, no way to new privileges, no core, no debugger."""
    async with broker_rig("") as rig:
        process = Path(f"/proc/{rig.process.pid}")
        status = dict(
            line.split(":\t", 1) for line in (process / "status").read_text().splitlines()
        )
        account = broker_account()
        assert status["Uid"].split() == [str(account.pw_uid)] * 4
        assert status["Gid"].split() == [str(account.pw_gid)] * 4
        assert status["Groups"].strip() == ""
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"
        assert (process / "environ").stat().st_uid == 0, "it is dumpable"
        limits = (process / "limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core")]
        assert core.split()[4:6] == ["0", "0"]


def test_broker_names_a_missing_user(tmp_path: Path):
    """One clear error with a hint, and an exit code."""
    result = subprocess.run(
        [sys.executable, "-m", "caisson.daemons.broker", "--root", tmp_path, "--user", "nosuch"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "error: the broker's user `nosuch` does not exist\nhint: " in result.stderr
