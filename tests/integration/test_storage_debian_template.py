"""A Debian template, built for real from the machine's package mirror."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from grounds.engine import engine_ground
from patience import PATIENCE

from caisson.engines import Tree
from caisson.errors import StorageError
from caisson.storage import Pool
from caisson.storage import debian_template as debian

pytestmark = pytest.mark.root

RECIPE = debian.load_recipe("debian-12-minimal")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """An empty pool."""
    made = Pool(tmp_path / "pool")
    yield made
    made.close()


def assert_nothing_left(pool: Pool) -> None:
    """No layer, no half-made one, no trash."""
    pool.close()
    assert sorted(path.name for path in pool.directory.iterdir()) == [".trash"]
    assert list((pool.directory / ".trash").iterdir()) == []


async def test_a_debian_template_is_built_whole_and_clean_and_runs():
    """Built once, looked at from all sides, and started as a real qube."""
    async with engine_ground() as ground:
        pool = Pool(ground.paths.pool)
        lines: list[str] = []
        layer = await debian.build(pool, RECIPE, lines.append)
        assert pool.is_sealed(layer)
        assert_whole(pool.path(layer) / "d", lines)
        assert_clean(pool.path(layer) / "d")
        assert Path("/proc/self/mounts").read_text().count(layer) == 0  # noqa: ASYNC240  # procfs

        script = (
            "id user; curl --version | head -n 1; cat /etc/qubes-rpc/qubes.Test;"
            " touch /usr/bin/made && echo writable"
        )
        (ground.qube_files / "etc/qubes-rpc").mkdir(parents=True)
        (ground.qube_files / "etc/qubes-rpc/qubes.Test").write_text("ours\n")
        said = await ground.run(
            "",
            root=Tree("/", (layer,), pool.new_layer(like=layer), kept=False),
            host_usr=False,
            argv=("/bin/sh", "-c", f"exec 1>&2; {script}"),
        )
        assert said[0] == "uid=1000(user) gid=1000(user) groups=1000(user)"
        assert said[1].startswith("curl ")
        assert said[2:] == ["ours", "writable"]

        merged = await asyncio.to_thread(pool.flatten, [layer])
        assert pool.usage(merged) == pytest.approx(pool.usage(layer), rel=0.02)
        pool.close()


def assert_whole(tree: Path, lines: list[str]) -> None:
    """Progress was told, and what the recipe names is there."""
    assert len(lines) > 5
    assert lines[-1] == "template `debian-12-minimal` is ready"
    assert (tree / "usr/bin/curl").is_file()
    assert (tree / "etc/debian_version").read_text().startswith("12")
    assert "user:x:1000:1000:" in (tree / "etc/passwd").read_text()
    for place in ("rw", "etc/qubes-rpc", "usr/lib/qubes", "proc", "sys", "dev", "home"):
        assert (tree / place).is_dir()
        assert list((tree / place).iterdir()) == []


def assert_clean(tree: Path) -> None:
    """Ids as inside a qube, nothing of this machine, no caches, no devices."""
    for name in ("etc/machine-id", "etc/hostname", "etc/resolv.conf"):
        assert (tree / name).read_text() == ""
    names = {path.name for path in tree.rglob("*")}
    assert not [name for name in names if name.startswith("ssh_host_")]
    assert list((tree / "var/cache/apt/archives").glob("*.deb")) == []
    lists = [path for path in (tree / "var/lib/apt/lists").rglob("*") if path.is_file()]
    assert all(path.stat().st_size == 0 for path in lists)
    assert not (tree / "etc/apt/apt.conf.d/00machine").exists()

    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        assert status.st_uid < 65536, path
        assert status.st_gid < 65536, path
        kind = stat.S_IFMT(status.st_mode)
        assert kind in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}, path
    assert os.getxattr(tree / "usr/bin/ping", "security.capability")


def test_the_build_is_not_root_on_the_machine(pool: Pool, tmp_path: Path):
    """A maintainer script that breaks out of the new tree is nobody: no secrets, no pool."""
    secret = tmp_path / "secret"
    secret.write_text("canary")
    secret.chmod(0o600)
    probe = f"""
        cat {secret} && echo E: reads files of root
        ls {pool.directory} && echo E: lists the pool
        touch /usr/caisson-canary && echo E: writes to the machine
        ls -d /home/* && echo E: sees the homes of people
        mount -t tmpfs none /mnt || echo E: cannot mount for itself
        kill -0 {os.getpid()} && echo E: sees the processes of the machine
        chown 1000:1000 /tmp/template/rw || echo E: cannot give files to the user
        grep -q NoNewPrivs:.1 /proc/self/status || echo E: may gain privileges
        echo done
    """
    with pool.building() as new:
        (new.tree / "rw").mkdir()
        command = [sys.executable, "-I", "-S", str(debian._APART), str(os.getpid())]
        command += ["build", str(new.tree)]
        done = subprocess.run(
            [*command, "sh", "-c", probe], stdout=subprocess.PIPE, check=True, text=True
        )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("E: ")] == []
    assert lines[-1] == "done"
    given = (pool.path(new.id) / "d/rw").stat()
    assert (given.st_uid, given.st_gid) == (1000, 1000)
    assert not Path("/usr/caisson-canary").exists()


async def test_a_release_that_is_not_there_leaves_nothing(pool: Pool):
    """The build fails early, with apt's own reason."""
    recipe = replace(RECIPE, suite="caisson")
    with pytest.raises(StorageError, match="cannot be built") as caught:
        await debian.build(pool, recipe, lambda _: None)
    assert "caisson" in str(caught.value)
    assert "recipe" in str(caught.value.hint)
    assert_nothing_left(pool)


async def test_a_cancelled_build_leaves_no_process_and_no_layer(pool: Pool):
    """Whoever asked may go away at any time."""
    begun = asyncio.Event()

    def progress(line: str) -> None:
        if line.startswith("running apt-get"):
            begun.set()

    task = asyncio.create_task(debian.build(pool, RECIPE, progress))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    marker = next(pool.directory.glob(".new-*")).name
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_nothing_left(pool)
    assert [pid for pid, line in _commands() if marker in line] == []


def _commands() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().decode(errors="replace")
        except OSError:
            continue


async def test_a_machine_without_mmdebstrap_says_what_to_install(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
):
    """One error, one remedy."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert shutil.which("mmdebstrap") is None
    with pytest.raises(StorageError, match="`mmdebstrap` is not installed") as caught:
        await debian.build(pool, RECIPE, lambda _: None)
    assert "apt-get install mmdebstrap" in str(caught.value.hint)


async def test_a_machine_without_network_says_so(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    """A mirror that cannot be reached: the hint names the network."""
    unreachable = debian.Source("http://127.0.0.1:9/debian", "bookworm", ("main",))
    monkeypatch.setattr(debian, "machine_sources", lambda *_: [unreachable])
    with pytest.raises(StorageError) as caught:
        await debian.build(pool, RECIPE, lambda _: None)
    assert "network" in str(caught.value.hint)
    assert_nothing_left(pool)


async def test_a_mirror_with_a_wrong_signature_is_refused(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
):
    """Package signature bypass: QSB 028, 046, 067; here with keys of long ago."""
    keyring = Path("/usr/share/keyrings/debian-archive-removed-keys.gpg")
    monkeypatch.setattr(debian, "_KEYRING", keyring)
    with pytest.raises(StorageError) as caught:
        await debian.build(pool, RECIPE, lambda _: None)
    assert "debian-archive-keyring" in str(caught.value.hint)
    assert_nothing_left(pool)
