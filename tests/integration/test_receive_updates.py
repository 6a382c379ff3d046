"""`qubes.ReceiveUpdates`: packages for the admin qube, with the real receiver."""

from __future__ import annotations

import os
import pwd
import stat
import struct
import zlib
from functools import partial
from pathlib import Path

import pytest
from broker_rig import until
from dom0_rig import SHORT, ServiceRig, service_rig

from caisson.dom0 import Updates
from caisson.dom0.updates import Room, keep
from caisson.errors import CaissonError

pytestmark = pytest.mark.root

POLICY = "qubes.ReceiveUpdates * @anyvm @adminvm allow\n"
SERVICE = "qubes.ReceiveUpdates"
USER = pwd.getpwnam("qubes-rpc")


def entry(name: bytes, content: bytes = b"", mode: int = 0o100644) -> bytes:
    """One entry of a qfile stream (sheet, section 6.1)."""
    head = struct.pack("<IIQIIII", len(name) + 1, mode, len(content), 1, 0, 1, 0)
    return head + name + b"\0" + content


def stream(*entries: bytes) -> bytes:
    """A whole transfer."""
    return b"".join(entries) + bytes(32)


def kept(admin: ServiceRig) -> dict[str, bytes]:
    """All packages by name, of whichever transfer."""
    return {path.name: path.read_bytes() for path in admin.rig.paths.packages.glob("*/*/*")}


def leftovers(admin: ServiceRig) -> list[Path]:
    """What a transfer should have taken away."""
    paths = admin.rig.paths
    return [*paths.incoming_updates.glob("*"), *paths.packages.glob("*/.*")]


async def test_packages_are_kept_as_root_s_own():
    """All of a transfer in a directory of its own; the sender gets the result that it checks."""
    async with service_rig(POLICY, "sys-up", updatevm=lambda: "sys-up") as admin:
        content = os.urandom(300_000)
        sent = stream(entry(b"a-1.rpm", content), entry(b"b_2~rc1.deb", b"b"))
        answer = await admin.call("sys-up", "dom0", SERVICE, sent)
        assert answer.verdict == b"X0", admin.log
        error, _, crc = struct.unpack_from("<IIQ", answer.out)
        assert (error, crc) == (0, zlib.crc32(sent))
        assert kept(admin) == {"a-1.rpm": content, "b_2~rc1.deb": b"b"}
        packages = admin.rig.paths.packages
        for path in (packages, *packages.rglob("*")):
            status = path.lstat()
            assert (status.st_uid, status.st_mode & 0o7022) == (0, 0), path
        assert (await admin.call("sys-up", "dom0", SERVICE, sent)).code == 0
        assert len(list(packages.glob("sys-up/*"))) == 2
        assert leftovers(admin) == []


async def test_nobody_but_the_qube_of_updatevm_is_served():
    """Whatever the policy says; and nobody where there is none."""
    names: list[str | None] = ["sys-up", None, "dom0"]
    async with service_rig(POLICY, "work", updatevm=names.pop) as admin:
        for _ in range(3):
            answer = await admin.call("work", "dom0", SERVICE, stream(entry(b"a.rpm", b"a")))
            assert (answer.verdict, answer.out) == (b"X126", b"")
        assert names == []
        assert not admin.rig.paths.updates.exists()


