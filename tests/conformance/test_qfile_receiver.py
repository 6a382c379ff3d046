"""The receiver of files, byte by byte, against an encoder of its own: sheet qrexec, 6.1."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import stat
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE, eventually
from qfile_peer import (
    DIRECTORY,
    EDQUOT,
    EEXIST,
    EILSEQ,
    EINVAL,
    ENAMETOOLONG,
    ENOLINK,
    EREMOTEIO,
    ETIMEDOUT,
    FILE,
    LINK,
    SENDER_ENDED,
    Entry,
    Receiver,
    Result,
    directory,
    ended,
    file,
    in_home,
    link,
    names,
    program,
    stream,
)

NOBODY = 65534
SYNCFS = {"x86_64": 306, "aarch64": 267}
"""Its number, by machine."""
TREE = (
    directory(b"d", 0o750),
    file(b"d/f", b"hello", 0o640),
    link(b"d/l", b"f"),
    directory(b"d/e"),
    file(b"d/e/empty", b"", 0o400),
    link(b"d/e/up", b"../f"),
    directory(b"d/e", 0o555),
    directory(b"d", 0o750),
    file(b"top", b"x" * 200_000),
)


def test_a_tree_arrives_as_it_was_sent(tmp_path: Path) -> None:
    """Content, modes, times to the nanosecond, links; the checksum covers every byte read."""
    sent = stream(*TREE)
    received = Receiver(tmp_path).take(sent)
    assert received.exit_code == 0
    assert received.result == Result(0, zlib.crc32(sent), b"top")
    assert received.stderr == ""
    for entry in TREE:
        path = Path(os.fsdecode(bytes(tmp_path) + b"/" + entry.name))
        found = path.lstat()
        assert stat.S_IFMT(found.st_mode) == entry.mode & 0o170000
        if path.is_symlink():
            assert os.fsencode(path.readlink()) == entry.content
            continue
        last = next(other for other in reversed(TREE) if other.name == entry.name)
        assert found.st_mode == last.mode
        assert found.st_mtime_ns == entry.mtime[0] * 10**9 + entry.mtime[1]
        if path.is_file():
            assert path.read_bytes() == entry.content
    assert sum(len(names) for _, _, names in os.walk(tmp_path)) == 5


def without_disk() -> None:
    """In a child: from now on nothing can be brought to the disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    load, equal, answer = 0x20, 0x15, 0x06
    refused = 0x0005_0000 | errno.EIO
    code = [
        (load, 0, 0, 0),  # the number of the system call
        (equal, 0, 1, SYNCFS[platform.machine()]),
        (answer, 0, 0, refused),
        (answer, 0, 0, 0x7FFF_0000),
    ]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *each) for each in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(filters))
    no_new_privileges, set_filter = 38, 22
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert libc.prctl(set_filter, 2, program, 0, 0) == 0


def test_what_does_not_reach_the_disk_is_no_success(tmp_path: Path) -> None:
    """All is there to be read, but a power cut could take it: the answer is an error."""
    with subprocess.Popen(
        program("qfile-unpacker", str(os.getuid()), tmp_path),
        executable=BINARY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=without_disk,  # noqa: PLW1509 - no other thread runs
    ) as process:
        received = ended(process, stream(*TREE))
    assert received.code == errno.EIO
    assert received.exit_code == errno.EIO
    assert (tmp_path / "d/f").read_bytes() == b"hello"


