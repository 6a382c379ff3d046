"""`qubes-policy` and `qubes-policy-editor` against a real daemon; the editors are programs."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import stat
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from admin_lab import Daemon
from admin_world import POLICIES, world_daemon

from caisson.admin.client import Client, NoAnswerError
from caisson.errors import PolicyAdminError, PolicyTokenError
from caisson.store.policy_directory import Token
from caisson.tools.policy_files import Named, PolicyFiles
from caisson.tools.policy_problems import MOST, problems

BIN = Path(sys.executable).parent
USER = POLICIES["30-user.policy"]
ADDED = USER + b"my.Added * work @anyvm deny\n"
KEPT = re.compile(r"your text is kept in `([^`]+)`")


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with a few policy files."""
    async with world_daemon(tmp_path / "instance") as running:
        yield running


def in_force(daemon: Daemon, name: str = "30-user.policy") -> bytes:
    """What a file of the policy directory holds."""
    return (daemon.paths.etc / "policy.d" / name).read_bytes()


# --- qubes-policy --------------------------------------------------------------------------


async def test_files_are_listed_printed_replaced_and_removed(daemon: Daemon):
    """Data on standard output, exactly; policies first, then what lies in `include/`."""

    async def policy(*argv: str, stdin: str = "") -> tuple[int, str, str]:
        return await daemon.command("qubes-policy", *argv, answer=stdin)

    assert await policy("-l") == (0, "30-user\n50-more\ninclude/unused\ninclude/web\n", "")
    for get in ("-g", "--get"):
        assert await policy(get, "30-user") == (0, USER.decode(), "")
    assert await policy("include/web", "-g") == (0, POLICIES["include/web"].decode(), "")
    assert await policy("-r", "40-new", stdin="# Hé\r\n") == (0, "", "")
    assert in_force(daemon, "40-new.policy") == "# Hé\r\n".encode()
    assert await policy("--replace", "include/new", "--token", "new", stdin="") == (0, "", "")
    token = Token.of("# Hé\r\n".encode()).text
    assert await policy("-d", "40-new", "--token", token) == (0, "", "")
    assert await policy("--remove", "include/new") == (0, "", "")
    assert await policy("--list") == (0, "30-user\n50-more\ninclude/unused\ninclude/web\n", "")


@pytest.mark.parametrize(
    ("argv", "stdin", "code", "said"),
    [
        (("-g", "none"), "", 1, "error: `none.policy` does not exist\n"),
        (("-g", "../30-user"), "", 1, "error: policy file name `../30-user` is not valid\nhint: "),
        (("-g", "a\x1b[2J"), "", 1, "error: policy file name `a\\x1b[2J` is not valid\n"),
        (("-r", "30-user"), "nonsense\n", 1, "error: 30-user.policy:1:9: a rule needs 5 fields"),
        (("-r", "30-user", "--token", "new"), "", 1, "error: `30-user.policy` exists already\n"),
        (("-r", "30-User"), "", 1, "error: a policy called `30-User` would deny every call"),
        (
            ("-d", "include/web"),
            "",
            1,
            "error: the policy does not load because of `30-user.policy`",
        ),
        (("-r", "30-user"), "#" * 1_100_000, 1, "error: the value is 1100004 bytes long; "),
        ((), "", 2, "error: one of the arguments --list/-l --get/-g"),
        (("-g",), "", 2, "error: the name of the file is missing\n"),
        (("-l", "30-user"), "", 2, "error: `--list` takes no name\n"),
        (("-g", "-r", "30-user"), "", 2, "error: argument --replace/-r: not allowed with"),
    ],
)
async def test_what_is_refused_changes_nothing(
    daemon: Daemon, argv: tuple[str, ...], stdin: str, code: int, said: str
):
    """Exit code 1 for a refusal, 2 for a command line without meaning; nothing on stdout."""
    done = await daemon.command("qubes-policy", *argv, answer=stdin)
    assert done[:2] == (code, "")
    assert done[2].startswith(said), done[2]
    assert in_force(daemon) == USER