async def test_what_is_no_set_of_packages_leaves_nothing():
    """Other names, links, directories, half a stream, too much of it: all or nothing."""
    room = Room(most_bytes=100_000, most_files=3)
    good = entry(b"good.rpm", b"good")
    async with service_rig(
        POLICY, "sys-up", updatevm=lambda: "sys-up", updates=partial(Updates, room=room)
    ) as admin:
        for entries in (
            [good, entry(b"evil.sh", b"x")],
            [good, entry(b"../evil.rpm", b"x")],
            [good, entry(b"/etc/evil.rpm", b"x")],
            [good, entry(b"d", mode=0o040755), entry(b"d/evil.rpm", b"x")],
            [good, entry(b"link.rpm", b"/etc/shadow", mode=0o120777)],
            [good, good],
            [good, entry(b"-rf.rpm", b"x")],
            [good, entry(b".hidden.rpm", b"x")],
            [good, entry(b"a b.rpm", b"x")],
            [good, entry(b"\x1b[31m.rpm", b"x")],
            [entry(b"%d.rpm" % n) for n in range(4)],
            [good, entry(b"large.rpm", bytes(100_000))],
            [],
        ):
            answer = await admin.call("sys-up", "dom0", SERVICE, stream(*entries))
            assert answer.code != 0, entries
            assert kept(admin) == {}
            assert leftovers(admin) == []
        for sent in (b"", stream(good)[:-40], b"\xff" * 4096):
            assert (await admin.call("sys-up", "dom0", SERVICE, sent)).code != 0
        assert (await admin.call("sys-up", "dom0", f"{SERVICE}+x", stream(good))).code == 125
        assert kept(admin) == {}


async def test_a_sender_that_leaves_leaves_nothing():
    """Nor does what an earlier qubesd left stay; one transfer goes on at a time."""
    async with service_rig(POLICY, "sys-up", patience=SHORT, updatevm=lambda: "sys-up") as admin:
        paths = admin.rig.paths
        stale = paths.incoming_updates / "stale"
        stale.mkdir(parents=True)
        (stale / "x.rpm").write_text("x")
        session = await admin.begin("sys-up", "dom0", SERVICE)
        os.write(session.stdin, entry(b"a.rpm", bytes(10))[:-5])
        await until(lambda: len(leftovers(admin)) == 1 and not stale.exists())
        busy = await admin.call("sys-up", "dom0", SERVICE, stream(entry(b"b.rpm")))
        assert busy.code == 125
        assert "under way" in admin.told("a service is not served")[0]["reason"]
        session.leave()
        await until(lambda: not admin.children() and leftovers(admin) == [])
        assert kept(admin) == {}


async def test_there_is_an_end_to_what_is_kept():
    """More is refused until somebody makes room."""
    updates = partial(Updates, room=Room(most_kept=10))
    async with service_rig(POLICY, "sys-up", updatevm=lambda: "sys-up", updates=updates) as admin:
        sent = stream(entry(b"a.rpm", bytes(10)))
        assert (await admin.call("sys-up", "dom0", SERVICE, sent)).code == 0
        assert (await admin.call("sys-up", "dom0", SERVICE, sent)).code == 125
        assert "are kept already" in admin.told("a service is not served")[0]["reason"]


async def test_small_files_fill_no_disk():
    """Each takes up room that its size does not tell of: so few of them are an end, too."""
    updates = partial(Updates, room=Room(most_kept=3000, least_counted=1000))
    async with service_rig(POLICY, "sys-up", updatevm=lambda: "sys-up", updates=updates) as admin:
        sent = stream(entry(b"a.rpm"), entry(b"b.rpm", b"b"))
        codes = [(await admin.call("sys-up", "dom0", SERVICE, sent)).code for _ in range(3)]
        assert codes == [0, 0, 125]
        assert "4000 bytes of packages" in admin.told("a service is not served")[0]["reason"]


async def test_every_name_that_is_received_is_kept():
    """What was received, its sender believes to be here: apt's epochs, the longest name."""
    characters = [chr(byte) for byte in range(ord("!"), 0x7F)]
    names = [f"a{each}1.deb" for each in characters if each.isalnum() or each in "._+~:^%-"]
    names += ["a" * 251 + ".rpm", "0.rpm", "b_1%3a2.0-1_amd64.deb"]
    async with service_rig(POLICY, "sys-up", updatevm=lambda: "sys-up") as admin:
        sent = stream(*(entry(name.encode(), b"x") for name in names))
        answer = await admin.call("sys-up", "dom0", SERVICE, sent)
        assert answer.verdict == b"X0", admin.log
        assert set(kept(admin)) == set(names)
        for other in (f"a{each}1.deb" for each in characters if f"a{each}1.deb" not in names):
            sent = stream(entry(other.encode(), b"x"))
            answer = await admin.call("sys-up", "dom0", SERVICE, sent)
            assert answer.code != 0, other
        assert set(kept(admin)) == set(names)


