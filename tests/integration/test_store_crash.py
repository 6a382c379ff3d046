"""The store under `kill -9`: after any of them there is the old state or the new one."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from grounds.store_writer import QUBES, change
from patience import PATIENCE

from caisson.model import AddQube, AddTag, Op, SetFeature, SetProperty, System
from caisson.store import Store

TESTS = Path(__file__).parent.parent
WRITER = TESTS / "grounds/store_writer.py"


def start(path: Path, steps: int = 0) -> subprocess.Popen[str]:
    """Start a writer."""
    return subprocess.Popen(
        [sys.executable, WRITER, path, str(steps)],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=TESTS.parent,
    )


def told(writer: subprocess.Popen[str]) -> list[int]:
    """The changes that a killed writer told to be written, as far as they were not read before."""
    assert writer.stdout is not None
    # Not `communicate`: with a time-out it forgets what `readline` has read ahead.
    with writer.stdout as output:
        numbers = [int(line) for line in output]
    writer.wait(PATIENCE)
    return numbers


def state_after(number: int) -> set[Op]:
    """What the store must hold after change `number`."""
    if number < 0:
        return set()
    qubes = {op for op in change(0) if isinstance(op, AddQube)}
    return qubes | {
        op for op in change(number) if isinstance(op, SetFeature | AddTag | SetProperty)
    }


def found(path: Path) -> tuple[set[Op], int]:
    """What the store holds, and the number of its last change."""
    with Store.open(path) as store:
        ops = list(store.load())
    numbers = [int(op.value) for op in ops if isinstance(op, SetFeature)]
    assert len(numbers) in (0, QUBES)
    System().load(ops)
    return set(ops), max(numbers, default=-1)


@pytest.mark.parametrize("seed", range(6))
def test_killed_writer_leaves_the_old_state_or_the_new_one(tmp_path: Path, seed: int):
    """Promise 1: no state is lost. What was told as written is there, all of it."""
    path = tmp_path / "qubes.sqlite"
    rng = random.Random(seed)
    last = -1
    for _ in range(3):
        writer = start(path)
        try:
            assert writer.stdout is not None
            for _ in range(rng.randrange(1, 40)):
                last = int(writer.stdout.readline())
        finally:
            writer.kill()
            last = max([last, *told(writer)])
        ops, number = found(path)
        assert number in (last, last + 1)
        assert ops == state_after(number)
        last = number


def test_writer_killed_within_a_transaction_leaves_no_half_of_it(tmp_path: Path):
    """Killed between any two steps of the database, on the way from nothing to a few changes."""
    path = tmp_path / "qubes.sqlite"
    rng = random.Random(0)
    last = -1
    moved = 0
    for _ in range(25):
        writer = start(path, steps=rng.randrange(1, 1500))
        last_told = max([last, *told(writer)])
        assert writer.returncode == -9
        ops, number = found(path)
        assert number in (last_told, last_told + 1)
        assert ops == state_after(number)
        moved += number > last
        last = number
    assert moved


@pytest.mark.parametrize("seed", range(8))
def test_store_killed_while_it_is_made_can_be_made_again(tmp_path: Path, seed: int):
    """A file of no or half a schema is no obstacle for the next start."""
    path = tmp_path / "qubes.sqlite"
    writer = start(path)
    try:
        seen = random.Random(seed).random() * 0.02
        while not path.exists() and writer.poll() is None:
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=seen)
    finally:
        writer.kill()
        numbers = told(writer)
    ops, number = found(path)
    last = max(numbers, default=-1)
    assert number in (last, last + 1)
    assert ops == state_after(number)