def test_a_move_whose_files_do_not_reach_the_disk_keeps_them(tmp_path: Path) -> None:
    """The sender deletes nothing that only the other side's memory holds."""
    (source := tmp_path / "source").mkdir()
    (source / "file").write_text("dear")
    (target := tmp_path / "target").mkdir()
    here, there = socket.socketpair()
    with here, there:
        receiver = subprocess.Popen(
            program("qfile-unpacker", str(os.getuid()), target),
            executable=BINARY, stdin=there, stdout=there, stderr=subprocess.DEVNULL,
            preexec_fn=without_disk,  # noqa: PLW1509 - likewise
        )  # fmt: skip
        sender = subprocess.run(
            program("qfile-agent", "--move", source),
            executable=BINARY, stdin=here, stdout=here, stderr=subprocess.PIPE,
            check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert receiver.wait(PATIENCE) == errno.EIO
    assert sender.returncode == 1
    assert b"input/output error in the target qube" in sender.stderr
    assert (source / "file").read_text() == "dear"
    assert (target / "source/file").read_text() == "dear"


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([file(b"a"), file(b"a")], EEXIST),
        ([directory(b"a"), file(b"a")], EEXIST),
        ([file(b"a"), directory(b"a")], errno.ENOTDIR),
        ([directory(b"d"), link(b"d/l", b"x"), link(b"d/l", b"x")], EEXIST),
        ([directory(b"d"), link(b"d/l", b"x"), file(b"d/l")], EEXIST),
        ([directory(b"d"), link(b"d/l", b"x"), directory(b"d/l")], errno.ELOOP),
        ([directory(b"d"), link(b"d/l", b"."), file(b"d/l/x")], errno.ELOOP),
        ([file(b"a/b")], errno.ENOENT),
        ([file(b"a"), file(b"a/b")], errno.ENOTDIR),
        ([Entry(b"a", 0o010644)], EINVAL),
        ([Entry(b"a", 0o020644)], EINVAL),
        ([Entry(b"a", 0o060644)], EINVAL),
        ([Entry(b"a", 0o140644)], EINVAL),
        ([Entry(b"a", 0o644)], EINVAL),
        ([Entry(b"a", FILE, name_length=16_384)], ENAMETOOLONG),
        ([Entry(b"a", FILE, name_length=0xFFFFFFFF)], ENAMETOOLONG),
        ([link(b"l", b"x")], ENOLINK),
        ([directory(b"d"), link(b"d/l", b"/etc")], ENOLINK),
        ([directory(b"d"), link(b"d/l", b"../x")], ENOLINK),
        ([directory(b"d"), link(b"d/l", b"x/../y")], ENOLINK),
        ([directory(b"d"), link(b"d/l", b"")], ENOLINK),
        ([directory(b"d"), link(b"d/l", b"x" * 4096)], ENAMETOOLONG),
        ([directory(b"d"), Entry(b"d/l", LINK, b"x", length=1 << 40)], ENAMETOOLONG),
        ([Entry(b"a", FILE, b"x", length=1 << 63)], SENDER_ENDED),
        ([Entry(b"a", FILE, b"x", length=2**64 - 1)], SENDER_ENDED),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_error_has_its_code(tmp_path: Path, entries: list[Entry], code: int) -> None:
    """One result, at the first error; the exit code is its low byte."""
    end = b"" if code == SENDER_ENDED else stream(file(b"never"))
    received = Receiver(tmp_path).take(stream(*entries, end=end))
    assert received.code == code
    assert received.exit_code == code & 0xFF
    assert received.result is not None
    assert received.result.last in {entries[-1].name, b""}
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("mode", [FILE | 0o644, DIRECTORY | 0o755])
@pytest.mark.parametrize(
    "name",
    [
        b"..", b"../a", b"/a", b"a//b", b"./a", b"a/.", b"a/..", b"a/../b", b"a/", b"/", b".",
        b"", b"\0a", b"a\n", b"\x7f", b"\x1b[2J", b"a\xff", b"\xc0\xae", "\u202e".encode(),
        "a\u200bb".encode(), "\u2028".encode(), "\ufeff".encode(), "\u00a0".encode(),
    ],
)  # fmt: skip
def test_a_bad_name_is_refused(tmp_path: Path, name: bytes, mode: int) -> None:
    """EILSEQ, for a directory too: a positive error number, where upstream negates it (a bug)."""
    received = Receiver(tmp_path).take(stream(Entry(name, mode)))
    assert (received.code, received.exit_code) == (EILSEQ, EILSEQ)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [b"a\n", b"\x1b[2J", b"a\xff", "\u202e".encode()])
def test_allow_all_names_lifts_the_rule_about_characters(tmp_path: Path, name: bytes) -> None:
    """And no other: see the next test."""
    assert Receiver(tmp_path, ["--allow-all-names"]).take(stream(file(name))).code == 0
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", [b"..", b"../a", b"/a", b"a//b", b"a/", b"", b"\n/.."])
def test_allow_all_names_lifts_nothing_else(tmp_path: Path, name: bytes) -> None:
    """A name that leads out is refused whatever its characters."""
    assert Receiver(tmp_path, ["--allow-all-names"]).take(stream(file(name))).code == EILSEQ
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raw", "name"),
    [(b"a\0/../../b\0", b"a"), (b"a", b"a"), (b"a\0\xff\n", b"a"), (b"ab\0\0\0", b"ab")],
)
def test_a_name_ends_at_its_first_nul(tmp_path: Path, raw: bytes, name: bytes) -> None:
    """What follows a NUL is ignored, and a missing NUL tolerated."""
    entry = Entry(b"", FILE | 0o600, name_length=len(raw)).encode()
    sent = entry[:-1] + raw + stream()
    received = Receiver(tmp_path).take(sent)
    assert (received.code, names(tmp_path)) == (0, {name})


