"""The sender of files, byte by byte, and what it does with every answer: sheet qrexec, 6.1."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import zlib
from pathlib import Path

import pytest
from agent_rig import PATIENCE
from qfile_peer import (
    DIRECTORY,
    EDQUOT,
    EEXIST,
    EILSEQ,
    END,
    FILE,
    LINK,
    SENDER_ENDED,
    Entry,
    Receiver,
    Result,
    names,
    read_stream,
    send,
    sender,
)

BIG = 300_000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with one of everything, with times of its own."""
    top = tmp_path / "tree"
    (top / "deep/er").mkdir(parents=True)
    (top / "file").write_bytes(b"content")
    (top / "big").write_bytes(os.urandom(BIG))
    (top / "deep/er/empty").touch(mode=0o400)
    (top / "deep/link").symlink_to("er/empty")
    for path in (top / "file", top / "deep/er", top):
        os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    (top / "deep/er").chmod(0o3750)
    return top


def expected(path: Path, name: bytes) -> Entry:
    """The entry of a file as it lies there."""
    found = path.lstat()
    content = {
        FILE: path.read_bytes,
        LINK: lambda: os.fsencode(path.readlink()),
        DIRECTORY: lambda: b"",
    }[stat.S_IFMT(found.st_mode)]()
    times = [divmod(at, 10**9) for at in (found.st_atime_ns, found.st_mtime_ns)]
    return Entry(name, found.st_mode, content, times[0], times[1])


def test_a_tree_is_sent_as_it_lies_there(tmp_path: Path, tree: Path) -> None:
    """Each directory before and after its content; links as links; slashes at the end dropped."""
    sent = send(f"{tree}//", tree / "file")
    assert (sent.exit_code, sent.stderr) == (0, "")
    *inside, last = sent.entries
    assert last.name == b"file"
    for entry in inside:
        path = tmp_path / os.fsdecode(entry.name)
        there = expected(path, entry.name)
        # Reading may have changed the time of access.
        assert Entry(entry.name, entry.mode, entry.content, there.atime, entry.mtime) == there
    order = [entry.name for entry in inside]
    assert order[0] == order[-1] == b"tree"
    for name in (b"tree", b"tree/deep", b"tree/deep/er"):
        first, final = order.index(name), len(order) - 1 - order[::-1].index(name)
        below = [at for at, other in enumerate(order) if other.startswith(name + b"/")]
        assert first < min(below) <= max(below) < final
    assert len(order) == 10


def test_what_was_sent_arrives(tmp_path: Path, tree: Path) -> None:
    """Our own receiver makes the same tree of it, but for the set-group-id bit."""
    place = tmp_path / "in"
    place.mkdir()
    assert Receiver(place).take(send(tree).raw).code == 0
    compared = ["diff", "-r", "--no-dereference", tree, place / "tree"]
    assert subprocess.run(compared, check=False, capture_output=True).stdout == b""
    copied = (place / "tree/deep/er").stat()
    assert (copied.st_mode, copied.st_mtime_ns) == (0o41750, 987_654_321_987_654_321)


@pytest.mark.parametrize("name", ["-rf", "--move", "a b", "é", "$(id)", "a'b\"c", "x" * 255])
def test_any_name_can_be_sent(tmp_path: Path, name: str) -> None:
    """Also one that looks like an option, from the directory that it is in."""
    (tmp_path / name).write_text("x")
    assert [entry.name for entry in send("--", name, cwd=tmp_path).entries] == [name.encode()]
    assert [entry.name for entry in send(f"./{name}/", cwd=tmp_path).entries] == [name.encode()]


@pytest.mark.parametrize("odd", [b"a\nb", b"\xff\xfe", "\u202e".encode()])
def test_names_that_are_no_text_are_sent_as_they_are(tmp_path: Path, odd: bytes) -> None:
    """What is safe to show is the receiver's to judge."""
    path = bytes(tmp_path) + b"/" + odd
    Path(os.fsdecode(path)).touch()
    assert [entry.name for entry in send(path).entries] == [odd]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Result(EEXIST, 0, b"d/x"), "a file of that name exists in the target qube"),
        (Result(EILSEQ, 0, b"bad\x1b[2J\n"), "`bad\\x1b[2J\\x0a`"),
        (Result(2**32 - EILSEQ, 0, b"d"), "the target qube does not take such a name: `d`"),
        (Result(EDQUOT, 0), "more than the target qube takes"),
        (Result(28, 0, b"x"), "no space left in the target qube"),
        (Result(SENDER_ENDED, 0), "this side stopped in the middle of a file"),
        (Result(4000, 0, b"x"), "error in the target qube: `x` (code 4000)"),
        (Result(0, 1, b"x"), "the checksum of the other side differs"),
        (Result(0, 1 << 32, b"x"), "the checksum of the other side differs"),
    ],
    ids=str,
)
def test_a_failure_is_told_in_words(tree: Path, answer: Result, words: str) -> None:
    """What the other side says is never shown raw, and an old receiver says no name."""
    sent = send("--move", tree, answer=answer)
    assert sent.exit_code == 1
    assert sent.stderr.startswith("error: ")
    assert words in sent.stderr
    assert sent.stderr.isprintable() or sent.stderr.count("\n") == 1
    assert (tree / "file").exists()


