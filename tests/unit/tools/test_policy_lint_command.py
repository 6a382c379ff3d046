"""`qubes-policy-lint`: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from caisson.tools import qubes_policy_lint


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """The root of an instance with an empty policy."""
    for directory in ("etc/qubes/policy.d/include", "run/qubes/policy.d"):
        (tmp_path / directory).mkdir(parents=True)
    return tmp_path


def _lint(root: Path, *arguments: str | Path) -> int:
    return qubes_policy_lint.main(["--root", str(root), *map(str, arguments)])


def test_all_errors_are_printed_and_fail(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each, in the form that editors know."""
    file = instance / "a.policy"
    file.write_text("s.X * * *\ns.X * * * deny\n!what\n")
    assert _lint(instance, "-s", file) == 1
    assert [line.partition(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{file}:1: error: a rule needs 5 fields, found 4",
        "    s.X * * *",
        f"{file}:3: error: unknown directive `!what`",
        "    !what",
    ]


def test_warnings_fail_only_if_asked_to(instance: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A policy with a rule too many is in force all the same."""
    file = instance / "a.policy"
    file.write_text("s.X * @anyvm @anyvm deny\ns.X * work vault allow\n")
    assert _lint(instance, file) == 0
    assert f"{file}:2: warning: the rule never decides" in capsys.readouterr().out
    assert _lint(instance, "--strict", file) == 1
    capsys.readouterr()
    assert _lint(instance, "--strict", "--syntax-only", file) == 0
    assert capsys.readouterr().out == ""


def test_standard_input_and_lines_of_one_service_are_read(
    instance: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editors and scripts have no file yet."""
    text = io.TextIOWrapper(
        io.BytesIO(b"work vault allow\n$anyvm $anyvm deny\nwork net allow\nx\n")
    )
    monkeypatch.setattr(sys, "stdin", text)
    assert _lint(instance, "-i", "-") == 1
    assert capsys.readouterr().out.startswith("stdin:4: error: a rule of one service needs 3")


def test_file_of_the_policy_is_checked_among_the_others(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What hides a rule may stand in another file; only what is asked for is told."""
    policy = instance / "etc/qubes/policy.d"
    (policy / "20-first.policy").write_text("s.X * @anyvm @anyvm deny\ns.X * a b ask\n")
    (policy / "30-user.policy").write_text("s.X * work vault allow\n!include include/empty\n")
    (policy / "include/empty").write_text("")
    file = policy / "30-user.policy"
    assert _lint(instance, file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{file}:1: warning: the rule never decides")
    assert "20-first.policy:1" in lines[0]
    assert lines[1].startswith(f"{file}:2: warning: `include/empty` is empty")


def test_included_file_is_checked_for_the_services_that_include_it(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, its lines say of no service that it is one of the Admin API."""
    policy = instance / "etc/qubes/policy.d"
    (policy / "30-user.policy").write_text("!include-service admin.vm.Start * include/mine\n")
    (policy / "include/mine").write_text("mgmt @tag:mine allow\n")
    assert _lint(instance, "-i", policy / "include/mine") == 0
    assert "not to the admin qube" in capsys.readouterr().out


def test_error_elsewhere_in_the_policy_is_told(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With it, the file has no effect, however right it is."""
    policy = instance / "etc/qubes/policy.d"
    (policy / "20-first.policy").write_text("s.X\n")
    (policy / "30-user.policy").write_text("s.X * work vault allow\n")
    assert _lint(instance, policy / "30-user.policy") == 1
    assert capsys.readouterr().out.startswith("20-first.policy:1: error: ")


def test_names_are_looked_up_where_a_system_is_given(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts get code and column too."""
    system = instance / "system.json"
    system.write_text('{"domains": {"dom0": {}, "work": {}}}')
    file = instance / "a.policy"
    file.write_text("s.X * wrk @anyvm ask\n")
    assert _lint(instance, "--json", "--system-info", system, file) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["code"], found["line"], found["column"]) == ("unknown-name", 1, 7)
    assert found["severity"] == "warning"
    assert found["hint"] == "is `work` meant?"


def test_names_that_cannot_be_looked_up_are_a_note(
    instance: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a daemon nobody shall take silence for a check; the syntax needs no names."""
    file = instance / "a.policy"
    file.write_text("s.X * wrk @anyvm ask\n")
    assert _lint(instance, "--strict", file, file) == 0
    error = capsys.readouterr().err
    assert error.startswith("note: names of qubes and tags were not checked: the daemon does not ")
    assert error.count("note: ") == error.count("hint: `--system-info FILE`") == 1
    for option in ("--syntax-only", "--quiet"):
        assert _lint(instance, option, file) == 0
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"s.X * a b ask\n")))
    assert _lint(instance, "-") == 0
    assert capsys.readouterr().err.startswith("note: names of qubes")


def test_mistyped_service_is_found_whatever_its_case(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A letter that is missing and a letter of the other case are one slip."""
    file = instance / "a.policy"
    file.write_text("qubes.Opnurl * work @anyvm ask\n")
    assert _lint(instance, file) == 0
    assert "`qubes.Opnurl` (is `qubes.OpenURL` meant?)" in capsys.readouterr().out


def test_error_is_listed_once_whatever_file_is_looked_at(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is checked with its directory has the name by which it was given."""
    broken = instance / "broken.d"
    broken.mkdir()
    (broken / "a.policy").write_text("s.X\ns.Y\n")
    (broken / "b.policy").write_text("s.X * work vault allow\n")
    (broken / "c.policy").write_text("s.X * work vault allow\n")
    assert _lint(instance, "--policy-dir", broken, *sorted(broken.iterdir())) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" error")[0] for line in lines] == [
        f"{broken}/a.policy:{number}:" for number in (1, 2)
    ]
    (broken / "a.policy").write_text("!include include/none\n")
    assert _lint(instance, "--policy-dir", broken, *sorted(broken.iterdir())) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{broken}/a.policy:1: error: ")


def test_what_cannot_be_checked_is_said_in_words(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory in the place of a file, none in the place of one, a file of something else."""
    file, system = instance / "a.policy", instance / "system.json"
    file.write_text("")
    system.write_text("{}")
    assert _lint(instance, instance) == 1
    assert capsys.readouterr().err.startswith(f"error: `{instance}` is a directory\nhint: ")
    assert _lint(instance, "--policy-dir", instance / "nope", file) == 1
    assert "nope` is no directory of policy files\nhint: " in capsys.readouterr().err
    assert _lint(instance, "--system-info", system, file) == 1
    assert "is not system information: the key `domains` is missing" in capsys.readouterr().err


def test_redundant_rules_are_found_where_asked_for(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes longer, so it is not done by itself."""
    file = instance / "a.policy"
    file.write_text("s.X * work vault ask\ns.X * work @anyvm ask\n")
    assert _lint(instance, file) == 0
    assert capsys.readouterr().out == ""
    assert _lint(instance, "--redundant", file) == 0
    assert f"{file}:1: warning: without the rule" in capsys.readouterr().out


def test_shipped_policy_is_free_of_findings(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What everybody gets is what everybody reads."""
    shipped = Path(__file__).parents[3] / "policy.d"
    files = [*shipped.glob("*.policy"), *(shipped / "include").iterdir()]
    policies = [file for file in files if file.suffix == ".policy"]
    includes = [file for file in files if file.suffix != ".policy"]
    assert _lint(instance, "--strict", "--policy-dir", shipped, *policies) == 0
    assert _lint(instance, "--strict", "--policy-dir", shipped, "-i", *includes) == 0
    assert capsys.readouterr().out == ""


def test_file_that_is_not_there_is_a_failure(
    instance: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was checked, so nothing is fine."""
    assert _lint(instance, instance / "nosuch") == 1
    assert "nosuch" in capsys.readouterr().err
