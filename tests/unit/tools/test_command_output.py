"""What the commands print, as far as no daemon is needed for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caisson.errors import CaissonError
from caisson.tools import command, properties, qvm_run, running, selection, terminal
from caisson.tools.command import UsageError

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


COMMANDS = [
    *sorted(path.stem for path in (TOP / "caisson/tools").glob("qvm_*.py")),
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
    words |= {"qvm_pool": ["list"], "qvm_volume": ["list"]}
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


def test_completion_is_what_the_parsers_say() -> None:
    """An option that is added or renamed has to be offered too."""
    shown = subprocess.run(
        [sys.executable, "script/completion.py", "--check"], cwd=TOP, check=False
    )
    assert shown.returncode == 0
