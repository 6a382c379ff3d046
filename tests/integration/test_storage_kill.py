"""A daemon that dies in the middle of its work on the pool."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caisson.storage import Pool

pytestmark = pytest.mark.root

# What a daemon does, again and again; each line tells which layers its store would know.
WORK = """
import sys
from pathlib import Path
from caisson.storage import Pool, new_private
pool = Pool(Path(sys.argv[1]))
known = []
def tell():
    print(*known, flush=True)
while True:
    known.append(new_private(pool)); tell()
    for number in range(3):
        layer = pool.new_layer(like=known[0])
        (pool.path(layer) / "d" / f"file{number}").write_text("x" * 5000)
        pool.seal(layer)
        known.insert(0, layer); tell()
    merged = pool.flatten(known)
    old, known[:] = known[:], [merged]; tell()
    pool.remove(old)
    assert len(list((pool.path(merged) / "d").glob("file*"))) == 3
    known.clear(); tell()
    pool.remove([merged])
"""


@pytest.fixture
def moments() -> random.Random:
    """Where the deaths fall; the seed is shown when a test fails."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)  # noqa: T201  # shown by pytest on failure
    return random.Random(seed)


def test_kill_9_at_any_moment_leaves_only_what_the_next_start_removes(
    tmp_path: Path, moments: random.Random
):
    """Layers that the store knew are whole; everything else is found and erased."""
    place = tmp_path / "pool"
    for _ in range(12):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORK, str(place)], stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(1 + moments.randrange(12))]
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(moments.random() / 50)
        worker.send_signal(signal.SIGKILL)
        lines += worker.stdout.readlines()
        worker.wait()
        worker.stdout.close()

        known = set([line for line in lines if line.endswith("\n")][-1].split())
        pool = Pool(place)
        pool.recover()
        assert known <= pool.layers()
        for layer in known:
            sizes = {path.stat().st_size for path in (pool.path(layer) / "d").glob("file*")}
            assert sizes <= {5000}
        pool.remove(pool.orphans(()))
        pool.close()
        assert [path.name for path in place.iterdir()] == [".trash"]
        assert list((place / ".trash").iterdir()) == []