async def test_a_file_that_run_hides_is_named(daemon: Daemon):
    """What is edited would decide nothing: a warning, beside the exact data."""
    over = daemon.paths.run / "policy.d/30-user.policy"
    over.parent.mkdir(parents=True)
    over.write_text("")
    code, out, err = await daemon.command("qubes-policy", "-g", "30-user")
    assert (code, out) == (0, USER.decode())
    assert err.startswith(f"warning: `{over}` takes the place of this file")


# --- inside a qube -------------------------------------------------------------------------

SERVICE = r"""#!/bin/sh
case "$1 $2" in
  'dom0 policy.List') printf '30-user\n' ;;
  'dom0 policy.Get+30-user')
    printf 'sha256:00\ncontent\n'
    printf 'warning: something\033[2J\n' >&2 ;;
  'dom0 policy.include.Replace+web') cat >"${0%/*}/data" ;;
  'dom0 policy.Remove+30-user')
    printf 'PolicyAdminTokenException it changed\nhint: read it again\n' >&2; exit 1 ;;
  'dom0 policy.Remove+bug') printf 'QubesException internal error: x\n' >&2; exit 2 ;;
  *) echo 'Request refused' >&2; exit 126 ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A `qrexec-client-vm` whose admin qube are those few lines."""
    path = tmp_path / "qrexec-client-vm"
    path.write_text(SERVICE)
    path.chmod(0o755)
    return path


def test_inside_a_qube_the_services_are_called_without_a_frame(
    program: Path, capsys: pytest.CaptureFixture[str]
):
    """Token and content come apart, refusals keep their class, and warnings reach the person."""
    files = PolicyFiles(Client(qrexec=str(program)))
    user = Named.parse("30-user")
    assert files.names(included=False) == ["30-user"]
    assert files.read(user) == ("sha256:00", b"content\n")
    assert capsys.readouterr().err == "warning: something\\x1b[2J\n"
    files.replace(Named.parse("include/web"), "any", b"\0\xff")
    assert (program.parent / "data").read_bytes() == b"any\n\0\xff"
    with pytest.raises(PolicyTokenError) as caught:
        files.remove(user, "any")
    assert (caught.value.message, caught.value.hint) == ("it changed", "read it again")
    with pytest.raises(Exception, match="internal error") as bug:
        files.remove(Named.parse("bug"), "any")
    assert not isinstance(bug.value, PolicyAdminError)
    with pytest.raises(NoAnswerError, match="Request refused"):
        files.names(included=True)


# --- qubes-policy-editor -------------------------------------------------------------------


