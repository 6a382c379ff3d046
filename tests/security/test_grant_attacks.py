"""Attacks on grants: by a broker that a hostile qube has taken over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from broker_rig import broker_account, broker_rig
from granting import granted

from caisson.store.grants import GrantFile

pytestmark = pytest.mark.root

ATTACKS: tuple[Callable[[Path], object], ...] = (
    lambda file: file.write_text("{}"),
    lambda file: file.open("a").close(),
    lambda file: file.unlink(),
    lambda file: (file.parent.parent / "prompt").rename(file),
    lambda file: (file.parent / "more.json").write_text("{}"),
    lambda file: file.chmod(0o666),
    lambda file: os.utime(file, (0, 0)),
    lambda file: file.parent.rename(file.parent.with_name("old")),
    lambda file: file.parent.parent.rename(file.parent.parent.parent / "q"),
)
"""What would extend a grant, or make one, if it succeeded."""


async def test_a_taken_over_broker_grants_nothing():
    """It reads the file, and decides by it; but what it makes of it dies with it."""
    account = broker_account()
    async with broker_rig() as rig:
        file = GrantFile(rig.paths)
        file.write([granted()])
        before = file.path.read_bytes(), file.path.stat()
        os.setegid(account.pw_gid)
        os.seteuid(account.pw_uid)
        try:
            assert file.path.read_bytes() == before[0]
            for attack in ATTACKS:
                with pytest.raises(PermissionError):
                    attack(file.path)
        finally:
            os.seteuid(0)
            os.setegid(0)
        assert (file.path.read_bytes(), file.path.stat()) == before
