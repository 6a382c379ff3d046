"""What the tests of services behind sockets share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import Agent, running_agent


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent for all calls of this module."""
    with tempfile.TemporaryDirectory() as directory, running_agent(Path(directory)) as agent:
        yield agent
