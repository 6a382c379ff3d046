"""What the tests of the agent share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import Agent, running_agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An admitted agent."""
    with running_agent(tmp_path) as agent:
        yield agent


@pytest.fixture
def open_agent() -> Iterator[Agent]:
    """An agent in a directory that other users may enter."""
    with tempfile.TemporaryDirectory() as directory, running_agent(Path(directory)) as agent:
        yield agent
