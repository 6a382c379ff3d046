"""What the tests of `qrexec-client-vm` at an agent of the wire protocol share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A fake agent's desk."""
    desk = Desk(tmp_path)
    yield desk
    desk.close()
