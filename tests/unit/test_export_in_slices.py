"""A large system is described with room for other calls, and as it was at one moment."""

from __future__ import annotations

import pytest
from model_world import World

from caisson.admin.methods import system as methods
from caisson.model.events import joined
from caisson.store.qubes_xml_write import describe


@pytest.mark.parametrize("changes", [0, 1, 1000])
def test_an_export_leaves_room_and_is_one_moment(monkeypatch: pytest.MonkeyPatch, changes: int):
    """In each pause the first and the last qube change together: never is only one of them new."""
    monkeypatch.setattr(methods, "_SLICE", 3)
    world = World()
    for number in range(8):
        world.app(f"q{number}")
    moments = [describe(world.system)]
    describing = methods._described(world.system)
    pauses = 0
    while True:
        try:
            describing.send(None)
        except StopIteration as done:
            found = done.value
            break
        pauses += 1
        if pauses <= changes:
            ends = (world.qube(name) for name in ("debian", "q7"))
            world.do(joined(world.system.plan_feature(q, "x", str(pauses)) for q in ends))
            moments.append(describe(world.system))
    assert found == moments[-1]
    assert 1 < pauses < 10
