"""What the tests of the lifecycle share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lifecycle_lab import Lab, lifecycle_lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """An instance with `tpl`, `work` and `base`, on an engine in memory."""
    async with lifecycle_lab(tmp_path) as made:
        yield made
