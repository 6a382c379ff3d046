"""`caisson policy explain`: what a person reads."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caisson.tools import umbrella
from caisson.tools.policy import broken

COMMAND = Path(sys.executable).parent / "caisson"
SYSTEM: dict[str, dict[str, Any]] = {
    "dom0": {"type": "AdminVM"},
    "work": {"type": "AppVM", "default_dispvm": "dvm"},
    "vault": {"type": "AppVM"},
    "hid": {"type": "AppVM", "internal": "1"},
    "dvm": {"type": "AppVM", "template_for_dispvms": True},
}
POLICY = """\
s.Y  *  *  *  deny
!include include/some
s.X  *  @anyvm  vault  deny
s.X  *  @anyvm  @anyvm  ask  default_target=dvm
"""


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A small policy and system."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include/some").write_text("s.X +a @tag:t work allow\n")
    (tmp_path / "50-some.policy").write_text(POLICY)
    (tmp_path / "system.json").write_text(json.dumps({"domains": SYSTEM}))
    return ["--policy-dir", str(tmp_path), "--system-info", str(tmp_path / "system.json")]


@pytest.fixture
def explained(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """What the command answers: exit code, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["caisson", "policy", "explain", *words, *options])
        code = umbrella.main()
        return code, *capsys.readouterr()

    return run


def test_decision_is_told_rule_by_rule_with_what_would_change_it(explained: Any):
    """One line a rule, the one that decides marked; then the decision; then the remedies."""
    assert explained("work", "vault", "s.X") == (
        0,
        """\
work → vault: s.X

rules (1 rule speaks of other services)
  include/some:1 from 50-some.policy:2  s.X +a @tag:t work allow  \
argument: the call has no argument, the rule wants `+a`; source: `work` has no tag `t`; \
target: `vault` is not `work`
> 50-some.policy:3                      s.X * @anyvm vault deny   decides

denied by 50-some.policy:3

what would change it
  to allow it: at the end of 30-user.policy: s.X + work vault allow
  to be asked: at the end of 30-user.policy: s.X + work vault ask
  to be asked: call `s.X` with `@dispvm` (50-some.policy:4)
  to be asked: call `s.X` with `@default` (50-some.policy:4)
""",
        "",
    )


def test_question_is_told_with_its_list_and_with_who_is_not_in_it(explained: Any):
    """By reason; a preselected target is named."""
    code, told, _ = explained("work", "", "s.X+b")
    assert code == 0
    assert "  the call names no target: it is `@default`\n" in told
    assert "a person is asked, because of 50-some.policy:4, `dvm` preselected\n" in told
    assert "  to pick from: @dispvm:dvm, dvm\n" in told
    assert "  not to pick, denied by 50-some.policy:3: vault\n" in told
    assert "  not to pick, internal: hid\n" in told
    assert "  not to pick, the caller itself: work\n" in told


def test_name_that_no_qube_has_is_told_with_close_ones(explained: Any):
    """Source and target, also the base of a disposable."""
    assert "hint: the source is no qube; did you mean `work`?\n" in explained("wrok", "", "s.X")[1]
    told = explained("work", "vualt", "s.X")[1]
    assert "  there is no qube `vualt`: the target is `@default`\n" in told
    assert "  hint: the target is no qube; did you mean `vault`?\n" in told
    assert "did you mean `dvm`?" in explained("work", "@dispvm:dwm", "s.X")[1]
    assert "list the qubes with `qvm-ls`" in explained("work", "x" * 1000, "s.X")[1]