def test_lengths_of_names(tmp_path: Path) -> None:
    """255 bytes in a component, 256 levels; more is too long, and nothing is cut."""
    assert Receiver(tmp_path).take(stream(file(b"x" * 255))).code == 0
    assert Receiver(tmp_path).take(stream(file(b"x" * 256))).code == ENAMETOOLONG
    deep = [directory(b"/".join([b"d"] * depth)) for depth in range(1, 258)]
    received = Receiver(tmp_path).take(stream(*deep))
    assert received.code == ENAMETOOLONG
    assert received.result is not None
    assert received.result.last == deep[-1].name


def test_a_time_that_is_none_gets_no_result(tmp_path: Path) -> None:
    """Nanoseconds beyond a second: exit 1."""
    for entry in (
        Entry(b"a", FILE, atime=(0, 10**9)),
        Entry(b"a", FILE, mtime=(0, 0xFFFFFFFF)),
    ):
        received = Receiver(tmp_path).take(stream(entry))
        assert (received.exit_code, received.result) == (1, None)


def test_a_stream_that_ends_early_is_never_a_success(tmp_path: Path) -> None:
    """Cut at every byte: EREMOTEIO between entries, its own code within a file; no partial file."""
    entries = (directory(b"d"), file(b"d/f", b"0123456789"), link(b"d/l", b"f"), directory(b"d"))
    sent = stream(*entries)
    starts = [len(stream(*entries[:count], end=b"")) for count in range(len(entries) + 1)]
    content = range(starts[2] - 10, starts[2])
    for cut in range(len(sent)):
        place = tmp_path / str(cut)
        place.mkdir()
        received = Receiver(place).take(sent[:cut])
        assert received.code == (SENDER_ENDED if cut in content else EREMOTEIO), cut
        assert received.exit_code == received.code & 0xFF
        assert (place / "d/f").exists() == (cut >= starts[2]), cut


def test_links_anywhere_are_taken_where_they_are_allowed(tmp_path: Path) -> None:
    """They are made, and still not followed."""
    (tmp_path / "in").mkdir()
    receiver = Receiver(tmp_path / "in", ["--allow-unsafe-symlinks"])
    sent = stream(link(b"l", b"/tmp"), directory(b"d"), link(b"d/l", b"../.."), file(b"d/l/x"))
    assert receiver.take(sent).code == errno.ELOOP
    assert (tmp_path / "in/l").readlink() == Path("/tmp")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


@pytest.mark.parametrize(
    ("options", "code", "left"),
    [
        (["--most-bytes=10"], 0, {b"a", b"b", b"c"}),
        (["--most-bytes=9"], EDQUOT, {b"a"}),
        (["--most-files=2"], EDQUOT, {b"a", b"b"}),
        (["--most-files=3", "--most-bytes=10"], 0, {b"a", b"b", b"c"}),
    ],
)
def test_a_quota_is_charged_before_anything_is_written(
    tmp_path: Path, options: list[str], code: int, left: set[bytes]
) -> None:
    """Bytes and entries, by what the header says."""
    sent = stream(file(b"a", b"12345"), file(b"b", b"12345"), file(b"c"))
    assert Receiver(tmp_path, options).take(sent).code == code
    assert names(tmp_path) == left


def test_a_huge_length_is_over_quota_at_once(tmp_path: Path) -> None:
    """Also where the sum would wrap around."""
    for length in (101, 1 << 40, 2**64 - 1):
        sent = stream(file(b"a", b"x"), Entry(b"b", FILE, length=length), end=b"")
        place = tmp_path / str(length)
        place.mkdir()
        assert Receiver(place, ["--most-bytes=100"]).take(sent).code == EDQUOT
        assert names(place) == {b"a"}


def test_a_sender_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """ETIMEDOUT, though its pipe stays open."""
    process = Receiver(tmp_path, ["--most-silence=0"]).start()
    assert process.stdout is not None
    assert process.stdin is not None
    answer = process.stdout.read()
    assert Result.parse(answer) == Result(ETIMEDOUT, 0, b"")
    assert process.wait(PATIENCE) == ETIMEDOUT
    process.communicate()