def test_what_was_delivered_before_is_told(tmp_path: Path, tree: Path) -> None:
    """In our own names, never in those that the other side says; and nothing of it is deleted."""
    odd = tmp_path / "a\x1bb"
    (tmp_path / "m3").touch()
    odd.touch()
    files = (tmp_path / "m3", odd, tree)
    for last, hint in (
        (b"m3", ""),
        (tree.name.encode(), "hint: delivered before: `m3`, `a\\x1bb`\n"),
        (
            tree.name.encode() + b"/file",
            f"hint: delivered before: `m3`, `a\\x1bb`, a part of `{tree.name}`\n",
        ),
        (b"nothing of ours\x1b", ""),
    ):
        sent = send("--move", *files, answer=Result(EEXIST, 0, last))
        assert sent.exit_code == 1
        assert sent.stderr.partition("\n")[2] == hint
        assert all(path.exists() for path in files)


def test_a_full_receiver_may_be_ignored(tree: Path) -> None:
    """`--ignore-quota-error`: EDQUOT is success, and nothing else is; nothing is deleted."""
    assert send("--ignore-quota-error", tree, answer=Result(EDQUOT, 7)).exit_code == 0
    assert send("--ignore-quota-error", tree, answer=Result(EEXIST, 7)).exit_code == 1
    assert send("--ignore-quota-error", "--move", tree, answer=Result(EDQUOT, 7)).exit_code == 0
    assert (tree / "file").exists()


def test_an_old_receiver_says_no_last_name(tree: Path) -> None:
    """Sixteen bytes, then the end."""
    assert send(tree, answer=Result(0, 0)).exit_code == 0


def test_a_receiver_that_ends_without_a_result_is_a_failure(tree: Path) -> None:
    """Before the first byte, in the middle, and after the end."""
    for after in (0, 1000, BIG):
        process = sender("--move", tree)
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.read(after)
        process.stdout.close()
        process.stdin.close()
        assert process.stderr is not None
        assert b"ended without a result" in process.stderr.read()
        assert process.wait(PATIENCE) == 1
        process.stderr.close()
        assert (tree / "file").exists()


@pytest.mark.parametrize("code", [EEXIST, 0])
def test_an_early_result_stops_the_sender(tmp_path: Path, code: int) -> None:
    """Though its pipe is still open and nobody reads on; an early success is none."""
    huge = tmp_path / "huge"
    with huge.open("wb") as made:
        made.truncate(1 << 40)
    process = sender("--move", huge)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.read(1000)
    process.stdin.write(Result(code, 0, b"huge").encode())
    process.stdin.close()
    assert process.stderr is not None
    # One more buffer may have been on its way when the answer came.
    process.stdout.read(200_000)
    words = process.stderr.read()
    assert process.wait(PATIENCE) == 1
    assert (b"exists" if code else b"ended before all was sent") in words
    assert huge.exists()
    process.stdout.close()
    process.stderr.close()


def test_what_cannot_be_copied_is_named(tmp_path: Path, tree: Path) -> None:
    """A pipe, a socket, a device: an error at once, no end mark, nothing deleted."""
    os.mkfifo(tree / "deep/pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for path, name in (
        (tree, "tree/deep/pipe"),
        (tmp_path / "socket", "socket"),
        (Path("/dev/null"), "null"),
    ):
        process = sender("--move", path)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert f"`{name}` is no file, directory or symbolic link" in err.decode()
        assert not out.endswith(END)
    assert (tree / "file").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """And what has no name of its own."""
    for wrong in (tmp_path / "missing", tmp_path / "missing/x", "/", ".", "..", f"{tmp_path}/."):
        process = sender("--move", wrong, cwd=tmp_path)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (1, b"")
        assert err.startswith(b"error: cannot read `")


