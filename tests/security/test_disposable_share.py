"""A qube multiplies its limits through disposables: each of them has limits of its own.

Class: a limit that is checked for one object and not for the copies that its user may ask for.
"""

from __future__ import annotations

import pytest
from model_world import World

from caisson.errors import QubeError
from caisson.model.life_plans import MOST_DISPOSABLES


@pytest.fixture
def world() -> World:
    """A qube that may ask for disposables, a neighbour, and their base."""
    made = World()
    made.app("base", template_for_dispvms="True")
    made.app("evil", default_dispvm="base")
    made.app("work", default_dispvm="base")
    return made


def test_a_qube_gets_no_more_than_its_share_of_disposables(world: World):
    """The one too many is refused; neighbours and the admin qube are served, and it is again."""
    made = [world.disposable("evil") for _ in range(MOST_DISPOSABLES)]
    with pytest.raises(QubeError, match="`evil` has 32 disposables already"):
        world.disposable("evil")
    world.disposable("work")
    world.disposable("dom0", "base")
    world.remove(made[0].name)
    world.disposable("evil")


def test_disposables_that_ask_for_disposables_share_what_the_first_qube_may_have(world: World):
    """A chain, each link asked for by the one before."""
    last = world.disposable("evil", "base")
    for _ in range(MOST_DISPOSABLES - 1):
        last = world.disposable(last.name, "base")
    for asker in ("evil", last.name):
        with pytest.raises(QubeError, match="`evil` has 32"):
            world.disposable(asker, "base")
    world.disposable("work")


def test_tags_that_lead_in_a_circle_end_no_daemon(world: World):
    """An administrator may write such tags."""
    one = world.disposable("evil", "base")
    world.tag(one.name, f"created-by-{one.name}")
    world.disposable(one.name, "base")