def test_table_of_expectations_tells_policy_and_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What fails in CI can be explained where no qube is; options win, errors name the table."""
    table = tmp_path / "some.policy.toml"
    expected = '[[expect]]\nsource = "a"\ntarget = "b"\nservice = "s.X"\ndecision = "ask"\n'
    for name, action in (("one", "ask"), ("two", "deny")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.policy").write_text(f"s.X * a b {action}\n")

    def run(system: str, *words: object) -> tuple[int, str, str]:
        table.write_text(f'policy-dir = "one"\n{system}\n{expected}')
        argv = ["caisson", "policy", "explain", "a", "b", "s.X", "--table", table, *words]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        return umbrella.main(), *capsys.readouterr()

    assert "a person is asked, because of a.policy:1" in run("[system]\na = {}\nb = {}")[1]
    other = run("[system]\na = {}\nb = {}", "--policy-dir", tmp_path / "two")
    assert "denied by a.policy:1" in other[1]
    code, told, error = run("[system]\na = {colour = 'red'}")
    assert (code, told) == (2, "")
    assert error.startswith(f"error: table `{table}`: `system.a` has the unknown key `colour`\n")
    (tmp_path / "one/a.policy").write_text("s.X * a b\n")
    code, told, error = run("[system]\na = {}\nb = {}")
    assert (code, told) == (1, "denied, as every call is, until the policy is mended\n")
    assert error.startswith("error: a.policy:1")


def test_json_counts_rules_of_other_services_unless_all_are_wanted(explained: Any):
    """Scripts get the same, typed."""
    told = json.loads(explained("work", "vault", "s.X", "--json")[1])
    assert told["rules_of_other_services"] == 1
    assert [(rule["rule"], rule["decides"]) for rule in told["rules"]] == [
        ("some:1", False),
        ("50-some.policy:3", True),
    ]
    assert told["rules"][0]["included_from"] == ["50-some.policy:2"]
    assert told["decision"]["reason"] == "rule"
    assert told["would_change"][0] == {
        "kind": "add-rule",
        "becomes": "allow",
        "offers_target": False,
        "line": "s.X + work vault allow",
        "file": "30-user.policy",
        "before_line": None,
    }
    every = json.loads(explained("work", "vault", "s.X", "--json", "--all")[1])
    assert [rule["rule"] for rule in every["rules"]] == [
        "50-some.policy:1",
        "some:1",
        "50-some.policy:3",
    ]
    assert "s.Y * * * deny" in explained("work", "vault", "s.X", "--all")[1]


def test_requested_source_is_what_the_rules_see(explained: Any):
    """Or the reason of the refusal."""
    told = explained("work", "vault", "s.X", "--requested-source", "valt")[1]
    assert "`work` is not the relay of `valt`" in told
    assert "hint: the requested source is no qube; did you mean `vault`?" in told


def test_broken_policy_is_shown_with_a_caret_under_the_mistake(explained: Any, tmp_path: Path):
    """And that every call is denied; exit code 1."""
    (tmp_path / "include/some").write_text("#\ns.X\t+a @tag: work allow\n")
    code, told, error = explained("work", "vault", "s.X")
    assert (code, told) == (1, "denied, as every call is, until the policy is mended\n")
    assert error.startswith(
        "error: include/some:2:8: `@tag:` is not a source\n"
        "    s.X\\t+a @tag: work allow\n"
        "            ^\n"
        "hint: "
    )
    code, told, _ = explained("work", "vault", "s.X", "--json")
    place = {"file": "include/some", "line": 2, "column": 8, "text": "s.X\t+a @tag: work allow"}
    assert code == 1
    assert place.items() <= json.loads(told)["error"].items()
    assert json.loads(told)["decision"]["reason"] == "syntax"


def test_nothing_of_a_policy_or_a_system_reaches_the_terminal_raw(explained: Any, tmp_path: Path):
    """Control characters that a policy may hold, and any in names of a system."""
    (tmp_path / "50-some.policy").write_text("s.X * @tag:\x9b1m * deny\ns.X * * * ask\n")
    strange = {"a\x1b]0;b\x07\n": {"type": "\x1b[2J"}, "work": {"type": "\x9b2J"}, "dom0": {}}
    (tmp_path / "system.json").write_text(json.dumps({"domains": strange}))
    for words in (["work", "a\x1b]0;b\x07\n"], ["\x1b[m", "\x9bm"], ["work", "@dispvm:\x1b"]):
        for more in ([], ["--json"]):
            code, told, error = explained(*words, "s.X", *more)
            assert code == 0
            assert error == ""
            assert all(line.isprintable() for line in told.split("\n"))


def test_long_line_is_cut_around_the_mistake():
    """A line of megabytes is no reason to fill the screen."""
    shown, caret = broken.excerpt("x" * 100_000 + "\x1b" + "y" * 100_000, 100_001).split("\n")
    assert len(shown) < 200
    assert shown[len(caret) - 1 :].startswith("\\x1by")


@pytest.mark.parametrize("service", ["s X", "", "+a", "s.X+\x1b", "*"])
def test_service_that_is_none_is_refused(explained: Any, service: str):
    """Before anything is decided."""
    code, told, error = explained("work", "vault", service)
    assert (code, told) == (1, "")
    assert error.startswith("error: service ")
    assert error.isascii()
    assert "\x1b" not in error


@pytest.mark.parametrize(("environment", "colours"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_welcome_them(
    options: list[str], environment: dict[str, str], colours: bool
):
    """Not with NO_COLOR; and a pipe has none, see above."""
    ours, theirs = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    done = subprocess.run(
        [
            Path(sys.executable).parent / "caisson",
            "policy",
            "explain",
            "work",
            "vault",
            "s.X",
            *options,
        ],
        stdout=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
        check=True,
    )
    told = os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert b"denied by 50-some.policy:3" in told
    assert (b"\x1b[" in told) is colours


def test_who_tells_the_time_is_told(options: list[str], explained: Any):
    """The decision is the policy's; that another qube answers in the end is not kept back."""
    Path(options[1], "30-clock.policy").write_text(
        "qubes.GetDate * work @adminvm allow\ns.Z * work @adminvm allow\n"
    )
    _, out, _ = explained("work", "dom0", "qubes.GetDate")
    decided = "allowed by 30-clock.policy:1: it goes to `dom0`\n"
    assert f"{decided}  the qube of `clockvm` tells the time there" in out
    assert "clockvm" not in explained("work", "dom0", "s.Z")[1]
    assert "clockvm" not in explained("vault", "dom0", "qubes.GetDate")[1]
