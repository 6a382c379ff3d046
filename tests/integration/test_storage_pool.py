"""Layers on a real disk, under real overlay mounts."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caisson.errors import CaissonError, StorageError
from caisson.storage import OVERLAY_OPTIONS, Pool, new_private
from caisson.storage import pool as pool_module

SET = "python3 -c 'import os, sys; os.setxattr(*sys.argv[1:3], sys.argv[3].encode())'"
GET = "python3 -c 'import os, sys; print(os.getxattr(*sys.argv[1:3]).decode())'"
CAPABLE = (
    "python3 -c 'import os, struct, sys; os.setxattr(sys.argv[1],"
    ' "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))\''
)
pytestmark = pytest.mark.root


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """An empty pool."""
    made = Pool(tmp_path / "pool")
    yield made
    made.close()


def in_overlay(pool: Pool, lower: list[str], upper: str | None, script: str) -> str:
    """Run a shell script in a mounted stack, in a mount namespace that goes with it."""
    options = f"{OVERLAY_OPTIONS},lowerdir={':'.join(f'{pool.path(i)}/d' for i in lower)}"
    if upper is not None:
        options += f",upperdir={pool.path(upper)}/d,workdir={pool.path(upper)}/w"
    else:
        options += f":{pool.directory}/.trash"
    command = 'mount -t overlay caisson -o "$1" /mnt && cd /mnt && eval "$2"'
    apart = ["unshare", "--mount", "--propagation", "private"]
    arguments = [*apart, "sh", "-euc", command, "sh", options, script]
    return subprocess.run(arguments, stdout=subprocess.PIPE, check=True, text=True).stdout


def names_in(directory: Path) -> list[str]:
    """The entries of a directory."""
    return sorted(path.name for path in directory.iterdir())


def trash_of(pool: Pool) -> list[str]:
    """What is left in the trash once the eraser rests."""
    pool.close()
    return names_in(pool.directory / ".trash")


def test_a_pool_is_closed_to_everybody_but_root(pool: Pool):
    """Files with the set-uid bit in layers are out of reach for the machine's users."""
    assert stat.S_IMODE(pool.directory.stat().st_mode) == 0o700
    layer = pool.new_layer()
    assert stat.S_IMODE(pool.path(layer).stat().st_mode) == 0o755
    assert stat.S_IMODE((pool.path(layer) / "d").stat().st_mode) == 0o755


def test_a_pool_that_was_opened_wide_is_closed_again(tmp_path: Path):
    """Whatever made the directory, the pool is root's."""
    (tmp_path / "pool").mkdir(mode=0o755)
    Pool(tmp_path / "pool").close()
    assert stat.S_IMODE((tmp_path / "pool").stat().st_mode) == 0o700


@pytest.mark.parametrize("untrusted", ["", "..", "a/../../b", "ABCDEFGH", "abcdefg", "abcdefg\n"])
def test_a_layer_id_is_never_a_path(pool: Pool, untrusted: str):
    """Untrusted names as paths: incus commit 42be307a14."""
    for method in (pool.path, pool.exists, pool.seal, pool.is_empty, pool.usage):
        with pytest.raises(CaissonError, match="layer id"):
            method(untrusted)
    with pytest.raises(CaissonError, match="layer id"):
        pool.remove([untrusted])
    with pytest.raises(CaissonError, match="layer id"):
        pool.new_layer(like=untrusted)


def test_a_private_volume_starts_with_a_home_and_usr_local(pool: Pool):
    """Ids are those of the inside: `user` is 1000."""
    tree = pool.path(new_private(pool)) / "d"
    home = (tree / "home/user").stat()
    assert (home.st_uid, home.st_gid, stat.S_IMODE(home.st_mode)) == (1000, 1000, 0o700)
    for name in ("config", "bind-dirs", "usrlocal/bin", "usrlocal/etc/qubes-rpc"):
        found = (tree / name).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o755)


def test_a_layer_without_changes_is_empty(pool: Pool):
    """Only real changes are committed; those of the root directory are real."""
    base = new_private(pool)
    upper = pool.new_layer(like=base)
    assert pool.is_empty(upper, like=base)
    in_overlay(pool, [base], upper, "ls -R >/dev/null")
    assert pool.is_empty(upper, like=base)
    in_overlay(pool, [base], upper, "chmod 700 .")
    assert not pool.is_empty(upper, like=base)
    in_overlay(pool, [base], upper, "chmod 755 . && rmdir bind-dirs")
    assert not pool.is_empty(upper, like=base)


def test_a_layer_that_never_came_to_be_is_empty(pool: Pool):
    """After a power cut the store may name a layer that the disk has not."""
    assert pool.is_empty("aaaaaaaa")
    pool.seal("aaaaaaaa")
    pool.remove(["aaaaaaaa"])


