"""Archives turned into files: against Python's own tar, against hostile ones, and as services."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE
from qfile_peer import (
    EDQUOT,
    END,
    Entry,
    Receiver,
    Result,
    Sent,
    directory,
    file,
    names,
    program,
    read_stream,
    send,
)

BLOCK = 512
QUBE = Path(__file__).parents[2] / "qube"
LONG = "long/" * 30 + "x" * 120


def member(name: str, content: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member with times and mode of its own."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), 1_100_000_000, 0o640
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def archive(members: Sequence[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT):
    """An archive with these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as made:
        for info, content in members:
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    """A directory."""
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def converted(tmp_path: Path, raw: bytes, *paths: str, answer: Result | None = None) -> Sent:
    """What becomes of an archive."""
    source = tmp_path / "archive.tar"
    source.write_bytes(raw)
    return send(source, *paths, name="tar2qfile", answer=answer)


def refused(tmp_path: Path, raw: bytes, words: str) -> None:
    """The archive gets no end mark, and its error these words."""
    sent = converted(tmp_path, raw)
    assert sent.exit_code == 1
    assert not sent.raw.endswith(END)
    assert sent.stderr.startswith("error: ")
    assert words in sent.stderr


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read(tmp_path: Path, kind: int) -> None:
    """Files, directories and links, also with names that no header holds."""
    members = [
        folder("d", 0o500),
        member("d/empty"),
        member("d/f", b"x" * 1000),
        member("d/l", type=tarfile.SYMTYPE, linkname="f"),
        member("after", b"y" * BLOCK),
    ]
    if kind != tarfile.USTAR_FORMAT:
        members.append(member(LONG, b"long"))
        members.append(member("d/" + "y" * 200, type=tarfile.SYMTYPE, linkname="z" * 200))
    sent = converted(tmp_path, archive(members, kind))
    assert (sent.exit_code, sent.stderr) == (0, "")
    at = ((1_100_000_000, 0),) * 2
    known = {
        (entry.name, entry.mode, entry.content, entry.atime == entry.mtime == at[0])
        for entry in sent.entries
    }
    for entry in (
        directory(b"d", 0o500),
        file(b"d/empty", b"", 0o640),
        file(b"d/f", b"x" * 1000, 0o640),
        Entry(b"d/l", 0o120640, b"f"),
        file(b"after", b"y" * BLOCK, 0o640),
    ):
        assert (entry.name, entry.mode, entry.content, True) in known
    if kind != tarfile.USTAR_FORMAT:
        assert (LONG.encode(), 0o100640, b"long", True) in known
        assert (b"d/" + b"y" * 200, 0o120640, b"z" * 200, True) in known


def test_directories_come_before_and_after_what_is_in_them(tmp_path: Path) -> None:
    """Those that the archive does not name are made; modes that forbid writing come last."""
    raw = archive([folder("a", 0o500), member("a/b/f", b"1"), member("c/d/g"), member("a/h")])
    order = [(entry.name, entry.mode & 0o777) for entry in converted(tmp_path, raw).entries]
    assert order == [
        (b"a", 0o500),
        (b"a/b", 0o700),
        (b"a/b/f", 0o640),
        (b"a/b", 0o700),
        (b"a", 0o500),
        (b"c", 0o700),
        (b"c/d", 0o700),
        (b"c/d/g", 0o640),
        (b"c/d", 0o700),
        (b"c", 0o700),
        (b"a/h", 0o640),
    ]


def test_a_receiver_takes_what_comes(tmp_path: Path) -> None:
    """Ours makes the same tree of it that tar would."""
    raw = archive([folder("./d/"), member("/d//e/./f", b"content"), member("./d/g")])
    place = tmp_path / "in"
    place.mkdir()
    assert Receiver(place).take(converted(tmp_path, raw).raw).code == 0
    assert (place / "d/e/f").read_bytes() == b"content"
    assert names(place / "d") == {b"e", b"g"}


def test_times_have_their_fractions(tmp_path: Path) -> None:
    """As records say them."""
    raw = archive([member("f", mtime=5.25)])
    (entry,) = converted(tmp_path, raw).entries
    assert entry.mtime == (5, 250_000_000)


def test_only_wanted_members_are_sent(tmp_path: Path) -> None:
    """By path, with all below; what is not wanted may be of any kind."""
    members = [
        member("a/f"),
        member("a/fifo", type=tarfile.FIFOTYPE),
        member("ab", b"x" * 1000),
        member("b/f"),
        member("b/g/h"),
    ]
    sent = converted(tmp_path, archive(members), "b/", "ab")
    assert {entry.name for entry in sent.entries} == {b"ab", b"b", b"b/f", b"b/g", b"b/g/h"}
    assert converted(tmp_path, archive(members), "nothing").entries == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "x" * 256, "d/" * 300 + "f"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """Before the receiver refuses it again (incus ef006240ac and others: hostile archives)."""
    refused(tmp_path, archive([member("first"), member(name)]), "has a member")


@pytest.mark.parametrize(
    "kind",
    [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.LNKTYPE, b"S", b"V", b"\xff"],
)
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    """Devices, pipes, hard links, sparse files: what was made of them would not be the same."""
    raw = archive([member("odd", type=kind, linkname="first")], tarfile.GNU_FORMAT)
    refused(tmp_path, raw, "`odd` is no plain file")


def test_a_sparse_file_in_records_is_refused(tmp_path: Path) -> None:
    """Its content in the archive is not that of the file."""
    raw = archive([member("s", b"map", pax_headers={"GNU.sparse.major": "1"})])
    refused(tmp_path, raw, "`s` is no plain file")


