"""`caisson up` and `caisson down`: both daemons without a service manager."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from caisson.admin.client import Client
from caisson.errors import DaemonError

pytestmark = pytest.mark.root
TOP = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def _caisson(root: Path, *words: str, cwd: Path = TOP) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "caisson", *words],
        env={**os.environ, "CAISSON_ROOT": str(root)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An instance of its own, whose daemons are ended afterwards."""
    directory = tmp_path_factory.mktemp("i")
    for parent in (directory, *directory.parents[:2]):
        # The broker's user has to reach its sockets.
        parent.chmod(parent.stat().st_mode | 0o011)
    shutil.copytree(TOP / "policy.d", directory / "etc/qubes/policy.d")
    yield directory
    _caisson(directory, "down")


def _daemons(root: Path) -> dict[str, int]:
    """The processes that the supervisor looks after, by name."""
    supervisor = (root / "run/qubes/caisson-up.lock").read_text().strip()
    pids = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    names = {}
    for pid in pids:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        # A process that ends or begins has no words.
        if b"-m" in words:
            names[words[words.index(b"-m") + 1].decode().rpartition(".")[2]] = int(pid)
    return names


def test_daemons_are_up_when_the_command_returns_and_gone_when_down_returns(root: Path) -> None:
    """What comes after `caisson up --detach` in a script can rely on it."""
    client = Client(str(root))
    assert _caisson(root, "up", "--detach").returncode == 0
    assert client.lines("admin.vm.List")[0].startswith("dom0 ")
    again = _caisson(root, "up", "--detach")
    assert again.returncode == 1
    assert again.stderr.startswith("error: the daemons run already\nhint: ")
    pids = _daemons(root)
    assert set(pids) == {"qubesd", "broker"}
    assert _caisson(root, "down").returncode == 0
    for pid in pids.values():
        assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(DaemonError, match="does not run"):
        client.call("admin.vm.List")
    assert _caisson(root, "down").returncode == 1


@pytest.mark.parametrize("victim", ["qubesd", "broker"])
def test_daemon_that_is_killed_comes_back_with_its_state(root: Path, victim: str) -> None:
    """`kill -9` of either costs a moment, and no state."""
    client = Client(str(root))
    assert _caisson(root, "up", "--detach").returncode == 0
    client.call("admin.vm.feature.Set", "kept", payload=b"yes")
    pid = _daemons(root)[victim]
    os.kill(pid, signal.SIGKILL)
    _until(lambda: _daemons(root).get(victim, pid) != pid)
    _until(lambda: _kept(client))


def _kept(client: Client) -> bool:
    try:
        return client.text("admin.vm.feature.Get", "kept") == "yes"
    except DaemonError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    """Wait for other processes to bring something about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_run_from_the_current_directory(root: Path, tmp_path: Path) -> None:
    """Root may start the daemons while standing in somebody's download folder."""
    for module in ("structlog", "msgspec", "asyncio", "caisson"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
    assert _caisson(root, "up", "--detach", cwd=tmp_path).returncode == 0
    assert _caisson(root, "doctor", cwd=tmp_path).stdout
    assert _caisson(root, "down", cwd=tmp_path).returncode == 0
    _caisson(root, "doctor", cwd=tmp_path)
    assert not (tmp_path / "run").exists()


def test_daemon_that_cannot_start_says_why(root: Path) -> None:
    """The reason is on the terminal, not only in a log; what an earlier start said is not."""
    log = root / "var/log/qubes/qubesd.log"
    log.parent.mkdir(parents=True)
    log.write_text("what it said long ago\n")
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/qubes").write_text("in the way")
    failed = _caisson(root, "up", "--detach")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: `qubesd` did not start")
    assert "hint: " in failed.stderr
    assert "long ago" not in failed.stderr
    assert log.read_text().startswith("what it said long ago\n")