@pytest.fixture
def drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the editor keeps its texts."""
    path = tmp_path / "drafts"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.delenv("VISUAL", raising=False)
    return path


def left(drafts: Path) -> list[Path]:
    """What lies there."""
    return list(drafts.iterdir())


def kept(said: str) -> bytes:
    """The text that a person is told is kept, in a file that is nobody else's."""
    found = KEPT.search(said)
    assert found, said
    path = Path(found[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path.read_bytes()


def script(path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make this shell text the editor; `$1` is the file, `$n` how often it was run before."""
    program = path.with_name("an editor")
    program.write_text(
        f'#!/bin/sh\nset -e\nn=$(cat "$0.n" 2>/dev/null || echo 0)\necho $((n + 1)) >"$0.n"\n{text}'
    )
    program.chmod(0o755)
    monkeypatch.setenv("EDITOR", f"'{program}'")


async def test_an_edited_text_comes_into_force(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """$VISUAL before $EDITOR, split into words and given to no shell; nothing is left behind."""
    monkeypatch.setenv("EDITOR", "false")
    monkeypatch.setenv("VISUAL", "sed -i -e '$ a my.Added * work @anyvm deny'")
    done = await daemon.command("qubes-policy-editor")
    assert done == (0, "", "`30-user` is in force\n")
    assert in_force(daemon) == ADDED
    monkeypatch.setenv("VISUAL", "sed -i -e 1iwork\\ base\\ deny")
    assert (await daemon.command("qubes-policy-editor", "include/web"))[0] == 0
    assert in_force(daemon, "include/web") == b"work base deny\n" + POLICIES["include/web"]
    monkeypatch.setenv("VISUAL", "sh -c 'echo \"# $0\" >\"$1\"' ';$(id)`id`&'")
    assert (await daemon.command("qubes-policy-editor", "40-new"))[0] == 0
    assert in_force(daemon, "40-new.policy") == b"# ;$(id)`id`&\n"
    assert left(drafts) == []


async def test_the_text_is_nobody_elses_while_it_is_edited(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """A directory and a file for the user alone, whatever the umask."""
    script(drafts, monkeypatch, 'stat -c %a "$1" "${1%/*}" >"$0.modes"\necho "#" >>"$1"\n')
    before = os.umask(0)
    try:
        assert (await daemon.command("qubes-policy-editor"))[0] == 0
    finally:
        os.umask(before)
    assert drafts.with_name("an editor.modes").read_text() == "600\n700\n"


@pytest.mark.parametrize("editor", ["true", "touch"])
async def test_an_unchanged_text_is_not_sent(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch, editor: str
):
    """Nothing is written, no file is left, and it is no failure."""
    monkeypatch.setenv("EDITOR", editor)
    inode = (daemon.paths.etc / "policy.d/30-user.policy").stat().st_ino
    done = await daemon.command("qubes-policy-editor", "30-user")
    assert done == (0, "", "`30-user` was not changed\n")
    assert (daemon.paths.etc / "policy.d/30-user.policy").stat().st_ino == inode
    assert left(drafts) == []


async def test_all_mistakes_are_shown_and_the_text_can_be_mended(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each with its line; an answer that is none is asked again."""
    script(
        drafts,
        monkeypatch,
        'case $n in 0) printf "a b\\nmy.X * a b maybe\\n!what\\n" ;; 1) printf "# ok\\n" ;; esac'
        ' >"$1"\n',
    )
    code, _, err = await daemon.command("qubes-policy-editor", answer="\nx\ne\n")
    assert code == 0
    for line in ("30-user.policy:1:4: ", "30-user.policy:2:12: ", "30-user.policy:3:1: "):
        assert f"error: {line}" in err
    assert err.count("[e] edit again") == 3
    assert err.endswith("`30-user` is in force\n")
    assert in_force(daemon) == b"# ok\n"
    assert left(drafts) == []


async def test_what_only_the_daemon_can_see_is_shown_too(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """An include that is missing is a mistake like another one."""
    script(drafts, monkeypatch, 'case $n in 0) echo "!include x" ;; *) echo "#" ;; esac >"$1"\n')
    code, _, err = await daemon.command("qubes-policy-editor", answer="e\n")
    assert (code, in_force(daemon)) == (0, b"#\n")
    assert "error: 30-user.policy:1:10: included file `x` does not exist" in err


@pytest.mark.parametrize("answer", ["", "k\n"])
async def test_a_text_that_is_given_up_is_kept_and_its_place_told(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch, answer: str
):
    """Also where nobody answers."""
    script(drafts, monkeypatch, 'echo "of an hour" >>"$1"\n')
    code, _, err = await daemon.command("qubes-policy-editor", answer=answer)
    assert (code, in_force(daemon)) == (1, USER)
    assert kept(err) == USER + b"of an hour\n"


async def test_a_text_is_discarded_only_if_one_says_so(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """Then nothing is left of it."""
    script(drafts, monkeypatch, 'echo nonsense >"$1"\n')
    code, _, err = await daemon.command("qubes-policy-editor", answer="d\n")
    assert (code, in_force(daemon), left(drafts)) == (1, USER, [])
    assert err.endswith("your text is discarded; `30-user` is not changed\n")


async def test_a_change_by_somebody_else_is_not_overwritten(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """The text is set aside, the new version opens; what is written then comes into force."""
    path = daemon.paths.etc / "policy.d/30-user.policy"
    script(
        drafts,
        monkeypatch,
        f"case $n in 0) echo '# theirs' >'{path}'; echo '# mine' >\"$1\" ;;\n"
        '  *) cp "$1" "$0.seen"; echo "# both" >>"$1" ;; esac\n',
    )
    code, _, err = await daemon.command("qubes-policy-editor", answer="e\n")
    assert code == 0
    assert "error: `30-user.policy` was changed since it was read" in err
    assert drafts.with_name("an editor.seen").read_bytes() == b"# theirs\n"
    assert in_force(daemon) == b"# theirs\n# both\n"
    assert kept(err) == b"# mine\n"


async def test_a_conflict_that_is_given_up_keeps_both_texts(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """Theirs is in force, mine in a file; also where theirs is that the file is gone."""
    path = daemon.paths.etc / "policy.d/30-user.policy"
    script(drafts, monkeypatch, f"rm '{path}'; echo '# mine' >\"$1\"\n")
    code, _, err = await daemon.command("qubes-policy-editor", answer="k\n")
    assert code == 1
    assert not path.exists()
    assert kept(err) == b"# mine\n"


@pytest.mark.parametrize(
    ("editor", "said"),
    [
        ("/nonexistent", "error: cannot run the editor `/nonexistent`\nhint: set EDITOR"),
        ("'", "error: EDITOR is `'`: No closing quotation\n"),
        ("false", "error: the editor failed with exit code 1\n"),
        ("rm", "error: the editor removed the file\n"),
    ],
)
async def test_an_editor_that_fails_changes_nothing(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch, editor: str, said: str
):
    """The error says what went wrong."""
    monkeypatch.setenv("EDITOR", editor)
    code, out, err = await daemon.command("qubes-policy-editor")
    assert (code, out) == (1, "")
    assert err.startswith(said)
    assert in_force(daemon) == USER


async def test_a_text_that_an_editor_wrote_before_it_failed_is_kept(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """A crash of the editor loses nothing that it saved."""
    script(drafts, monkeypatch, 'echo "# mine" >"$1"\nexit 3\n')
    code, _, err = await daemon.command("qubes-policy-editor")
    assert code == 1
    assert kept(err) == b"# mine\n"


async def test_ctrl_c_at_the_question_loses_nothing(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """The text is kept and its place told, as after every other end."""
    script(drafts, monkeypatch, 'echo "of an hour" >"$1"\n')
    child = await asyncio.create_subprocess_exec(
        BIN / "qubes-policy-editor",
        "--root",
        str(daemon.paths.root),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    async with asyncio.timeout(60):
        await child.stderr.readuntil(b"discard it? ")
        child.send_signal(signal.SIGINT)
        err = await child.stderr.read()
        assert await child.wait() == 130
    assert kept(err.decode()) == b"of an hour\n"
    assert in_force(daemon) == USER


async def test_the_terminal_comes_back_as_it_was(
    daemon: Daemon, drafts: Path, monkeypatch: pytest.MonkeyPatch
):
    """An editor that dies in raw mode does not leave a terminal that echoes nothing."""
    script(drafts, monkeypatch, "stty raw -echo\n")
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        child = await asyncio.create_subprocess_exec(
            BIN / "qubes-policy-editor",
            "--root",
            str(daemon.paths.root),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        async with asyncio.timeout(60):
            assert await child.wait() == 0
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


# --- the check before ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("30-user", "", []),
        ("30-user", "s.X * work vault allow\n# x\n!include a\n!compat-4.0\n", []),
        ("30-user", "work vault allow\n", ["30-user.policy:1:17"]),
        ("30-user", "x\r\ns.X * a b allow\ry\nz", [f"30-user.policy:{n}:2" for n in (1, 3, 4)]),
        ("30-user", "!include-service s/X * a\n", ["30-user.policy:1:18"]),
        ("include/admin-local-ro", "mgmt @tag:x allow target=dom0\n!include include/y\n", []),
        ("include/admin-local-ro", "s.X * a b allow\n", ["include/admin-local-ro:1:7"]),
        ("include/web", "work vault allow\n", []),
        ("include/web", "s.X * work vault allow\n", []),
        ("include/web", "s.X * work vault allow\n!compat-4.0\nnonsense\n", ["include/web:3:9"]),
    ],
)
def test_problems_of_a_text(name: str, text: str, places: list[str]):
    """Every line that is wrong by itself, in the format that the file is in."""
    found = problems(Named.parse(name), text.encode())
    assert [str(error).partition(": ")[0] for error in found] == places


def test_a_text_of_nothing_but_problems_is_not_told_to_its_end():
    """Nobody reads a thousand errors."""
    assert len(problems(Named.parse("30-user"), b"x\n" * 1_000)) == MOST
    assert len(problems(Named.parse("30-user"), b"\xff\n\xef\xbb\xbf\n\0\n")) == 3
