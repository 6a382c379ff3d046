"""What the tests of clients at the socket of a broker share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A fake broker's desk."""
    desk = Desk(tmp_path)
    yield desk
    desk.close()
