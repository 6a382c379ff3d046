"""Starts of real containers that fail: each says why and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grounds.engine import BASE_LAYER, MIB, Ground, engine_ground, until

from caisson.engines import Tree
from caisson.engines.oci import kernel
from caisson.engines.oci.runtime import Runtime
from caisson.errors import EngineError

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"argv": ("/usr/lib/qubes/absent",)}, "absent"),
        ({"qube_files": Path("/nowhere")}, "nowhere"),
        ({"socket_dir": Path("/nowhere")}, "nowhere"),
        ({"root": Tree("/", ("zzzzzzzz",), None)}, "volume at `/`"),
        ({"root": Tree("/", tuple(["zzzzzzzz"] * 200), None)}, "too many"),
        ({"files": {"../outside": b""}}, "outside"),
        ({"memory_max": -5}, "cannot start"),
    ],
)
async def test_a_start_that_fails_names_the_step_and_leaves_nothing(
    ground: Ground, changes: dict[str, object], said: str
):
    """Whatever step fails: no group, no mount, no record, no process stays behind."""
    with pytest.raises(Exception, match=said) as caught:
        await ground.start(**changes)
    assert type(caught.value).__name__ in {"EngineError", "InternalError"}
    assert await ground.left() == []


@pytest.fixture
def small_pool(ground: Ground) -> Iterator[None]:
    """The pool on a disk of 8 MiB."""
    image = ground.paths.root / "disk"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, ground.paths.pool],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no loop device here: {mounted.stderr.strip()}")
    yield
    kernel.detach(str(ground.paths.pool))


async def test_a_full_disk_is_a_clear_error_and_leaves_nothing(ground: Ground, small_pool: None):
    """No room for the home directory: the error says so, and the start is undone."""
    BASE_LAYER[ground.paths] = ground.base_layer()
    spec = ground.spec()
    with contextlib.suppress(OSError), (ground.paths.pool / "filling").open("wb") as file:
        while True:
            file.write(bytes(MIB))
    number = 0
    with contextlib.suppress(OSError):
        while True:  # every last inode
            (ground.paths.pool / f"inode-{number}").touch()
            number += 1
    with pytest.raises(EngineError, match="No space left") as caught:
        await ground.engine.start(spec)
    assert "make room" in (caught.value.hint or "")
    assert await ground.left() == []


def test_an_ordinary_user_is_told_to_use_root():
    """The daemon needs root; started without it says just that."""
    code = (
        "import os\n"
        "from caisson.engines import enter_private_namespace as e\n"
        "from caisson.errors import EngineError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: e()\n"
        "except EngineError as error: print(error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "run the daemon as root\n", done.stderr


def limit_with_free(spare: int) -> int:
    """The limit of descriptors that leaves so many to be opened."""
    used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    return next(n for n in range(4096) if n - len([fd for fd in used if fd < n]) == spare)


async def test_a_shortage_of_descriptors_at_any_step_leaves_nothing(ground: Ground):
    """EMFILE at every point of a start: an error of ours or a qube, and never a remnant."""
    await ground.engine.kill(await ground.start())
    await ground.left()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = []
    for spare in range(30):
        spec = ground.spec()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with_free(spare), hard))
        try:
            instance = await ground.engine.start(spec)
        except EngineError as error:
            outcomes.append(error.message)
        else:
            outcomes.append("started")
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await ground.engine.kill(instance)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcomes[0] != "started"
    assert outcomes[-1] == "started"
    assert await ground.left() == []


def descriptors() -> list[str]:
    """What this process holds open, but for the user namespaces that an engine keeps on purpose."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return [target for target in found if not target.startswith("user:")]


async def test_no_descriptor_is_lost_over_many_starts(ground: Ground):
    """As many open descriptors after ten qubes as after one, whether they started or failed."""
    counts = []
    for _ in range(10):
        await ground.engine.kill(await ground.start())
        with pytest.raises(EngineError):
            await ground.start(argv=("/usr/lib/qubes/absent",))
        with pytest.raises(EngineError):
            await ground.start(root=Tree("/", ("zzzzzzzz",), None))
        await ground.left()
        counts.append(len(descriptors()))
    assert counts[-1] <= counts[1]


async def test_a_runtime_that_fails_is_reported_and_leaves_nothing():
    """A runtime that cannot start a container: an error with its words and a hint."""
    async with engine_ground(runtime=Runtime("crun", Path("/bin/false"))) as ground:
        with pytest.raises(EngineError, match="`crun` cannot start the qube") as caught:
            await ground.start()
        assert caught.value.hint
        assert await ground.left() == []


async def test_no_runtime_at_all_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    """Without crun and runc the error says what to install."""
    monkeypatch.setattr("caisson.engines.oci.runtime.KNOWN", ("no-such-runtime",))
    async with engine_ground() as ground:
        with pytest.raises(EngineError, match="no OCI runtime is installed") as caught:
            await ground.start()
        assert "apt install crun" in (caught.value.hint or "")
        assert await ground.left() == []


async def test_a_cancelled_start_leaves_nothing(ground: Ground):
    """A caller that goes away in the middle of a start takes the qube with it."""
    starting = asyncio.ensure_future(ground.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: not ground.engine._running and not ground.remains())
