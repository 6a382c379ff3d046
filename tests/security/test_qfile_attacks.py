"""Attacks on the receiver of files: what a hostile sender, or a hostile neighbour, would get."""

from __future__ import annotations

import errno
import os
import platform
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE, eventually
from qfile_peer import (
    EEXIST,
    EILSEQ,
    ENOLINK,
    Receiver,
    directory,
    ended,
    file,
    in_home,
    link,
    names,
    stream,
)

NOBODY = 65534
PPOLL = {"x86_64": 271, "aarch64": 73}[platform.machine()]
LANDLOCK = "444,445,446"
LANDLOCK_AND_MOUNT = LANDLOCK + ",428"
REFUSING = Path(__file__).parents[1] / "refusing_calls.py"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What the attacker wants to write to; `in` beside it is where files are received."""
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


WITHOUT_EFFECT = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | 0x2000
"""Flags of a mount; the last is `ST_NOSYMFOLLOW` (linux/statfs.h)."""


def named_program(home: Path) -> Path:
    """The receiver under its own name."""
    path = home / "qfile-unpacker"
    path.symlink_to(BINARY)
    return path


@pytest.mark.parametrize("options", [[], ["--allow-all-names"], ["--allow-unsafe-symlinks"]])
@pytest.mark.parametrize(
    "name",
    [b"../outside/x", b"d/../../outside/x", b"//outside/x", b"l/x", b"d/l/x", b"d/l", b"l"],
)
def test_no_name_leads_out(tmp_path: Path, outside: Path, options: list[str], name: bytes) -> None:
    """Dots, slashes, links sent before and links that lay there (QSB-014, CVE-2024-1753)."""
    (tmp_path / "in/d").mkdir()
    (tmp_path / "in/l").symlink_to(outside)
    (tmp_path / "in/d/l").symlink_to("../../outside")
    for sent in (file(name, b"x"), directory(name), link(name, b"x")):
        assert Receiver(tmp_path / "in", options).take(stream(sent)).exit_code != 0
    absolute = Receiver(tmp_path / "in", options).take(stream(file(bytes(outside) + b"/x")))
    assert absolute.code == EILSEQ
    assert names(outside) == set()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


def test_no_tree_of_links_leads_out(tmp_path: Path, outside: Path) -> None:
    """Each link alone, and one through the other."""
    (outside / "secret").write_text("secret")
    trees = [
        [link(b"d/l", b"../../outside/secret")],
        [directory(b"d/e"), link(b"d/e/l", b"../../../outside/secret")],
        [directory(b"d/e"), link(b"d/e/l", b"x/../../../outside/secret")],
        [link(b"d/a", b"."), link(b"d/b", b"a/../../outside/secret")],
        [link(b"d/a", b"b"), link(b"d/b", b"/")],
    ]
    for number, tree in enumerate(trees):
        place = tmp_path / "in" / str(number)
        place.mkdir()
        received = Receiver(place).take(stream(directory(b"d"), *tree))
        assert received.code == ENOLINK
        for path in place.rglob("*"):
            assert outside not in path.resolve().parents


@pytest.mark.parametrize(
    ("path", "what"),
    [("QubesIncoming", "link"), ("QubesIncoming/work", "link"), ("QubesIncoming", "file")],
)
def test_the_incoming_directory_is_no_link(tmp_path: Path, path: str, what: str) -> None:
    """A link laid there by something in this qube does not turn files elsewhere (QSB-014)."""
    elsewhere = tmp_path / "autostart"
    elsewhere.mkdir()
    (tmp_path / path).parent.mkdir(exist_ok=True)
    if what == "link":
        (tmp_path / path).symlink_to(elsewhere)
    else:
        (tmp_path / path).touch()
    received = in_home(tmp_path, stream(file(b"a")))
    assert (received.exit_code, received.result) == (1, None)
    assert "QubesIncoming/work" in received.stderr
    assert list(elsewhere.rglob("*")) == []


@pytest.mark.root
@pytest.mark.parametrize("path", ["QubesIncoming", "QubesIncoming/work"])
def test_the_incoming_directory_is_nobody_elses(tmp_path: Path, path: str) -> None:
    """Who owns it could take what arrives, and put other things in its place (QSB-014)."""
    (tmp_path / path).mkdir(parents=True)
    os.chown(tmp_path / path, NOBODY, NOBODY)
    received = in_home(tmp_path, stream(file(b"a")))
    assert (received.exit_code, received.result) == (1, None)
    assert list(tmp_path.rglob("a")) == []


@pytest.mark.parametrize("source", ["", ".", "..", "../x", "a/b", "/tmp", "a\nb", "x" * 32, "@x"])
def test_a_source_that_is_no_qube_is_refused(tmp_path: Path, source: str) -> None:
    """Its name becomes that of a directory."""
    received = in_home(tmp_path, stream(file(b"a")), source=source)
    assert (received.exit_code, received.result) == (1, None)
    assert names(tmp_path) == set()


def test_nothing_follows_a_directory_that_is_moved_away(tmp_path: Path, outside: Path) -> None:
    """A neighbour moves the directory while it is filled (QSB-014): the kernel refuses the next."""
    process = Receiver(tmp_path / "in").start()
    assert process.stdin is not None
    process.stdin.write(stream(directory(b"d"), directory(b"d/e"), file(b"d/e/1"), end=b""))
    process.stdin.flush()
    eventually((tmp_path / "in/d/e/1").exists)
    (tmp_path / "in/d").rename(outside / "d")
    received = ended(process, stream(file(b"d/e/2", b"x"), directory(b"d")))
    assert received.code == errno.EACCES
    assert names(outside / "d/e") == {b"1"}


def test_nothing_follows_a_directory_that_becomes_a_link(tmp_path: Path, outside: Path) -> None:
    """Swapped between two files (QSB-014): what comes later stays within the directory."""
    process = Receiver(tmp_path / "in").start()
    assert process.stdin is not None
    process.stdin.write(stream(directory(b"d"), file(b"d/1"), file(b"x"), end=b""))
    process.stdin.flush()
    eventually((tmp_path / "in/x").exists)
    (tmp_path / "in/d").rename(tmp_path / "in/old")
    (tmp_path / "in/d").symlink_to(outside)
    received = ended(process, stream(file(b"d/2", b"x"), directory(b"d", 0o777)))
    assert received.code == errno.ELOOP
    assert names(outside) == set()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


def test_a_racing_neighbour_gets_nothing_out(tmp_path: Path, outside: Path) -> None:
    """A process swaps a directory for a link out, as fast as it can, during copies (QSB-014)."""
    place = tmp_path / "in"
    swapped = 0
    done = threading.Event()

    def race() -> None:
        nonlocal swapped
        trap, real, aside = place / "trap", place / "d", place / "aside"
        trap.symlink_to(outside)
        while not done.is_set():
            try:
                real.rename(aside)
                trap.rename(real)
                real.rename(trap)
                aside.rename(real)
                swapped += 1
            except OSError:
                continue

    attacker = threading.Thread(target=race)
    attacker.start()
    try:
        for attempt in range(20):
            name = b"%d" % attempt
            entries = [directory(b"d"), directory(b"d/" + name)]
            entries += [file(b"d/%s/%d" % (name, number), b"x") for number in range(50)]
            Receiver(place).take(stream(*entries, directory(b"d", 0o777)))
    finally:
        done.set()
        attacker.join()
    assert swapped > 0
    assert names(outside) == set()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


def test_no_file_of_another_qube_brings_privilege(tmp_path: Path) -> None:
    """Set-user-id and set-group-id are dropped; the rest of the mode is kept."""
    sent = stream(file(b"f", mode=0o6755), directory(b"d", 0o7750), directory(b"d", 0o7750))
    assert Receiver(tmp_path).take(sent).code == 0
    assert (tmp_path / "f").stat().st_mode == 0o100755
    assert (tmp_path / "d").stat().st_mode == 0o041750


def test_nothing_that_exists_is_changed(tmp_path: Path) -> None:
    """A file, a link to a file, a hard link: their content, mode and times stay."""
    target = tmp_path / "target"
    target.write_text("kept")
    target.chmod(0o600)
    before = target.stat()
    (tmp_path / "hard").hardlink_to(target)
    (tmp_path / "soft").symlink_to("target")
    for name in (b"target", b"hard", b"soft"):
        assert Receiver(tmp_path).take(stream(file(name, b"new", 0o777))).code == EEXIST
    after = target.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert target.read_text() == "kept"


def test_a_file_under_construction_has_no_name(tmp_path: Path) -> None:
    """Killed in the middle of a file, the receiver leaves nothing half done."""
    process = Receiver(tmp_path).start()
    assert process.stdin is not None
    process.stdin.write(stream(file(b"first"), file(b"half", bytes(200_000)), end=b"")[:150_000])
    process.stdin.flush()
    eventually((tmp_path / "first").exists)
    assert names(tmp_path) == {b"first"}
    process.kill()
    assert ended(process).exit_code == -signal.SIGKILL
    assert names(tmp_path) == {b"first"}


def status_of(root: Path) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = (root / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_the_barriers_are_up_before_the_first_byte(tmp_path: Path) -> None:
    """No new privileges, no capability, no core file, no process, nothing but its directory."""
    process = Receiver(tmp_path, ["--most-bytes=1000"]).start()
    root = Path(f"/proc/{process.pid}")
    eventually(lambda: (root / "syscall").read_text().startswith(f"{PPOLL} "))
    status = status_of(root)
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapPrm", "CapEff", "CapInh")} == {"0" * 16}
    assert status["Umask"] == "0077"
    limits = (root / "limits").read_text()
    for what, most in (
        ("core file size", 0),
        ("processes", 0),
        ("address space", 64 << 20),
        ("open files", 288),
        ("file size", 1000),
    ):
        assert re.search(rf"^Max {what} +{most} +{most} ", limits, re.MULTILINE), what
    assert ended(process, stream()).code == 0


@pytest.mark.root
@pytest.mark.parametrize("call", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_landlock_root_has_a_mount_of_its_own(tmp_path: Path, call: int) -> None:
    """No set-user-id, device, program or link works there; names are walked anew each time."""
    (tmp_path / "in").mkdir()
    named_program(tmp_path)
    wrapper = [sys.executable, REFUSING, str(call), LANDLOCK, "env", f"PATH={tmp_path}"]
    receiver = Receiver(tmp_path / "in", behind=wrapper)
    process = receiver.start()
    assert process.stdin is not None
    process.stdin.write(stream(directory(b"d"), file(b"d/1"), end=b""))
    process.stdin.flush()
    eventually((tmp_path / "in/d/1").exists)
    here = Path(f"/proc/{process.pid}/fd")
    (held,) = (fd for fd in here.iterdir() if str(fd.readlink()) == "/")
    assert os.statvfs(held).f_flag & WITHOUT_EFFECT == WITHOUT_EFFECT
    (tmp_path / "in/d").rename(tmp_path / "gone")
    received = ended(process, stream(file(b"d/2", b"x")))
    assert received.code == errno.ENOENT
    assert names(tmp_path / "gone") == {b"1"}


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user can reach."""
    home = Path(tempfile.mkdtemp(prefix="qfile-", dir="/tmp"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home)


@pytest.mark.root
@pytest.mark.parametrize("uid", [0, NOBODY])
def test_without_any_wall_it_refuses_to_start(reachable: Path, uid: int) -> None:
    """Neither Landlock nor a mount: exit 1, the barriers named, no result, nothing received."""
    place = reachable / "in"
    place.mkdir()
    os.chown(place, uid, uid)
    named_program(reachable)
    refusing = [sys.executable, REFUSING, str(errno.EPERM), LANDLOCK_AND_MOUNT]
    wrapper = [*refusing, "env", f"PATH={reachable}"]
    received = Receiver(place, uid=uid, behind=wrapper).take(stream(file(b"a")))
    assert (received.exit_code, received.result) == (1, None)
    assert "Landlock: operation not permitted" in received.stderr
    assert "a mount of its own: operation not permitted" in received.stderr
    assert names(place) == set()


@pytest.mark.root
def test_root_becomes_the_user_first(reachable: Path) -> None:
    """Files belong to the user named, and where that user may not write nothing is written."""
    tmp_path = reachable
    for name, owner in (("own", NOBODY), ("foreign", 0)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, owner, owner)
    received = Receiver(tmp_path / "own", uid=NOBODY).take(stream(file(b"a"), directory(b"d")))
    assert received.code == 0
    assert {path.stat().st_uid for path in (tmp_path / "own").iterdir()} == {NOBODY}
    named_program(reachable)
    behind = ["setpriv", "--groups=4,27", "env", f"PATH={reachable}"]
    process = Receiver(tmp_path / "own", uid=NOBODY, behind=behind).start()
    root = Path(f"/proc/{process.pid}")
    eventually(lambda: (root / "syscall").read_text().startswith(f"{PPOLL} "))
    status = status_of(root)
    assert status["Groups"].strip() == ""
    assert set(status["Uid"].split()) == {str(NOBODY)}
    assert set(status["Gid"].split()) == {str(pwd.getpwuid(NOBODY).pw_gid)}
    assert ended(process, stream()).code == 0
    assert Receiver(tmp_path / "foreign", uid=NOBODY).take(stream(file(b"a"))).code == errno.EACCES
    assert names(tmp_path / "foreign") == set()
    stranger = Receiver(tmp_path / "own", uid=54321).take(stream())
    assert (stranger.exit_code, stranger.result) == (1, None)
    assert "cannot become user `54321`" in stranger.stderr


@pytest.mark.root
def test_another_file_system_is_not_entered(tmp_path: Path) -> None:
    """A mount below the directory is somebody else's."""
    (tmp_path / "d").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "d"], check=True)
    try:
        assert Receiver(tmp_path).take(stream(file(b"d/x"))).code == errno.EXDEV
        assert Receiver(tmp_path).take(stream(directory(b"d"))).code == errno.EXDEV
        assert names(tmp_path / "d") == set()
    finally:
        subprocess.run(["umount", tmp_path / "d"], check=True, timeout=PATIENCE)
