"""What the tests of the model share."""

import pytest
from model_world import World


@pytest.fixture
def world() -> World:
    """A system with one template."""
    return World()


@pytest.fixture
def networked(world: World) -> World:
    """A system with sys-net and sys-firewall."""
    world.network()
    return world
