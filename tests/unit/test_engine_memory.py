"""The engine in memory keeps the interface of a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from caisson.engines import Engine, Instance, MemoryEngine, RunSpec, Tree
from caisson.errors import EngineError
from caisson.names import QubeName


def spec(id_: str) -> RunSpec:
    """A small qube."""
    return RunSpec(
        id=id_,
        name=QubeName("work"),
        root=Tree("/", ("a",), "b"),
        private=None,
        host_usr=True,
        qube_files=Path("/q"),
        socket_dir=Path("/s"),
        memory_max=1,
        cpus=1,
        pids_max=1,
    )


async def test_the_memory_engine_is_an_engine():
    """The type checker says so; the calls answer."""
    engine: Engine = MemoryEngine()
    instance = await engine.start(spec("one"))
    assert isinstance(instance, Instance)
    assert await engine.adopt() == [instance]
    assert engine.barriers(instance)
    assert all(finding.ok for finding in await engine.doctor())
    await engine.close()


async def test_a_killed_instance_has_ended_and_frees_its_ids():
    """`wait` returns, the range is used again, and the instance is not adopted."""
    engine = MemoryEngine()
    one, two = await engine.start(spec("one")), await engine.start(spec("two"))
    assert one.uid_base != two.uid_base
    await engine.kill(one)
    await one.wait()
    assert await engine.adopt() == [two]
    assert (await engine.start(spec("three"))).uid_base == one.uid_base


async def test_a_stubborn_instance_ignores_a_request_to_shut_down():
    """What a time limit is for."""
    engine = MemoryEngine()
    engine.obeys = False
    instance = await engine.start(spec("one"))
    instance.terminate()
    assert not instance.ended
    await engine.kill(instance)
    assert instance.ended


async def test_a_failure_on_request_leaves_nothing():
    """The error that a test asked for."""
    engine = MemoryEngine()
    engine.fail_start = EngineError("no room")
    with pytest.raises(EngineError, match="no room"):
        await engine.start(spec("one"))
    assert await engine.adopt() == []
