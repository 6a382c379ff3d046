"""`qvm-open-in-vm`, `qvm-open-in-dvm` and their services, over pipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from agent_rig import Outcome
from opener_rig import Desk

FIELD = 256


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk whose calls reach the real receivers."""
    desk = Desk(tmp_path)
    desk.service("qubes.OpenInVM", "exec vm-file-editor")
    desk.service("qubes.OpenURL", "exec qubes-open-url")
    desk.opener('printf "%s" "$1" >"$DESK/opened"; echo more >>"$1"')
    return desk


@pytest.fixture
def letter(desk: Desk) -> Path:
    """A file of the user's."""
    path = desk.home / "user/letter.txt"
    path.write_text("text\n")
    path.chmod(0o640)
    return path


def files(desk: Desk) -> list[str]:
    """The names in the user's directory."""
    return sorted(path.name for path in (desk.home / "user").iterdir())


def opened(desk: Desk) -> Path:
    """The path that the opener got."""
    return Path((desk.home / "opened").read_text())


def received(desk: Desk, name: bytes, content: bytes = b"", **more: str) -> Outcome:
    """Call the receiver with a field as it stands."""
    return desk.run("vm-file-editor", stdin=name.ljust(FIELD, b"\0") + content, **more)


def test_an_edit_replaces_the_file_and_leaves_nothing_behind(desk: Desk, letter: Path) -> None:
    """New content, the old mode; the other side keeps no copy."""
    assert desk.run("qvm-open-in-vm", "notes", "letter.txt").code == 0
    assert letter.read_text() == "text\nmore\n"
    assert letter.stat().st_mode & 0o7777 == 0o640
    assert files(desk) == ["letter.txt"]
    assert desk.calls() == ["notes qubes.OpenInVM"]
    assert opened(desk).name == "letter.txt"
    assert opened(desk).parent.name.startswith("work-")
    assert not opened(desk).parent.exists()


def test_what_comes_back_gets_no_other_user_s_rights(desk: Desk, letter: Path) -> None:
    """A program that was one with set-user-id is one without it, once another qube wrote it."""
    letter.chmod(0o6750)
    assert desk.run("qvm-open-in-vm", "notes", "letter.txt").code == 0
    assert letter.read_text() == "text\nmore\n"
    assert letter.stat().st_mode & 0o7777 == 0o750


def test_a_file_that_was_only_looked_at_stays_the_same_file(desk: Desk, letter: Path) -> None:
    """Neither its inode nor its time changes."""
    before = letter.stat()
    desk.opener('cat "$1"')
    outcome = desk.run("qvm-open-in-dvm", f"file://{letter}")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, b"", b"")
    assert letter.stat() == before
    assert desk.calls() == ["@dispvm qubes.OpenInVM"]


def test_what_the_opener_prints_is_not_the_content(desk: Desk, letter: Path) -> None:
    """Programs print a lot; only the file goes back."""
    desk.opener("echo noise")
    assert desk.run("qvm-open-in-vm", "notes", "letter.txt").code == 0
    assert letter.read_text() == "text\n"


def test_view_only_means_that_nothing_comes_back(desk: Desk, letter: Path) -> None:
    """The file is read-only there, and what is sent all the same is not taken here."""
    desk.opener('stat -c %a "$1" >"$DESK/mode"; chmod 600 "$1"; echo more >>"$1"')
    assert desk.run("qvm-open-in-vm", "--view-only", "notes", "letter.txt").code == 0
    assert (desk.home / "mode").read_text() == "400\n"
    desk.service("qubes.OpenInVM", "cat >/dev/null; echo forged")
    assert desk.run("qvm-open-in-dvm", "--view-only", "letter.txt").code == 0
    assert (letter.read_text(), files(desk)) == ("text\n", ["letter.txt"])


def test_an_edit_that_ends_with_an_error_does_not_replace_the_file(
    desk: Desk, letter: Path
) -> None:
    """What an editor saved before it crashed lies beside the file."""
    desk.opener('echo more >>"$1"; exit 3')
    outcome = desk.run("qvm-open-in-vm", "notes", "letter.txt")
    assert outcome.code == 1
    assert letter.read_text() == "text\n"
    [beside] = [name for name in files(desk) if name != "letter.txt"]
    assert beside.startswith("letter.txt.edited.")
    assert beside.encode() in outcome.stderr
    assert (letter.parent / beside).read_text() == "text\nmore\n"


