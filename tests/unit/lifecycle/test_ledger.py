"""Every change reaches the store first, and nobody hears of one that it refused."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_lab import NET, RED, WORK, Lab, until

from caisson.errors import StorageError
from caisson.model import Klass
from caisson.names import DOM0, FeatureName, PropertyName, QubeName


async def test_a_store_that_refuses_leaves_memory_broker_and_listeners_unchanged(lab: Lab):
    """For each kind of change; afterwards all goes on."""
    await lab.network()
    states = dict(lab.door.states)
    known = lab.system.info(lab.qubes.state_of)
    lab.refuse_writes()
    layers = lab.pool.layers()
    new = QubeName("new")
    for act in (
        lambda: lab.qubes.create(Klass.APP, new, RED, None, DOM0),
        lambda: lab.qubes.remove(WORK),
        lambda: lab.qubes.set_property(WORK, PropertyName("memory"), "700"),
        lambda: lab.qubes.reset_property(WORK, PropertyName("netvm")),
        lambda: lab.qubes.set_property(None, PropertyName("default_netvm"), NET),
        lambda: lab.qubes.commit(
            lab.system.plan_feature(lab.system.qube(WORK), FeatureName("x"), "1")
        ),
        lambda: lab.install(new),
    ):
        with pytest.raises(StorageError):
            await act()
        assert lab.system.info(lab.qubes.state_of) == known
        assert lab.news() == []
        assert lab.door.states == states
        assert lab.pool.layers() == layers
    lab.refuse_writes(really=False)
    await lab.qubes.create(Klass.APP, new, RED, None, DOM0)
    assert new in lab.system.qubes


async def test_a_qube_whose_volumes_cannot_be_made_does_not_come_to_be(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    """Nobody hears of it."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise StorageError("cannot make a layer: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lab.pool, "building", fail)
        with pytest.raises(StorageError):
            await lab.app(QubeName("new"))
    assert QubeName("new") not in lab.system.qubes
    assert lab.news() == []
    await lab.app(QubeName("new"))


async def test_a_change_returns_when_the_broker_knows(lab: Lab):
    """No call is decided on a state that an administrator was told is gone."""
    lab.door.hold = asyncio.Event()
    removing = asyncio.create_task(lab.qubes.remove(WORK))
    await until(lambda: WORK not in lab.system.qubes)
    await lab.settle()
    assert not removing.done()
    assert WORK not in lab.news()
    lab.door.hold.set()
    await removing
    assert WORK not in lab.door.states


async def test_a_change_is_on_disk_when_it_returns(lab: Lab):
    """The next daemon knows it."""
    await lab.qubes.set_property(WORK, PropertyName("memory"), "700")
    await lab.restart()
    assert lab.system.value(lab.system.qube(WORK), PropertyName("memory")) == 700
    assert lab.pool.layers() == lab.known_layers()