def test_a_file_that_shrinks_ends_the_copy(tmp_path: Path) -> None:
    """It was announced longer than it is: the receiver hears no end mark, nothing is deleted."""
    shrinking = tmp_path / "shrinking"
    shrinking.write_bytes(bytes(4 << 20))
    process = sender("--move", shrinking)
    assert process.stdout is not None
    assert process.stderr is not None
    begun = process.stdout.read(1000)
    os.truncate(shrinking, 1 << 20)
    rest, err = process.stdout.read(), process.stderr.read()
    assert process.wait(PATIENCE) == 1
    process.communicate()
    assert len(begun + rest) < 4 << 20
    assert b"`shrinking` became shorter while it was copied" in err
    assert shrinking.exists()


def test_a_file_that_grows_is_kept(tmp_path: Path) -> None:
    """Its beginning was sent, as announced; the exit code says so, and a move deletes it not."""
    growing, other = tmp_path / "growing", tmp_path / "other"
    growing.write_bytes(bytes(4 << 20))
    other.touch()
    process = sender("--move", growing, other)
    assert process.stdout is not None
    head = process.stdout.read(32)
    with growing.open("ab") as grown:
        grown.write(b"more")
    raw = head + process.stdout.read(8 + (4 << 20)) + read_stream(process)
    answer = Result(0, zlib.crc32(raw), b"other")
    _, err = process.communicate(answer.encode(), timeout=PATIENCE)
    assert process.returncode == 1
    assert b"`growing` grew while it was copied" in err
    assert names(tmp_path) == {b"growing"}


def test_a_move_deletes_what_was_delivered(tmp_path: Path, tree: Path) -> None:
    """Links themselves, never what they lead to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "deep/out").symlink_to(outside)
    assert send("--move", tree, outside / "kept").exit_code == 0
    assert names(tmp_path) == {b"outside"}
    assert names(outside) == set()
    (outside / "kept").touch()
    (tree).mkdir()
    (tree / "out").symlink_to(outside)
    assert send("--move", tree).exit_code == 0
    assert names(outside) == {b"kept"}


def test_a_move_keeps_what_changed_meanwhile(tmp_path: Path, tree: Path) -> None:
    """New files, changed files, and a directory that became a link out of the tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    process = sender("--move", tree)
    raw = read_stream(process)
    (tree / "new").touch()
    (tree / "file").write_text("changed")
    (tree / "deep/er").rename(outside / "er")
    (tree / "deep/er").symlink_to(outside / "er")
    answer = Result(0, zlib.crc32(raw), b"tree")
    _, err = process.communicate(answer.encode(), timeout=PATIENCE)
    assert process.returncode == 1
    assert names(tree) == {b"new", b"file", b"deep"}
    assert names(tree / "deep") == {b"er"}
    assert names(outside / "er") == {b"empty"}
    assert b"`tree/file` changed since it was copied" in err
    assert b"`tree` is not empty" in err


def test_a_file_of_several_names_is_moved_with_all_of_them(tmp_path: Path, tree: Path) -> None:
    """That it lost one name is our own change; what somebody else wrote meanwhile is not."""
    for name in ("deep/twin", "twin"):
        (tree / name).hardlink_to(tree / "file")
    (tmp_path / "third").hardlink_to(tree / "file")
    (tmp_path / "fourth").hardlink_to(tree / "file")
    assert send("--move", tree, tmp_path / "third").exit_code == 0
    assert names(tmp_path) == {b"fourth"}
    (tmp_path / "fifth").hardlink_to(tmp_path / "fourth")
    process = sender("--move", tmp_path / "fourth", tmp_path / "fifth")
    raw = read_stream(process)
    (tmp_path / "fourth").write_text("changed")
    _, err = process.communicate(Result(0, zlib.crc32(raw), b"fifth").encode(), timeout=PATIENCE)
    assert process.returncode == 1
    assert names(tmp_path) == {b"fourth", b"fifth"}
    assert err.count(b"changed since it was copied") == 2


def test_progress_for_programs(tree: Path) -> None:
    """Numbers of bytes, one a line, on the descriptor that was saved."""
    reader, writer = os.pipe()
    environment = {"PROGRESS_TYPE": "gui", "SAVED_FD_1": str(writer)}
    sent = send(tree, environment=environment, pass_fds=[writer])
    os.close(writer)
    with os.fdopen(reader) as lines:
        counts = [int(line) for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == len(sent.raw)
    quiet = send(tree, environment={"PROGRESS_TYPE": "none"})
    assert (quiet.exit_code, quiet.stderr) == (0, "")