def test_a_flat_drop_box_takes_plain_files_only(tmp_path: Path) -> None:
    """One component, an allowed end, regular; each gets one mode."""
    options = ["--flat", "--suffix", ".rpm", "--suffix=.deb", "--most-bytes=9", "--most-files=3"]
    for number, (entry, code) in enumerate(
        [
            (file(b"a-1.2~rc1+x.rpm", b"123456789", 0o6777), 0),
            (file(b"b.deb"), 0),
            (file(b"b.deb", b"1234567890"), EDQUOT),
            (file(b"b.sh"), EILSEQ),
            (file(b".rpm"), EILSEQ),
            (file(b"-i.rpm"), EILSEQ),
            (file(b"d/b.rpm"), EILSEQ),
            (file(b"../b.rpm"), EILSEQ),
            (file(b"b c.rpm"), EILSEQ),
            (directory(b"d.rpm"), EINVAL),
            (link(b"l.rpm", b"x"), EINVAL),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        assert Receiver(place, options).take(stream(entry)).code == code, entry
        assert names(place) == ({entry.name} if code == 0 else set())
        assert all(path.stat().st_mode == 0o100644 for path in place.iterdir())


def test_the_service_receives_into_a_directory_of_the_caller(tmp_path: Path) -> None:
    """`~/QubesIncoming/<source>`, made for the user alone, used again the next time."""
    assert in_home(tmp_path, stream(file(b"a"))).code == 0
    assert in_home(tmp_path, stream(file(b"b"))).code == 0
    assert in_home(tmp_path, stream(file(b"c")), source="personal").code == 0
    assert in_home(tmp_path, stream(file(b"a"))).code == EEXIST
    assert names(tmp_path / "QubesIncoming/work") == {b"a", b"b"}
    assert names(tmp_path / "QubesIncoming/personal") == {b"c"}
    for path in ("QubesIncoming", "QubesIncoming/work"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700


@pytest.mark.root
@pytest.mark.parametrize("path", ["QubesIncoming", "QubesIncoming/work"])
def test_the_directory_of_the_caller_is_the_users_own(tmp_path: Path, path: str) -> None:
    """Nothing is put into a directory that somebody else made in its place."""
    (tmp_path / "QubesIncoming/work").mkdir(parents=True)
    os.chown(tmp_path / path, NOBODY, NOBODY)
    received = in_home(tmp_path, stream(file(b"a")))
    assert (received.exit_code, received.result) == (1, None)
    assert names(tmp_path / "QubesIncoming/work") == set()


def test_the_service_takes_one_argument_only(tmp_path: Path) -> None:
    """`allow-all-names`; any other ends with 1 before anything is received."""
    odd = stream(file(b"a\n"))
    assert in_home(tmp_path, odd, arguments=["allow-all-names"]).code == 0
    assert in_home(tmp_path, odd).code == EILSEQ
    for arguments in (["--allow-all-names"], ["allow-all-names", "x"], ["x"], ["0", "/tmp"]):
        received = in_home(tmp_path, stream(file(b"b")), arguments=arguments)
        assert (received.exit_code, received.result) == (1, None)
    assert names(tmp_path / "QubesIncoming/work") == {b"a\n"}


def test_two_receivers_at_once_never_overwrite(tmp_path: Path) -> None:
    """Whoever names a file first has it; the other hears EEXIST."""
    first, second = Receiver(tmp_path).start(), Receiver(tmp_path).start()
    assert first.stdin is not None
    assert second.stdin is not None
    half = stream(file(b"a", b"1" * 100_000), end=b"")[:50_000]
    first.stdin.write(half)
    first.stdin.flush()
    assert ended(second, stream(file(b"a", b"2" * 100_000))).code == 0
    rest = stream(file(b"a", b"1" * 100_000))[50_000:]
    assert ended(first, rest).code == EEXIST
    assert (tmp_path / "a").read_bytes() == b"2" * 100_000
    assert names(tmp_path) == {b"a"}


@pytest.mark.root
def test_it_waits_for_space(tmp_path: Path) -> None:
    """With `-w` a file begins once it fits and the margin stays free."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "none", tmp_path], check=True
    )
    try:
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(3 << 20))
        process = Receiver(tmp_path, ["-v", "-w", "1048576"]).start()
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(stream(file(b"a", bytes(1 << 16))))
        process.stdin.close()
        assert process.stderr.readline() == b"a\n"
        assert names(tmp_path) == {b"ballast"}
        ballast.unlink()
        eventually((tmp_path / "a").exists)
        assert process.wait(PATIENCE) == 0
        process.stdin = None
        process.communicate()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_help_and_mistakes_of_the_command_line(tmp_path: Path) -> None:
    """Help on stdout with 0, mistakes on stderr with 2, nothing received."""

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            program("qfile-unpacker", *arguments), executable=BINARY, capture_output=True,
            stdin=subprocess.DEVNULL, check=False, timeout=PATIENCE,
        )  # fmt: skip

    assert run("--help").stdout.startswith(b"usage: qfile-unpacker ")
    for wrong in (
        ["--suffix=.rpm"], ["-w", "x"], ["x"], ["-1"], ["4294967295", str(tmp_path)],
        ["0", str(tmp_path), "y"], ["--most-bytes=-1"], ["--unknown"],
    ):  # fmt: skip
        done = run(*wrong)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(b"error: ")
    assert run(str(os.getuid()), str(tmp_path / "missing")).returncode == 1
    assert struct.calcsize("<IIQIIII") == 32