@pytest.mark.parametrize("code", [125, 126, 137, 255])
def test_half_of_a_reply_is_no_reply(desk: Desk, letter: Path, code: int) -> None:
    """A call that breaks off does not truncate the file, and its code is the caller's."""
    desk.service("qubes.OpenInVM", f"cat >/dev/null; printf te; exit {code}")
    assert desk.run("qvm-open-in-vm", "notes", "letter.txt").code == code
    assert letter.read_text() == "text\n"


def test_a_refused_call_changes_nothing(desk: Desk, letter: Path) -> None:
    """126, as the client says it."""
    (desk.home / "services/qubes.OpenInVM").unlink()
    outcome = desk.run("qvm-open-in-vm", "notes", "letter.txt")
    assert (outcome.code, outcome.stderr) == (126, b"Request refused\n")
    assert (letter.read_text(), files(desk)) == ("text\n", ["letter.txt"])


def test_what_is_sent_is_a_padded_name_and_the_content(desk: Desk, letter: Path) -> None:
    """256 bytes with zeros behind the name: no memory of the sender leaks (QSB-009)."""
    desk.service("qubes.OpenInVM", 'cat >"$DESK/sent"')
    assert desk.run("qvm-open-in-vm", "notes", "letter.txt").code == 0
    sent = (desk.home / "sent").read_bytes()
    assert sent == b"letter.txt".ljust(FIELD, b"\0") + b"text\n"
    long = desk.home / "user" / ("x" * 246 + ".pdf")
    long.touch()
    assert desk.run("qvm-open-in-vm", "--view-only", "notes", long.name).code == 0
    sent = (desk.home / "sent").read_bytes()
    assert sent == b"view-only-" + b"x" * 241 + b".pdf" + b"\0"
    letter.rename(letter.with_name("--view-only"))
    assert desk.run("qvm-open-in-vm", "notes", "--", "--view-only").code == 2
    assert desk.run("qvm-open-in-vm", "--", "notes", "--view-only").code == 0
    assert (desk.home / "sent").read_bytes().startswith(b"--view-only\0")


def test_a_link_is_followed_once_and_stays_a_link(desk: Desk, letter: Path) -> None:
    """The file that it names gets the new content."""
    link = letter.with_name("link")
    link.symlink_to("letter.txt")
    assert desk.run("qvm-open-in-vm", "notes", "link").code == 0
    assert link.is_symlink()
    assert letter.read_text() == "text\nmore\n"


def test_a_file_that_is_swapped_for_a_link_meanwhile_is_not_written_through(
    desk: Desk, letter: Path
) -> None:
    """The classes of QSB-014 and CVE-2024-1753: what lies behind the new link stays as it is."""
    victim = letter.with_name("victim")
    victim.write_text("precious\n")
    desk.opener(f'echo more >>"$1"; ln -sf victim {letter}')
    outcome = desk.run("qvm-open-in-vm", "notes", "letter.txt")
    assert outcome.code == 1
    assert b"it has changed here meanwhile" in outcome.stderr
    assert victim.read_text() == "precious\n"
    assert letter.is_symlink()


def test_a_change_here_during_the_edit_is_not_lost(desk: Desk, letter: Path) -> None:
    """Both versions are there afterwards."""
    desk.opener(f'echo there >>"$1"; echo here >>{letter}')
    assert desk.run("qvm-open-in-vm", "notes", "letter.txt").code == 1
    assert letter.read_text() == "text\nhere\n"
    [beside] = [name for name in files(desk) if name != "letter.txt"]
    assert (letter.parent / beside).read_text() == "text\nthere\n"


def test_an_edited_file_that_became_a_link_is_not_sent(desk: Desk, letter: Path) -> None:
    """A document that swaps itself for a link gets no other file out of its qube (QSB-014)."""
    secret = desk.home / "secret"
    secret.write_text("secret\n")
    for swap in (f'ln -sf {secret} "$1"', 'rm "$1"; mkfifo "$1"', 'rm "$1"; mkdir "$1"'):
        desk.opener(swap)
        outcome = desk.run("qvm-open-in-vm", "notes", "letter.txt")
        assert outcome.code == 1
        assert b"no regular file any more" in outcome.stderr
        assert (letter.read_text(), files(desk)) == ("text\n", ["letter.txt"])