def test_root_directory_keeps_its_mode_through_commits(pool: Pool):
    """An overlay shows the root directory of its upper layer, so that one must start alike."""
    base = new_private(pool)
    one = pool.new_layer(like=base)
    in_overlay(pool, [base], one, f"chmod 1751 . && chown 7:8 . && {SET} . user.a b")
    pool.seal(one)
    two = pool.new_layer(like=one)
    shown = in_overlay(pool, [one, base], two, f"stat -c '%a %u %g' . && {GET} . user.a")
    assert shown == "1751 7 8\nb\n"


def test_a_sealed_layer_has_no_scratch_directory(pool: Pool):
    """Sealing twice is as good as once."""
    layer = pool.new_layer()
    assert not pool.is_sealed(layer)
    pool.seal(layer)
    pool.seal(layer)
    assert pool.is_sealed(layer)
    assert names_in(pool.path(layer)) == ["d"]


def test_commits_show_what_the_qube_saw(pool: Pool):
    """Whiteouts, opaque and renamed directories mean the same in a committed layer."""
    base = pool.new_layer()
    tree = pool.path(base) / "d"
    for name in ("a/x", "a/y", "b/deep/z", "c/old"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    pool.seal(base)
    upper = pool.new_layer(like=base)
    script = "rm a/x && mv b d && rm -r c && mkdir c && echo new >c/new && mv d/deep/z d/w"
    listing = "find . -type f -exec grep -H . {} + | sort"
    before = in_overlay(pool, [base], upper, f"{script} && {listing}")
    pool.seal(upper)
    assert in_overlay(pool, [upper, base], None, listing) == before
    merged = pool.flatten([upper, base])
    assert in_overlay(pool, [merged], None, listing) == before
    assert in_overlay(pool, [merged], pool.new_layer(like=merged), listing) == before


def test_flattening_keeps_everything_that_a_file_has(pool: Pool):
    """Owners, modes, times, links, attributes, capabilities, holes, fifos and sockets."""
    base = new_private(pool)
    upper = pool.new_layer(like=base)
    script = f"""
        cd home/user
        echo text >file; chown 1000:1000 file; chmod 4750 file; touch -d @1234567 file
        ln file second; ln -s /etc/shadow link; mkfifo fifo; truncate -s 64M holes
        {SET} file user.note hello
        cp /bin/true ping; {CAPABLE} ping
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
    """
    in_overlay(pool, [base], upper, script)
    pool.seal(upper)
    tree = pool.path(pool.flatten([upper, base])) / "d/home/user"
    file = (tree / "file").stat()
    assert (file.st_uid, stat.S_IMODE(file.st_mode), file.st_mtime) == (1000, 0o4750, 1234567)
    assert file.st_ino == (tree / "second").stat().st_ino
    assert (tree / "link").readlink() == Path("/etc/shadow")
    assert stat.S_ISFIFO((tree / "fifo").lstat().st_mode)
    assert stat.S_ISSOCK((tree / "socket").lstat().st_mode)
    assert (tree / "holes").stat().st_blocks * 512 < 1 << 20
    assert os.getxattr(tree / "file", "user.note") == b"hello"
    assert os.getxattr(tree / "ping", "security.capability")
    names = [n for p in tree.rglob("*") for n in os.listxattr(p, follow_symlinks=False)]
    assert not any(name.startswith("trusted.overlay") for name in names)


def test_flattening_follows_no_link_out_of_the_layer(pool: Pool, tmp_path: Path):
    """A link is copied as a link; what it names is never read."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    base, upper = pool.new_layer(), pool.new_layer()
    (pool.path(base) / "d/link").symlink_to(tmp_path / "secret")
    (pool.path(upper) / "d/other").symlink_to("/proc/self/root/etc/shadow")
    tree = pool.path(pool.flatten([upper, base])) / "d"
    assert (tree / "link").is_symlink()
    assert (tree / "other").is_symlink()


def test_a_stack_with_a_missing_layer_is_not_flattened(pool: Pool):
    """Nothing half made stays behind."""
    base = pool.new_layer()
    with pytest.raises(StorageError, match="`aaaaaaaa` is not in the pool"):
        pool.flatten([base, "aaaaaaaa"])
    assert pool.layers() == {base}
    assert trash_of(pool) == []
    with pytest.raises(StorageError, match="nothing to flatten"):
        pool.flatten([])


def test_removed_layers_vanish_at_once_and_are_erased_soon(pool: Pool):
    """The caller does not wait for the deletion."""
    layer = new_private(pool)
    pool.remove([layer])
    assert not pool.exists(layer)
    assert trash_of(pool) == []


def test_erasing_follows_no_links_and_crosses_no_mounts(pool: Pool, tmp_path: Path):
    """What is only linked or mounted in a layer survives its removal."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    layer = pool.new_layer()
    tree = pool.path(layer) / "d"
    (tree / "link").symlink_to(outside)
    (tree / "mounted").mkdir()
    subprocess.run(["mount", "--bind", outside, tree / "mounted"], check=True)
    try:
        pool.remove([layer])
        assert trash_of(pool) == []
        assert (outside / "kept").read_text() == "kept"
    finally:
        for moved in (tree / "mounted", *pool.directory.glob(".trash/*/d/mounted")):
            subprocess.run(["umount", moved], stderr=subprocess.DEVNULL, check=False)


def test_a_very_deep_tree_is_erased(pool: Pool):
    """A qube may nest directories beyond any path length."""
    layer = pool.new_layer()
    script = (
        "import os\n"
        f"os.chdir({str(pool.path(layer) / 'd')!r})\n"
        "for _ in range(3000):\n os.mkdir('deep'); os.chdir('deep')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    pool.remove([layer])
    assert trash_of(pool) == []


def test_nothing_is_erased_once_the_daemon_is_gone(tmp_path: Path):
    """Also if it died before the child that erases could be tied to it: the next start erases."""
    (tmp_path / "kept").touch()
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    command = [sys.executable, "-I", "-S", str(pool_module._APART), str(nobody.pid)]
    done = subprocess.run([*command, "erase", str(tmp_path)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"the parent is gone\n")
    assert names_in(tmp_path) == ["kept"]


def test_the_next_start_cleans_up_after_a_kill(pool: Pool):
    """Half-made layers and half-erased ones are gone after `recover`; whole ones stay."""
    whole = pool.new_layer()
    (pool.directory / ".new-aaaaaaaa" / "d" / "x").mkdir(parents=True)
    (pool.directory / ".trash" / "bbbbbbbb.1" / "d").mkdir(parents=True)
    again = Pool(pool.directory)
    again.recover()
    assert trash_of(again) == []
    assert again.layers() == {whole}
    assert names_in(pool.directory) == [".trash", whole]


def test_orphans_are_what_nobody_knows(pool: Pool):
    """A layer that a crash left before the store knew it is found."""
    known, lost = pool.new_layer(), pool.new_layer()
    assert pool.orphans({known}) == {lost}


def test_a_failure_while_building_leaves_nothing(pool: Pool):
    """A layer appears whole or not at all."""
    with pytest.raises(RuntimeError), pool.building() as new:  # noqa: PT012  # its body fails
        (new.tree / "x").write_text("x")
        raise RuntimeError
    assert pool.layers() == set()
    assert trash_of(pool) == []


def test_a_taken_id_is_never_used_again(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    """A layer that is there survives a collision of random ids."""
    numbers = iter([b"\0" * 5, b"\0" * 5, b"\1" * 5])
    monkeypatch.setattr(pool_module.secrets, "token_bytes", lambda _: next(numbers))
    assert pool.new_layer() == "aaaaaaaa"
    assert pool.new_layer() == "aeaqcaib"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    options = ["-o", "size=1m,nr_inodes=200"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "small", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_gives_one_clear_error_and_leaves_nothing(small_disk: Path):
    """Space that runs out while flattening: the layers are as before."""
    pool = Pool(small_disk / "pool")
    layer = pool.new_layer()
    (pool.path(layer) / "d/big").write_bytes(b"x" * 700_000)
    with pytest.raises(StorageError, match=r"[Nn]o space left") as caught:
        pool.flatten([layer])
    assert caught.value.hint is not None
    assert "free some space" in caught.value.hint
    assert pool.layers() == {layer}
    assert trash_of(pool) == []


def test_a_disk_without_inodes_makes_no_half_layers(small_disk: Path):
    """Space that runs out while making a layer."""
    pool = Pool(small_disk / "pool")
    made = set()
    error = None
    while error is None:
        try:
            made.add(new_private(pool))
        except StorageError as refusal:
            error = refusal
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.ENOSPC
    assert trash_of(pool) == []
    assert names_in(pool.directory) == sorted([".trash", *made])


def test_usage_counts_what_the_layer_holds(pool: Pool):
    """Bytes on disk; holes do not count."""
    layer = pool.new_layer()
    empty = pool.usage(layer)
    with (pool.path(layer) / "d/file").open("wb") as file:
        file.write(b"x" * 1_000_000)
        file.truncate(1 << 30)
    assert 1_000_000 <= pool.usage(layer) - empty < 1_100_000
    with pytest.raises(StorageError):
        pool.usage("aaaaaaaa")


def test_index_must_stay_off_because_a_commit_would_split_hard_links(pool: Pool):
    """Why `OVERLAY_OPTIONS` has `index=off`: what a session shows is what the next one shows."""
    base = pool.new_layer()
    (pool.path(base) / "d/a").write_text("old\n")
    (pool.path(base) / "d/b").hardlink_to(pool.path(base) / "d/a")
    pool.seal(base)
    upper = pool.new_layer(like=base)
    before = in_overlay(pool, [base], upper, "echo new >a; cat a b")
    pool.seal(upper)
    assert in_overlay(pool, [upper, base], None, "cat a b") == before
    merged = pool.flatten([upper, base])
    assert in_overlay(pool, [merged], None, "cat a b") == before
