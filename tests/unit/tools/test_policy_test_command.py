"""`caisson policy test` and the pytest plugin: a policy that is tested in CI."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from caisson.tools import umbrella

pytest_plugins = ("pytester",)

TOP = Path(__file__).resolve().parents[3]
# Other plugins have settings of their own, which a run below another directory does not see.
ALONE = ("-p", "no:asyncio", "-p", "no:timeout", "-p", "no:hypothesispytest")
TABLE = """\
policy-dir = "policy"
[system]
work = {}
vault = {}
[[expect]]
source = ["work", "vault"]
target = "@default"
service = "s.X+a"
decision = "allow"
to = "vault"
[[expect]]
source = "work"
target = "vault"
service = "s.X"
decision = "ask"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A policy, and a table of which two expectations hold not."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/a.policy").write_text(
        "s.X +a work @default allow target=vault\ns.X * @anyvm @anyvm deny\n"
    )
    (tmp_path / "test_some.policy.toml").write_text(TABLE)
    return tmp_path


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the command answers: exit code, standard output, standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["caisson", "policy", "test", *map(str, words)])
        code = umbrella.main()
        return code, *capsys.readouterr()

    return run


def test_what_is_not_as_expected_is_one_line_each(place: Path, tested: Any):
    """What was expected, what came and by which rule; then a summary; exit code 1."""
    path = place / "test_some.policy.toml"
    assert tested(path) == (
        1,
        f"""\
{path}: expectation 1: vault → @default: s.X+a: expected allow, came deny (denied by a.policy:2)
{path}: expectation 2: work → vault: s.X: expected ask, came deny (denied by a.policy:2)
3 decisions checked, 2 not as expected
""",
        "",
    )


def test_table_that_holds_is_one_line(place: Path, tested: Any):
    """Exit code 0."""
    path = place / "test_some.policy.toml"
    path.write_text(TABLE.replace('"allow"\nto = "vault"', '"deny"').replace('"ask"', '"deny"'))
    (place / "policy/a.policy").write_text("s.X * @anyvm @anyvm deny\n")
    assert tested(path) == (0, "3 decisions checked, none not as expected\n", "")


def test_one_decision_is_one(place: Path, tested: Any):
    """A table with one expectation."""
    path = place / "test_some.policy.toml"
    (place / "policy/a.policy").write_text("s.X * * * ask\n")
    path.write_text(TABLE.rpartition("[[expect]]")[0].replace('["work", "vault"]', '"work"'))
    assert tested(path)[1].endswith("\n1 decision checked, 1 not as expected\n")


@pytest.mark.parametrize(
    ("key", "value", "values"),
    [
        ("decision", "alow", "allow, deny, ask"),
        ("reason", "no-rul", "syntax, no-rule, rule, bad-target, bad-source, "),
    ],
)
def test_value_that_is_none_is_answered_with_those_that_are(
    place: Path, tested: Any, key: str, value: str, values: str
):
    """Of what has a few values only."""
    path = place / "test_some.policy.toml"
    path.write_text(TABLE.replace('decision = "ask"', f'decision = "deny"\n{key} = "{value}"'))
    if key == "decision":
        path.write_text(TABLE.replace('"ask"', f'"{value}"'))
    code, _, error = tested(path)
    assert code == 2
    assert f"expectation 2: key `{key}`: invalid enum value '{value}'\n" in error
    assert f"hint: known are {values}" in error


def test_json_tells_the_same(place: Path, tested: Any):
    """For each table, each failure with its entry, its call and the decision."""
    path = place / "test_some.policy.toml"
    code, told, _ = tested("--json", path)
    report = json.loads(told)
    assert code == 1
    assert (report["checked"], report["failed"]) == (3, 2)
    (table,) = report["tables"]
    assert (table["file"], table["checked"]) == (str(path), 3)
    assert table["failures"][0]["source"] == "vault"
    assert table["failures"][0]["decision"]["rule"] == "a.policy:2"
    assert table["failures"][1] | {"decision": None} == {
        "entry": 2,
        "source": "work",
        "target": "vault",
        "service": "s.X",
        "differences": [{"key": "decision", "expected": "ask", "came": "deny"}],
        "decision": None,
        "text": "denied by a.policy:2",
    }


def test_options_win_over_what_the_table_names(place: Path, tested: Any):
    """One table for the policy of today and for that of tomorrow."""
    (place / "other").mkdir()
    (place / "other/a.policy").write_text("s.X +a * @default allow target=vault\ns.X * * * ask\n")
    (place / "system.json").write_text(
        '{"domains": {"dom0": {}, "work": {}, "vault": {}, "net": {}}}'
    )
    table = place / "test_some.policy.toml"
    table.write_text(TABLE.replace('source = ["work", "vault"]', 'source = ["work", "net"]'))
    options = ["--policy-dir", place / "other", "--system-info", place / "system.json"]
    assert tested(table, *options)[:2] == (0, "3 decisions checked, none not as expected\n")


def test_table_without_meaning_is_exit_code_2_and_others_are_still_told(place: Path, tested: Any):
    """The error names the table; two is never a policy's fault."""
    broken = place / "broken.toml"
    broken.write_text("[[expect]]\nsorce = 1\n")
    code, told, error = tested(broken, place / "test_some.policy.toml")
    assert code == 2
    assert told.endswith("3 decisions checked, 2 not as expected\n")
    assert error == (
        f"error: table `{broken}`: expectation 1 has the unknown key `sorce`\n"
        "hint: did you mean `source`?\n"
    )
    assert tested(place / "missing.toml")[:2] == (2, "")