def test_what_a_document_leaves_behind_is_removed_without_following_links(desk: Desk) -> None:
    """The directory goes with all that it holds; what links in it point to stays."""
    kept = desk.home / "kept"
    kept.mkdir()
    (kept / "file").touch()
    desk.opener(
        f'printf %s "$1" >"$DESK/opened"; cd "${{1%/*}}"; mkdir -p a/b; touch a/b/c; ln -s {kept} l'
    )
    assert received(desk, b"a").code == 0
    assert (kept / "file").exists()
    assert not opened(desk).parent.exists()


def test_an_endless_reply_ends_at_the_bound(desk: Desk, letter: Path) -> None:
    """A hostile qube fills no disk: nothing stays of what it sent."""
    desk.service("qubes.OpenInVM", "cat >/dev/null; exec cat /dev/zero")
    outcome = desk.run("qvm-open-in-vm", "notes", "letter.txt", QUBES_OPEN_LIMIT="200000")
    assert outcome.code == 1
    assert b"larger than 200000 bytes" in outcome.stderr
    assert (letter.read_text(), files(desk)) == ("text\n", ["letter.txt"])


def test_a_file_beyond_the_bound_is_neither_sent_nor_taken(desk: Desk, letter: Path) -> None:
    """On the sending side before the call, on the receiving side before anything is opened."""
    outcome = desk.run("qvm-open-in-vm", "notes", "letter.txt", QUBES_OPEN_LIMIT="4")
    assert (outcome.code, desk.calls()) == (1, [])
    assert received(desk, b"a", b"12345", QUBES_OPEN_LIMIT="4").code == 1
    assert not (desk.home / "opened").exists()
    assert received(desk, b"a", b"1234", QUBES_OPEN_LIMIT="4").code == 1
    assert (desk.home / "opened").exists()


@pytest.mark.parametrize("limit", ["x", "", "-1", "1k", "99999999999999999999"])
def test_a_bound_that_is_no_number_is_refused(desk: Desk, letter: Path, limit: str) -> None:
    """On both sides, with 2: it was meant to hold."""
    told = b"error: `QUBES_OPEN_LIMIT` is not a number of bytes\n"
    asked = desk.run("qvm-open-in-vm", "notes", letter.name, QUBES_OPEN_LIMIT=limit)
    assert (asked.code, asked.stderr, desk.calls()) == (2, told, [])
    taken = received(desk, b"a", b"1", QUBES_OPEN_LIMIT=limit)
    assert (taken.code, taken.stdout, taken.stderr) == (2, b"", told)
    assert not (desk.home / "opened").exists()


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/", "pipe", "missing", "/proc/self/mem"], ids=lambda path: path
)
def test_what_is_no_file_is_not_sent(desk: Desk, path: str) -> None:
    """Devices, directories and pipes; none of them makes us wait."""
    os.mkfifo(desk.home / "user/pipe")
    assert desk.run("qvm-open-in-vm", "notes", path).code == 1
    assert not (desk.home / "opened").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a b\x1b]0;x\x07.txt", "a_b__0_x_.txt"),
        (b"-oProxyCommand=x", "_oProxyCommand_x"),
        (b"..", "_."),
        (b".bashrc", "_bashrc"),
        ("\u202etxt.exe".encode(), "___txt.exe"),
        (b"$(id);`id`", "__id___id_"),
        (b"a\0/../../b", "a"),
    ],
)
def test_names_are_harmless_before_a_program_sees_them(
    desk: Desk, name: bytes, expected: str
) -> None:
    """Escape sequences, options, hidden files, bidirectional marks (QSB-087, QSB-071, QSB-038)."""
    desk.opener('printf "%s" "$1" >"$DESK/opened"')
    assert received(desk, name).code == 0
    assert opened(desk).name == expected


