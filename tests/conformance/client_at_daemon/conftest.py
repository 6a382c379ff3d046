"""What the tests of `qrexec-client` at the socket of a daemon share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_desk import Desk


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A desk of our own."""
    with tempfile.TemporaryDirectory() as directory:
        desk = Desk(Path(directory))
        yield desk
        desk.close()
