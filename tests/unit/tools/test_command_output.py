"""What the commands print, as far as no daemon is needed for it."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from patience import PATIENCE

from caisson.errors import CaissonError
from caisson.model.declarations import PROPERTIES
from caisson.tools import command, properties, qvm_run, running, selection, terminal, umbrella
from caisson.tools.command import UsageError
from caisson.tools.parallel import at_once

TOP = Path(__file__).resolve().parents[3]


def test_table_has_two_spaces_between_columns_and_nothing_after_the_last() -> None:
    """Scripts split such tables at runs of spaces."""
    assert terminal.table([("NAME", "STATE"), ("sys-firewall", "-")]) == (
        "NAME          STATE\nsys-firewall  -\n"
    )


def test_escape_sequences_never_reach_a_terminal() -> None:
    """A qube's text could otherwise retitle, recolour or type into the terminal."""
    assert terminal.harmless("a\x1b]0;owned\x07b\x9b1m") == "a\\x1b]0;owned\\x07b\\x9b1m"
    assert terminal.harmless("zwölf") == "zwölf"


def test_error_is_shown_with_its_hint_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The form that every error has."""
    terminal.complain(CaissonError("qube `x` does not exist", "did you mean `y`?"))
    assert capsys.readouterr().err == ("error: qube `x` does not exist\nhint: did you mean `y`?\n")


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("default=False type=str red", ("p", "-", "red")),
        ("default=True type=vm ", ("p", "D", "None")),
        ("default=True type=int ", ("p", "U")),
        ("default=True type=str ", ("p", "D", "")),
        ("default=True type=str two words", ("p", "D", "two words")),
    ],
)
def test_property_is_listed_with_its_flag(text: str, row: tuple[str, ...]) -> None:
    """`-` set, `D` default, `U` no value; no qube is `None`."""
    assert properties.decode("p", text).row() == row


def test_property_line_is_unescaped() -> None:
    """`GetAll` keeps each property on one line."""
    line = "p default=False type=str a\\\\nb\\nc"
    assert properties.decode_line(line).text == "a\\nb\nc"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ls"], "DEFAULT:ls"),
        (["ls", "-l"], "DEFAULT:QUBESRPC qubes.VMExec+ls+--l dom0"),
        (["printf", "ä b", ""], "DEFAULT:QUBESRPC qubes.VMExec+printf+-C3-A4-20b+ dom0"),
        (["--no-shell", "a_b-c.d"], "DEFAULT:QUBESRPC qubes.VMExec+a_b--c.d dom0"),
        (["-u", "root", "id"], "root:id"),
        (["--service", "qubes.Filecopy"], "DEFAULT:QUBESRPC qubes.Filecopy+ dom0"),
        (["--service", "a.B+c"], "DEFAULT:QUBESRPC a.B+c dom0"),
    ],
)
def test_command_reaches_the_qube_as_it_was_typed(words: list[str], line: str) -> None:
    """One word goes to the shell, several are a program with its arguments, byte by byte."""
    options = [w for w in words if w.startswith("-") or w == "root"]
    rest = words[len(options) :] if words[0].startswith("-") else words
    argv = [*(options if words[0].startswith("-") else []), "work", *rest]
    arguments, names, found = qvm_run.split_words(qvm_run.parser(), argv)
    assert names == ["work"]
    todo = running.job(
        found, user=arguments.user, service=arguments.service, no_shell=arguments.no_shell
    )
    assert todo.in_qube() == line


def test_options_are_recognised_until_the_command_begins() -> None:
    """`qvm-run work -p ls -l` and `qvm-run -p work ls -l` mean the same."""
    for argv in (["work", "-p", "ls", "-l"], ["-p", "work", "ls", "-l"]):
        arguments, names, words = qvm_run.split_words(qvm_run.parser(), argv)
        assert (arguments.pass_io, names, words) == (True, ["work"], ["ls", "-l"])


def test_dispvm_does_not_take_the_command_for_its_base() -> None:
    """`--dispvm CMD` uses the default; only `--dispvm=BASE` names one."""
    arguments, names, words = qvm_run.split_words(qvm_run.parser(), ["--dispvm", "-p", "ls"])
    assert (arguments.dispvm, names, words) == ("@dispvm", [], ["ls"])
    arguments, names, words = qvm_run.split_words(qvm_run.parser(), ["--dispvm=base", "ls", "-a"])
    assert (arguments.dispvm, names, words) == ("base", [], ["ls", "-a"])


def _listed(*names: str) -> dict[str, selection.Listed]:
    return {name: selection.Listed(name, "AppVM", "Halted") for name in names}


def test_patterns_choose_qubes_but_never_the_admin_qube() -> None:
    """`*` in a destructive command must not mean dom0."""
    qubes = _listed("dom0", "work-mail", "work-web", "vault")
    assert selection.matching(["work-*"], qubes) == ["work-mail", "work-web"]
    assert selection.matching(["*"], qubes) == ["work-mail", "work-web", "vault"]
    assert selection.matching(["vault", "*"], qubes) == ["vault", "work-mail", "work-web"]


def test_unknown_qube_is_answered_with_the_nearest_name() -> None:
    """A typing error costs one look."""
    with pytest.raises(CaissonError, match="did you mean `vault`"):
        selection.matching(["valut"], _listed("dom0", "vault"))


def test_all_and_names_exclude_each_other() -> None:
    """Neither both nor none."""
    made = command.parser("x", "y")
    selection.add_many(made)
    for argv in ([], ["--all", "a"], ["--exclude", "a", "a"]):
        with pytest.raises(UsageError):
            selection.chosen(made.parse_args(argv), _listed("a"))


def test_computed_properties_are_those_of_the_declarations() -> None:
    """The list in the tools is a copy, since the model is heavy to import."""
    computed: dict[str, bool] = {}
    for some in PROPERTIES.values():
        for name, declared in some.items():
            computed[name] = computed.get(name, True) and declared.read_only
    assert {name for name, is_so in computed.items() if is_so} == properties.COMPUTED


@pytest.mark.parametrize("script", ["install", "uninstall", "install-policy", "setup", "demo"])
def test_script_says_how_it_is_called_and_takes_nothing_else(script: str, tmp_path: Path) -> None:
    """Before it does anything: as nobody, who can do nothing, from another directory."""
    path = os.path.relpath(TOP / "script" / script, tmp_path)
    for word, code in (("--help", 0), ("-h", 0), ("--nosuch", 2)):
        argv = [path, word] if word != "--nosuch" or script != "uninstall" else [path, "--purg"]
        shown = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=False, text=True)
        assert shown.returncode == code
        assert (shown.stderr == "", shown.stdout == "") == (code == 0, code != 0)
        assert script in shown.stdout + shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_policy_is_installed_into_a_named_directory_only(tmp_path: Path) -> None:
    """A relative one is below the directory of the caller."""
    path = TOP / "script/install-policy"
    missing = subprocess.run([path], capture_output=True, check=False, text=True)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: the directory is missing\nhint: usage: ")
    subprocess.run([path, "here"], cwd=tmp_path, check=True)
    assert (tmp_path / "here/30-user.policy").is_file()


def test_units_start_python_without_the_current_directory() -> None:
    """As `caisson up` does: whoever may write there would be root."""
    starts = [
        line
        for unit in (TOP / "systemd").glob("*.service")
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart=") and "python" in line
    ]
    assert len(starts) == 2
    assert all("/python -P -m " in line for line in starts)


COMMANDS = [
    *sorted(path.stem for path in (TOP / "caisson/tools").glob("qvm_*.py")),
    "qubes_policy",
    "qubes_policy_editor",
    "qubes_prefs",
    "qubesd_query",
    "umbrella",
]


@pytest.mark.parametrize("module", COMMANDS)
def test_command_imports_nothing_heavy(module: str) -> None:
    """Commands start within 80 ms only as long as these stay out; a measured time would flake."""
    heavy = {"asyncio", "msgspec", "structlog", "rich", "json", "subprocess", "caisson.model"}
    code = f"import sys, caisson.tools.{module}; print(*({heavy!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert shown.stdout.split() == []


@pytest.mark.parametrize("module", COMMANDS)
def test_command_without_a_daemon_says_how_to_start_it(module: str, tmp_path: Path) -> None:
    """One clear error with a hint, and an exit code that is not 0."""
    words = {"qvm_ls": [], "qubes_prefs": [], "qvm_run": ["work", "ls"]}
    words |= {"umbrella": ["template", "list"], "qvm_create": ["work", "-l", "red"]}
    words |= {"qvm_clone": ["work", "copy"], "qvm_notes": ["work", "-p"]}
    words |= {"qvm_pool": ["list"], "qvm_volume": ["list"], "qubes_policy": ["-l"]}
    words |= {"qubesd_query": ["-e", "dom0", "admin.vm.List", "dom0"]}
    argv = words.get(module, ["work"])
    code = f"import sys, caisson.tools.{module} as m; sys.argv[1:] = {argv!r}; sys.exit(m.main())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "CAISSON_ROOT": str(tmp_path)},
    )
    assert shown.returncode == (255 if module == "qvm_run" else 1)
    assert shown.stdout == ""
    assert shown.stderr.startswith("error: the daemon does not run: nobody answers at")
    assert "\nhint: start it: `sudo caisson up`" in shown.stderr


@pytest.mark.parametrize("writer", ["completion", "manual"])
def test_what_is_written_from_the_parsers_is_what_they_say(writer: str) -> None:
    """An option that is added or renamed has to be offered and explained too."""
    shown = subprocess.run([sys.executable, f"script/{writer}.py", "--check"], cwd=TOP, check=False)
    assert shown.returncode == 0


def test_no_line_of_a_manual_page_is_wider_than_a_terminal() -> None:
    """Lines that are not filled are taken as they are; man(1) indents them by 7."""
    for page in (TOP / "man").glob("*.1"):
        filled = True
        for line in page.read_text().splitlines():
            if line in {".nf", ".fi"}:
                filled = line == ".fi"
            elif not filled:
                shown = line.replace("\\&", "").replace("\\-", "-")
                assert len(shown) <= 80 - 7, page


def test_every_option_and_word_is_explained() -> None:
    """In each page of the manual, which is also the reference."""
    for page in (TOP / "man").glob("*.1"):
        text = page.read_text()
        lines = text.splitlines()
        explained = [
            after
            for line, _, after in zip(lines, lines[1:], lines[2:], strict=False)
            if line == ".TP"
        ]
        # Some commands that live in qubes take words only, which their description explains.
        assert explained or ".SH OPTIONS" not in text
        assert "\\&" not in explained


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["qvm-start", "w"], ["work", "web"]),
        (["qvm-volume", "re"], ["resize", "revert"]),
        (["qvm-volume", "info", "we"], ["web:"]),
        (["qvm-volume", "info", "work", ":"], ["root", "private", "volatile", "kernel"]),
        (["qvm-volume", "clone", "work", ":", "root", "web", ":", "pri"], ["private"]),
        (["qvm-ls", "--for"], ["--format"]),
        (["qvm-ls", "--format", "di"], ["disk"]),
        (["qvm-pool", "info", ""], ["fast"]),
        (["qvm-prefs", "work", "netvm", ""], ["work", "web", "none"]),
        (["qvm-prefs", "work", "template-for-dispvms", "T"], ["True"]),
        (["qvm-prefs", "work", "label", "o"], ["orange"]),
        (["qvm-prefs", "work", "memory", ""], []),
        (["qubes-prefs", "default_netvm", "n"], ["none"]),
        (["qrexec-client", "--socket-"], ["--socket-dir"]),
        (["qrexec-client", "-d", "w"], ["work", "web"]),
        (["qvm-create", "--class", "R"], ["RemoteVM"]),
        (["caisson", "policy", "explain", "w"], ["work", "web"]),
        (["caisson", "policy", "explain", "work", "we"], ["web"]),
        (["caisson", "policy", "explain", "work", "web", "qubes.F"], ["qubes.Filecopy"]),
        (["caisson", "policy", "reach", "we"], ["web"]),
        (["caisson", "policy", "reach", "web", "--to", "w"], ["work", "web"]),
        (["caisson", "policy", "reach", "--one-way", "qubes.F"], ["qubes.Filecopy"]),
        (["caisson", "policy", "graph", "--service", "qubes.Start"], ["qubes.StartApp"]),
        (["caisson", "policy", "revoke", ""], ["grant-1", "grant-2"]),
        (["caisson", "policy", "revoke", "grant-1", "grant-"], ["grant-1", "grant-2"]),
    ],
)
def test_shell_offers_what_fits(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    """In a real bash, with commands in the place of ours that know two of each thing, or one."""
    for name, text in (
        ("qvm-ls", "work\nweb"),
        ("qvm-pool", "NAME  DRIVER\nfast  file"),
        ("caisson", "ID       SOURCE\ngrant-1  work\ngrant-2  work"),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nprintf '%b\\n' '{text}'\n")
        program.chmod(0o755)
    script = (
        "source completion/caisson.bash; compopt() { :; };"
        'COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _caisson; printf "%s\n" "${COMPREPLY[@]}"'
    )
    shown = subprocess.run(
        ["bash", "-c", script, "bash", *typed],
        cwd=TOP,
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert (shown.stdout.split(), shown.stderr) == (offered, "")


def _refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert command.main(umbrella.parser(), umbrella.run, words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    return error


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("policy", "explain", "a", "b", "s.X", "--nosuch"), "caisson policy explain"),
        (("policy", "decide", "word"), "caisson policy decide"),
        (("policy", "grants", "--nosuch"), "caisson policy grants"),
        (("template", "build", "x", "--nosuch"), "caisson template build"),
        (("up", "--nosuch"), "caisson up"),
    ],
)
def test_what_an_action_does_not_know_is_answered_with_its_own_help(
    words: tuple[str, ...], asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of the whole command does not tell the options of its actions."""
    assert _refused(capsys, *words) == (
        f"error: unrecognized arguments: {words[-1]}\nhint: `{asked} --help`\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("polcy",), "there is no command `polcy`\nhint: did you mean `policy`?\n"),
        (("policy", "explan"), "there is no action `explan`\nhint: did you mean `explain`?\n"),
        (("service", "remove"), "`remove`\nhint: use `call` or `new`; `caisson service --help`\n"),
        (
            ("poli\x1b[2Jcy",),
            "there is no command `poli\\x1b[2Jcy`\nhint: did you mean `policy`?\n",
        ),
        (("prompt", "--plian"), "--plian\nhint: did you mean `--plain`? `caisson prompt --help`\n"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest_one(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where none is near, with all of them."""
    assert _refused(capsys, *words).endswith(told)


def test_help_of_the_prompt_is_filled_to_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not broken where its source is, too."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        umbrella.parser().parse_args(["prompt", "--help"])
    notes = capsys.readouterr().out.partition("In a terminal it fills")[2]
    lines = notes.splitlines()
    for line, following in pairwise(lines[1:]):
        assert line.endswith(".") or len(f"{line} {following.split()[0]}") > 78


def test_missing_action_is_answered_with_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a second look, and each of them once."""
    assert _refused(capsys, "policy") == (
        "error: the following arguments are required: ACTION\n"
        "hint: use `decide`, `diff`, `explain`, `grant`, `grants`, `graph`, `reach`, `revoke`, "
        "`system-info` or `test`; `caisson policy --help`\n"
    )
    assert _refused(capsys, "policy", "explian").count("explain") == 1


@pytest.mark.parametrize(
    "action", ["diff", "explain", "grants", "graph", "reach", "revoke", "test"]
)
def test_help_of_an_action_says_what_it_is_for_and_its_exit_codes(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The codes on a line of their own."""
    with pytest.raises(SystemExit):
        umbrella.parser().parse_args(["policy", action, "--help"])
    usage, purpose, *_, last = capsys.readouterr().out.split("\n\n")
    assert usage.startswith("usage: ")
    assert purpose[0].isupper()
    assert purpose.endswith(".")
    assert "\nexit codes: 0 " in f"\n{last}"


def test_many_things_are_done_at_once_and_told_in_order() -> None:
    """All are under way before the first is done; an error is raised when all are done."""
    barrier = threading.Barrier(16)
    done = []

    def act(number: int) -> int:
        barrier.wait(PATIENCE)
        if number == 3:
            raise CaissonError("three")
        done.append(number)
        return -number

    with pytest.raises(CaissonError, match="three"):
        at_once(range(16), act)
    assert sorted(done) == [n for n in range(16) if n != 3]
    assert at_once(range(100), lambda n: -n) == [-n for n in range(100)]
    assert at_once([], act) == []


def test_what_takes_long_is_told_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line is gone when it is done; a log gets none."""
    monkeypatch.setattr(terminal, "_PATIENCE", 0.01)
    with terminal.Progress("starting x"):
        pass
    assert capsys.readouterr().err == ""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        with terminal.Progress("starting \x1bx") as progress:
            assert b"starting \\x1bx" in os.read(ours, 100)
            progress.tell("half")
            while b"half" not in os.read(ours, 100):
                pass
    last = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 1000):
            last += chunk
    os.close(ours)
    assert last.endswith(b"\r\x1b[K")