@pytest.mark.parametrize("name", [b"../x", b"/etc/passwd", b"", b"view-only-", b"x" * FIELD])
def test_wrong_names_open_nothing(desk: Desk, name: bytes) -> None:
    """A slash, no name, no end."""
    outcome = received(desk, name)
    assert (outcome.code, outcome.stdout) == (1, b"")
    assert outcome.stderr.startswith(b"error: the file")
    assert not (desk.home / "opened").exists()
    assert desk.run("vm-file-editor", stdin=b"short").code == 1


def test_the_source_is_part_of_the_path_and_nothing_more(desk: Desk) -> None:
    """Even a name that no qube can have leads nowhere else."""
    assert received(desk, b"a", QREXEC_REMOTE_DOMAIN="../etc/x").code == 0
    assert opened(desk).parent.parent == Path("/tmp")
    assert opened(desk).parent.name.startswith(".._etc_x-")


def test_a_qube_without_an_opener_says_so(desk: Desk, letter: Path) -> None:
    """The file stays, the code is 1, and the hint names a remedy."""
    desk.environment["QUBES_OPEN_WITH"] = str(desk.home / "missing")
    outcome = desk.run("qvm-open-in-vm", "notes", "letter.txt")
    assert outcome.code == 1
    told = b"error: the qube that was to open it has no program that opens files\nhint: install"
    assert told in outcome.stderr
    assert letter.read_text() == "text\n"
    assert desk.run("qvm-open-in-vm", "notes", "http://h").code == 1


GOOD = "https://example.org/a?b=$(id)&c='x'#y"


def test_an_address_reaches_the_browser_as_one_argument(desk: Desk) -> None:
    """No shell, no splitting: what is not plain is percent-encoded (QSB-038)."""
    desk.opener('printf "%s\\n" "$#" "$1" >"$DESK/opened"')
    assert desk.run("qvm-open-in-dvm", GOOD).code == 0
    assert (desk.home / "opened").read_text() == f"1\n{GOOD}\n"
    assert desk.calls() == ["@dispvm qubes.OpenURL"]
    assert desk.run("qvm-open-in-vm", "notes", 'http://ü/"`\\').code == 0
    assert (desk.home / "opened").read_text() == "1\nhttp://%C3%BC/%22%60%5C\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"file:///etc/passwd\n",
        b"--version\n",
        b"javascript:alert(1)\n",
        b" http://x\n",
        b"http://\n",
        b"http://-oX\n",
        b"http://a b\n",
        b"http://a\x1b[2J\n",
        b"http://a\rhttp://b\n",
        b"http://a\0\n",
        b"http://" + b"a" * 20_000 + b"\n",
        b"\x00" * 20_000,
    ],
)
def test_other_lines_open_nothing(desk: Desk, line: bytes) -> None:
    """Other schemes, options, controls, and lines without end (QSB-071, QSB-087)."""
    outcome = desk.run("qubes-open-url", stdin=line)
    assert outcome.code == 1
    assert outcome.stderr.isascii()
    assert b"\x1b" not in outcome.stderr
    assert not (desk.home / "opened").exists()


def test_a_wrong_address_is_not_even_sent(desk: Desk) -> None:
    """It is refused where it was typed."""
    outcome = desk.run("qvm-open-in-dvm", b"http://a\x1b[2J")
    assert (outcome.code, desk.calls()) == (1, [])
    assert b"\x1b" not in outcome.stderr


def test_a_browser_that_fails_is_an_error(desk: Desk) -> None:
    """The caller learns it, by code 1."""
    desk.opener("exit 4")
    assert desk.run("qvm-open-in-vm", "notes", GOOD).code == 1


def test_wrong_command_lines_are_usage_errors(desk: Desk) -> None:
    """Code 2, and help on request."""
    for wrong in ([], ["notes"], ["notes", "a", "b"], ["--wrong", "notes", "a"]):
        assert desk.run("qvm-open-in-vm", *wrong).code == 2
    assert desk.run("qvm-open-in-dvm", "a", "b").code == 2
    for name in ("qvm-open-in-vm", "qvm-open-in-dvm"):
        outcome = desk.run(name, "--help")
        assert (outcome.code, outcome.stdout.startswith(b"usage: " + name.encode())) == (0, True)