def test_broken_policy_is_exit_code_1_with_its_line(place: Path, tested: Any):
    """It is the policy that fails, not the table."""
    (place / "policy/a.policy").write_text("s.X +a work @default alow\n")
    code, told, error = tested(place / "test_some.policy.toml")
    assert (code, told) == (1, "")
    assert error.startswith("error: a.policy:1:22: unknown action `alow`\n    s.X +a work @default")


def test_shipped_table_holds(tested: Any):
    """The example is one that works, also without the plugin."""
    code, told, error = tested(TOP / "tests/policy/test_shipped.policy.toml")
    assert (code, error) == (0, "")
    assert told.endswith(" decisions checked, none not as expected\n")


def test_plugin_makes_a_test_of_every_expected_decision(pytester: pytest.Pytester, place: Path):
    """With the same words, and without a traceback."""
    done = pytester.runpytest_inprocess(*ALONE, "-v", place, "--rootdir", place)
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines(
        [
            "*test_some.policy.toml::expect-1[[]work-@default-s.X+a] PASSED*",
            "*test_some.policy.toml::expect-1[[]vault-@default-s.X+a] FAILED*",
            "*test_some.policy.toml::expect-2[[]work-vault-s.X] FAILED*",
            "*/test_some.policy.toml: expectation 1: vault → @default: s.X+a: expected allow, *",
        ]
    )
    done.stdout.no_fnmatch_line("*Traceback*")
    done.stdout.no_fnmatch_line("*pytest_tables.py*")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[[expect]]\nsorce = 1\n", "*expectation 1 has the unknown key `sorce`*"),
        (TABLE.replace('policy-dir = "policy"\n', ""), "*needs both `policy-dir` and `system`*"),
        (TABLE.replace("[system]", "[[system]]"), "*`system` is neither a path nor*"),
    ],
)
def test_plugin_refuses_a_table_without_meaning(
    pytester: pytest.Pytester, place: Path, table: str, message: str
):
    """While it collects: such a run must not look green."""
    (place / "test_some.policy.toml").write_text(table)
    done = pytester.runpytest_inprocess(*ALONE, place, "--rootdir", place)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([message])


def test_plugin_fails_every_test_of_a_broken_policy(pytester: pytest.Pytester, place: Path):
    """Also those that expect a denial."""
    (place / "policy/a.policy").write_text("s.X +a work @default alow\n")
    done = pytester.runpytest_inprocess(*ALONE, place, "--rootdir", place)
    done.assert_outcomes(failed=3)
    done.stdout.fnmatch_lines(["*a.policy:1:22: unknown action `alow`*"])


def test_fixture_loads_a_policy_and_decides(pytester: pytest.Pytester, place: Path):
    """Paths are relative to the root directory of the run."""
    (place / "test_it.py").write_text(
        "def test_it(caisson_policy):\n"
        "    policy = caisson_policy('policy', {'work': {}, 'vault': {}})\n"
        "    decision = policy.decide('work', '', 's.X+a')\n"
        "    assert (decision.action, decision.target) == ('allow', 'vault')\n"
        "    assert policy.decide('work', 'vault', 's.X').action == 'deny'\n"
    )
    done = pytester.runpytest_inprocess(*ALONE, place / "test_it.py", "--rootdir", place)
    done.assert_outcomes(passed=1)


def test_plugin_leaves_other_runs_alone(pytester: pytest.Pytester, tmp_path: Path):
    """Nothing of Caisson is imported but the plugin itself, and nothing warns."""
    (tmp_path / "some.policy.toml").write_text("not a test")
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    found = [name for name in sys.modules if name.startswith('caisson')]\n"
        "    assert sorted(found) == ['caisson', 'caisson.pytest_plugin']\n"
    )
    done = pytester.runpytest_subprocess(*ALONE, tmp_path, "-W", "error", "--rootdir", tmp_path)
    done.assert_outcomes(passed=1)


def test_guide_shows_what_works(pytester: pytest.Pytester, tmp_path: Path):
    """Its table and its test in Python hold for the shipped policy."""
    guide = (TOP / "docs/guides/test-a-policy.md").read_text()
    blocks = dict(re.findall(r"```(toml|python)\n(.*?)```", guide, re.DOTALL))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_mail.policy.toml").write_text(blocks["toml"])
    (tmp_path / "tests/test_customers.py").write_text(blocks["python"])
    (tmp_path / "policy.d").symlink_to(TOP / "policy.d")
    done = pytester.runpytest_inprocess(*ALONE, tmp_path, "--rootdir", tmp_path)
    done.assert_outcomes(passed=10)


def test_guide_shows_how_to_explain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Its command line knows the qubes of the table, and decides as the table does."""
    guide = (TOP / "docs/guides/test-a-policy.md").read_text()
    (table,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    (line,) = re.findall(r"^`(caisson policy explain .*?)`", guide, re.MULTILINE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_mail.policy.toml").write_text(table)
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d/30-user.policy").write_text("qubes.VMExec * mail vault allow\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", line.split())
    assert umbrella.main() == 0
    assert "allowed by 30-user.policy:1: it goes to `vault`" in capsys.readouterr().out