def test_an_archive_that_ends_early_is_never_a_success(tmp_path: Path) -> None:
    """Cut at every block and within; only the end mark of the archive makes one of the stream."""
    raw = archive([folder("d"), member("d/f", b"x" * 700), member("é" * 60, b"y")])
    end = raw.index(bytes(2 * BLOCK), 700 + 2 * BLOCK) // BLOCK * BLOCK
    end += 0 if raw[end : end + BLOCK] == bytes(BLOCK) else BLOCK
    for cut in [*range(0, end + 1, BLOCK), *range(100, end, 400)]:
        refused(tmp_path, raw[:cut], "ends too early")
    assert converted(tmp_path, raw[: end + BLOCK]).exit_code == 0


def test_hostile_headers_are_refused(tmp_path: Path) -> None:
    """Sizes beyond all bounds, names without end, wrong sums, records that lie."""
    good = bytearray(archive([member("f", b"x")], tarfile.USTAR_FORMAT))
    refused(tmp_path, b"PK\x03\x04" * 1000, "no tar archive, or damaged")
    refused(tmp_path, bytes([good[0] ^ 1]) + good[1:], "no tar archive, or damaged")

    def with_size(kind: bytes, size: int) -> bytes:
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, size
        return info.tobuf(tarfile.GNU_FORMAT)

    for kind in (b"x", b"L", b"K", b"g"):
        refused(tmp_path, with_size(kind, 1 << 40) + bytes(4096), "too long")
        refused(tmp_path, with_size(kind, 32 * 1024) + bytes(4096), "ends too early")
    refused(tmp_path, with_size(b"0", (1 << 62) - 1) + bytes(9000), "ends too early")
    lies = b"99 path=x\n".ljust(BLOCK, b"\0")
    refused(tmp_path, with_size(b"x", 10) + lies + bytes(good), "records that make no sense")


def test_a_broken_receiver_ends_it(tmp_path: Path) -> None:
    """The same words as for a copy; a full receiver is no failure where one says so."""
    raw = archive([member("f", b"x")])
    sent = converted(tmp_path, raw, answer=Result(EDQUOT, 0, b"f"))
    assert (sent.exit_code, sent.stderr) == (
        1,
        f"error: more than the target qube takes: `f` (code {EDQUOT})\n",
    )
    again = send(
        "--ignore-quota-error",
        tmp_path / "archive.tar",
        name="tar2qfile",
        answer=Result(EDQUOT, 0, b"f"),
    )
    assert again.exit_code == 0


def restore(first: str, second: str = "") -> Sent:
    """Call the service `qubes.Restore`, as its interpreter is called."""
    process = subprocess.Popen(
        program("tar2qfile", "--service", "/etc/qubes-rpc/qubes.Restore"),
        executable=BINARY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(f"{first}\n{second}\n".encode())
    process.stdin.flush()
    raw = read_stream(process)
    answer = Result(0, zlib.crc32(raw), b"").encode() if raw.endswith(END) else b""
    _, err = process.communicate(answer, timeout=PATIENCE)
    return Sent(process.returncode, raw, err.decode())


def test_the_service_restores_from_a_file_or_a_command(tmp_path: Path) -> None:
    """Members by path; a command that fails is a failure, whatever it wrote."""
    source = tmp_path / "an archive.tar"
    source.write_bytes(archive([member("a/f", b"x"), member("b/g"), member("c")]))
    assert [entry.name for entry in restore(str(source), " b  c ").entries] == [
        b"b",
        b"b/g",
        b"b",
        b"c",
    ]
    command = f"cat '{source}'"
    assert len(restore(command).entries) == 7
    assert len(restore(f"{command}; echo what follows the archive").entries) == 7
    failed = restore(f"{command}; exit 7")
    assert failed.exit_code == 1
    assert failed.stderr == "error: the command failed with code 7\n"
    assert not failed.raw.endswith(END)
    assert restore("exit 0").stderr == "error: the archive ends too early\n"
    assert restore("").exit_code == 1


def test_the_service_takes_no_argument() -> None:
    """And not less than two lines."""
    for arguments, given in ((["x"], b"true\n\n"), ([], b"true\n"), ([], b"x" * 70_000)):
        done = subprocess.run(
            program("tar2qfile", "--service", "/etc/qubes-rpc/qubes.Restore", *arguments),
            executable=BINARY,
            input=given,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stdout) == (1, b"")


def backup(line: bytes, content: bytes) -> subprocess.CompletedProcess[bytes]:
    """Call the service `qubes.Backup`."""
    return subprocess.run(
        [QUBE / "etc/qubes-rpc/qubes.Backup"],
        input=line + content,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )


def test_the_service_stores_a_backup_in_a_directory_or_with_a_command(tmp_path: Path) -> None:
    """Byte for byte, readable by its owner alone, never over another one."""
    content = os.urandom(200_000)
    place = tmp_path / "a $(touch x) place"
    place.mkdir()
    assert backup(bytes(place) + b"\n", content).returncode == 0
    (stored,) = place.iterdir()
    assert stored.name.startswith("qubes-backup-")
    assert (stored.read_bytes(), stored.stat().st_mode) == (content, 0o100600)
    command = f"cat >'{tmp_path}/stored'; exit 3\n"
    assert backup(command.encode(), content).returncode == 3
    assert (tmp_path / "stored").read_bytes() == content
    for nothing in (b"", b"\n"):
        assert backup(nothing, b"").returncode == 1
