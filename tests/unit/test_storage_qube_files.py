"""The files that every qube gets."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from caisson.errors import StorageError
from caisson.storage.qube_files import AGENT, AGENT_NAMES, lay, remove_unused

pytestmark = pytest.mark.root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small `qube` directory."""
    root = tmp_path / "qube"
    for name in ("etc/qubes-rpc/qubes.Test", "etc/profile.d/qubes.sh", "usr/lib/qubes/tool"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
        (root / name).chmod(0o600)
    (root / "README.md").write_text("not for qubes")
    return root


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """Something in the place of the agent."""
    path = tmp_path / "qrexec-agent"
    path.write_bytes(b"agent")
    return path


def test_files_are_readable_by_all_and_writable_by_root(tmp_path: Path, source: Path, agent: Path):
    """Modes do not depend on those in the source, nor on the umask."""
    laid = lay(tmp_path / "state", source, agent)
    modes = {
        str(path.relative_to(laid)): stat.S_IMODE(path.stat().st_mode)
        for path in laid.rglob("*")
        if path.is_file()
    }
    assert modes == {
        "etc/profile.d/qubes.sh": 0o644,
        "etc/qubes-rpc/qubes.Test": 0o755,
        "usr/lib/qubes/tool": 0o755,
        **dict.fromkeys((AGENT, *AGENT_NAMES), 0o755),
    }
    for path in (laid, *laid.rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (0, 0)
        assert path.is_file() or stat.S_IMODE(path.stat().st_mode) == 0o755
    assert (laid / "usr/bin/qrexec-client-vm").read_bytes() == b"agent"


def test_links_to_ports_are_services_and_other_links_are_not_for_qubes(
    tmp_path: Path, source: Path, agent: Path
):
    """A link that leads elsewhere would lay down whatever the machine has there."""
    services = source / "etc/qubes-rpc"
    (services / "qubes.ConnectTCP").symlink_to("/dev/tcp/127.0.0.1")
    for name, text in {"a": "/etc/shadow", "b": "qubes.Test", "c": "/dev/tcpx"}.items():
        (services / name).symlink_to(text)
    laid = lay(tmp_path / "state", source, agent)
    found = {path.name for path in (laid / "etc/qubes-rpc").iterdir()}
    assert found == {"qubes.Test", "qubes.ConnectTCP"}
    link = laid / "etc/qubes-rpc/qubes.ConnectTCP"
    assert str(link.readlink()) == "/dev/tcp/127.0.0.1"
    assert link.lstat().st_uid == 0
    (services / "qubes.ConnectTCP").unlink()
    (services / "qubes.ConnectTCP").symlink_to("/dev/tcp/127.0.0.1/1")
    assert lay(tmp_path / "state", source, agent) != laid


def test_the_same_content_is_laid_once(tmp_path: Path, source: Path, agent: Path):
    """A restart of the daemon changes nothing under running qubes."""
    state = tmp_path / "state"
    first = lay(state, source, agent)
    inode = (first / "usr/bin/qrexec-client-vm").stat().st_ino
    assert lay(state, source, agent) == first
    assert (first / "usr/bin/qrexec-client-vm").stat().st_ino == inode


def test_a_change_is_laid_beside_and_the_old_one_goes_when_unused(
    tmp_path: Path, source: Path, agent: Path
):
    """A running qube keeps what it was started with."""
    state = tmp_path / "state"
    old = lay(state, source, agent)
    agent.write_bytes(b"new agent")
    new = lay(state, source, agent)
    (state / "qube-files/.new-left-by-a-crash").mkdir()
    assert new != old
    script = 'mount --bind "$1/usr/lib/qubes" /mnt && echo ready && read -r line'
    command = ["unshare", "--mount", "sh", "-euc", script, "sh", str(old)]
    qube = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with qube:
        assert qube.stdout is not None
        assert qube.stdout.readline() == "ready\n"
        remove_unused(state, new)
        assert sorted((state / "qube-files").iterdir()) == sorted([new, old])
        qube.communicate("done\n")
    remove_unused(state, new)
    assert list((state / "qube-files").iterdir()) == [new]


def test_a_missing_agent_says_how_to_build_it(tmp_path: Path, source: Path):
    """The remedy is one command."""
    with pytest.raises(StorageError, match="is missing") as caught:
        lay(tmp_path / "state", source, tmp_path / "no-agent")
    assert "script/setup" in str(caught.value.hint)
    assert not (tmp_path / "state").exists()