# A receiver that was taken over leaves what it likes.


def plant(incoming: Path, what: str) -> None:
    """Put something into the directory as the receiver's user could."""
    path = incoming / "a.rpm"
    match what:
        case "link":
            path.symlink_to("/etc/shadow")
        case "hard link":
            path.write_text("x")
            os.link(path, incoming / "b.rpm")
            os.chown(path, USER.pw_uid, USER.pw_gid)
        case "of root":
            path.write_text("x")
        case "pipe":
            os.mkfifo(path)
            os.chown(path, USER.pw_uid, USER.pw_gid)
        case "device":
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
            os.chown(path, USER.pw_uid, USER.pw_gid)
        case "directory":
            path.mkdir()
            os.chown(path, USER.pw_uid, USER.pw_gid)
        case "link to its own":
            own = incoming.parent / "own"
            own.write_text("x")
            os.chown(own, USER.pw_uid, USER.pw_gid)
            path.symlink_to(own)
        case "name" | "hidden":
            path = incoming / ("a\n.rpm" if what == "name" else ".rpm")
            path.write_text("x")
            os.chown(path, USER.pw_uid, USER.pw_gid)


@pytest.mark.parametrize(
    "what",
    [
        "link",
        "link to its own",
        "hard link",
        "of root",
        "pipe",
        "device",
        "directory",
        "name",
        "hidden",
    ],
)
def test_a_receiver_gone_bad_gets_nothing_kept(tmp_path: Path, what: str) -> None:
    """What it leaves is opened without trust: no link, no device, nothing of others."""
    incoming, packages = tmp_path / "incoming", tmp_path / "packages"
    incoming.mkdir()
    (incoming / "A.rpm").write_text("good")
    os.chown(incoming / "A.rpm", USER.pw_uid, USER.pw_gid)
    assert keep(incoming, USER.pw_uid, packages, Room()) == ["A.rpm"]
    plant(incoming, what)
    with pytest.raises(CaissonError):
        keep(incoming, USER.pw_uid, packages, Room())
    (transfer,) = packages.iterdir()
    assert [path.name for path in transfer.iterdir()] == ["A.rpm"]


@pytest.mark.parametrize("room", [Room(most_files=1), Room(most_bytes=5)])
def test_more_than_the_receiver_may_take_is_not_kept(tmp_path: Path, room: Room) -> None:
    """Its own bounds count for nothing once it was taken over."""
    incoming, packages = tmp_path / "incoming", tmp_path / "packages"
    incoming.mkdir()
    for name in ("a.rpm", "b.rpm"):
        (incoming / name).write_text("abc")
        os.chown(incoming / name, USER.pw_uid, USER.pw_gid)
    with pytest.raises(CaissonError):
        keep(incoming, USER.pw_uid, packages, room)
    assert list(packages.iterdir()) == []
    assert keep(incoming, USER.pw_uid, packages, Room(most_files=2, most_bytes=6)) == [
        "a.rpm",
        "b.rpm",
    ]


def test_a_file_that_somebody_has_open_does_not_change_any_more(tmp_path: Path) -> None:
    """What is kept is a copy: the receiver's own descriptor leads to what is gone."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    with (incoming / "a.rpm").open("w") as file:
        os.chown(incoming / "a.rpm", USER.pw_uid, USER.pw_gid)
        file.write("good")
        file.flush()
        keep(incoming, USER.pw_uid, tmp_path / "packages", Room())
        file.write("evil")
    (kept_file,) = tmp_path.glob("packages/*/*")
    assert kept_file.read_text() == "good"
