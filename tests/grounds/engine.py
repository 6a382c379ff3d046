"""A ground with one engine, a small template on this machine's `/usr`, and qubes that run scripts.

A script is Python, run as the first process of a qube; what it prints is what the test sees.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from patience import PATIENCE

from caisson.engines import Instance, OciEngine, RunSpec, Tree
from caisson.names import QubeName
from caisson.paths import Paths

PYTHON = os.path.realpath("/usr/bin/python3")
BASE = "aaaaaaaa"
MIB = 1 << 20
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_DIRECTORIES = (
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "run",
    "rw",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
)
_counter = itertools.count(1)

# What every attack may use; `attempt` says how an act ended, in one word.
PRELUDE = """
import ctypes, errno, os, sys
os.dup2(2, 1)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def name_of(number):
    return errno.errorcode.get(number, str(number))

def syscall(number, *arguments):
    '''The answer of a system call: `ok` or the name of its error.'''
    ctypes.set_errno(0)
    made = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *made)
    return 'ok' if result >= 0 else name_of(ctypes.get_errno())

def attempt(act, *arguments, **named):
    try:
        act(*arguments, **named)
    except OSError as error:
        return name_of(error.errno)
    return 'ok'

def say(*words):
    print(*words, flush=True)
"""


def layer_name() -> str:
    """A layer id that no other has."""
    number = next(_counter)
    letters = []
    for _ in range(7):
        number, rest = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[rest])
    return "b" + "".join(letters)


async def until(condition: Callable[[], object]) -> None:
    """Return when a condition that nothing announces holds; fail when it does not come true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.002)


class Ground:
    """One instance of Caisson with an engine and nothing else."""

    def __init__(self, engine: OciEngine, paths: Paths) -> None:
        self.engine = engine
        self.paths = paths
        self.qube_files = paths.state / "qube" / "test"
        self.sockets = paths.root / "sockets"

    def layer(self, *, writable: bool = False) -> str:
        """Make an empty layer."""
        name = layer_name()
        self.tree(name).mkdir(parents=True)
        if writable:
            (self.paths.pool / name / "w").mkdir()
        return name

    def tree(self, layer: str) -> Path:
        """Where the content of a layer is."""
        return self.paths.pool / layer / "d"

    def base_layer(self) -> str:
        """Make a layer with what a root on the machine's `/usr` needs."""
        name = self.layer()
        tree = self.tree(name)
        for directory in _DIRECTORIES:
            (tree / directory).mkdir()
        for link in ("bin", "lib", "lib64", "sbin"):
            if Path("/usr", link).exists():
                (tree / link).symlink_to(f"usr/{link}")
        (tree / "etc/passwd").write_text(
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
        )
        (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        shutil.copy("/etc/ld.so.cache", tree / "etc")
        return name

    def spec(self, script: str = "import signal; signal.pause()", **changes: Any) -> RunSpec:
        """A qube whose first process is a script."""
        files = {"script.py": (PRELUDE + textwrap.dedent(script)).encode()}
        values: dict[str, Any] = {
            "id": f"t{layer_name()}",
            "name": QubeName("work"),
            "root": Tree("/", (BASE_LAYER[self.paths],), self.layer(writable=True), kept=False),
            "private": Tree("/rw", (self.layer(),), self.layer(writable=True)),
            "host_usr": True,
            "qube_files": self.qube_files,
            "socket_dir": self.sockets,
            "memory_max": 256 * MIB,
            "cpus": 1.0,
            "pids_max": 128,
            "files": {"hostname": b"work\n", **files},
            "argv": ("/usr/bin/python3", "-I", "-S", "/etc/script.py"),
        }
        return RunSpec(**(values | changes))

    async def start(
        self, script: str = "import signal; signal.pause()", **changes: Any
    ) -> Instance:
        """Start a qube with a script."""
        return await self.engine.start(self.spec(script, **changes))

    async def run(self, script: str, **changes: Any) -> list[str]:
        """Run a script in a qube to its end; return the lines that it printed."""
        instance = await self.start(script, **changes)
        await instance.wait()
        return instance.messages().split(" | ")

    async def restart(self) -> list[Instance]:
        """Play a new daemon on the same instance; return what it adopts."""
        self.engine = OciEngine(self.paths, spares=0)
        return await self.engine.adopt()

    async def left(self) -> list[str]:
        """What remains, once the engine has done its work in the background."""
        while self.engine._background:
            await asyncio.wait(self.engine._background)
        return self.remains()

    def remains(self) -> list[str]:
        """What is left on the machine of qubes that should be gone."""
        found = [str(path) for path in self.paths.engine.glob("*")]
        instance = f"qubes-{self.paths.instance}"
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            found += [str(path) for path in (hierarchy / instance).glob("*/")]
        for link in Path("/run/caisson/ids").glob("*"):
            if str(link.readlink()).startswith(str(self.paths.root)):
                found.append(str(link))
        mounts = Path("/proc/self/mounts").read_text()
        found += [line for line in mounts.splitlines() if f"/{self.paths.instance}/q" in line]
        return found


BASE_LAYER: dict[Paths, str] = {}


def make_paths() -> Paths:
    """A new instance in a temporary directory."""
    return Paths(Path(tempfile.mkdtemp(prefix="caisson-test-")))


def furnish(ground: Ground) -> None:
    """Make the directories of an instance, its template and its files for qubes."""
    ground.paths.pool.mkdir(mode=0o700, parents=True)
    ground.paths.engine.mkdir(mode=0o700, parents=True)
    BASE_LAYER[ground.paths] = ground.base_layer()
    programs = ground.qube_files / "usr/lib/qubes"
    programs.mkdir(parents=True)
    # The agent of these tests is the machine's Python, so that it can run scripts.
    shutil.copy(PYTHON, programs / "qrexec-agent")
    ground.sockets.mkdir()


@asynccontextmanager
async def engine_ground(**options: Any) -> AsyncIterator[Ground]:
    """A furnished ground; every qube on it is ended and every trace removed."""
    paths = make_paths()
    engine = OciEngine(paths, **({"spares": 0} | options))
    ground = Ground(engine, paths)
    try:
        furnish(ground)
        yield ground
    finally:
        await ground.engine.close()
        await ground.restart()
        for instance in list(ground.engine._running.values()):
            await ground.engine.kill(instance)
        await ground.engine.close()
        BASE_LAYER.pop(paths, None)
        shutil.rmtree(paths.root)
