"""`caisson policy diff`: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caisson.tools import command, umbrella

SYSTEM = {
    "domains": {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "tags": ["office"]},
        "vault": {"type": "AppVM"},
        "net": {"type": "AppVM"},
    }
}


Diff = Callable[..., tuple[int, str, str]]


def _run(words: list[str]) -> int:
    return command.main(umbrella.parser(), umbrella.run, words)


@pytest.fixture
def diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Diff:
    """Compare two texts, with options; returns exit code, stdout and stderr."""
    (tmp_path / "system.json").write_text(json.dumps(SYSTEM))

    def run(old: str, new: str, *options: str) -> tuple[int, str, str]:
        for name, text in (("old", old), ("new", new)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "30-user.policy").write_text(text)
        system = ("--system-info", str(tmp_path / "system.json"))
        paths = (str(tmp_path / "old"), str(tmp_path / "new"))
        code = _run(["policy", "diff", *paths, *system, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_same_decisions_are_no_difference(diff: Diff) -> None:
    """Comments, order of what does not meet, and other lines that decide are no change."""
    old = "s.X * work vault allow\ns.X * net vault ask\n"
    new = "# mine\ns.X * net vault ask notify=no\ns.X * work vault allow\ns.X * work vault ask\n"
    assert diff(old, new) == (0, "", "the policies decide the same\n")


def test_difference_is_told_with_its_rules_and_its_direction(diff: Diff) -> None:
    """A person sees who may do what by which line, before and after."""
    code, out, err = diff(
        "s.X * work @anyvm ask\ns.Y * work vault allow\n",
        "s.X * work @anyvm ask\ns.X * net vault allow\ns.Y * work vault deny\n",
        "--existing-only",
    )
    assert code == 3
    assert err == ""
    assert out == (
        "calls between the qubes that there are\n"
        "  wider: s.X\n"
        "    deny (no rule) → allow (30-user.policy:2)\n"
        "    from  net\n"
        "    to    vault\n"
        "\n"
        "  narrower: s.Y\n"
        "    allow (30-user.policy:2) → deny (30-user.policy:3)\n"
        "    from  work\n"
        "    to    vault\n"
        "\n"
    )


def test_lists_of_questions_are_compared(diff: Diff) -> None:
    """A rule about another target changes what may be picked, and so the question."""
    code, out, _ = diff(
        "s.X * work @default ask\ns.X * work vault ask\n",
        "s.X * work @default ask\ns.X * work vault ask\ns.X * work net allow\n",
        "--existing-only",
    )
    assert code == 3
    assert "    to    @default\n    more to pick  net\n" in out
    assert "    to    vault\n    more to pick  net\n" in out


def test_qubes_that_do_not_exist_are_told_by_what_rules_know_of_them(diff: Diff) -> None:
    """Nothing changes today, and everything once somebody gives a qube that tag."""
    code, out, _ = diff("", "s.X * @tag:backup @anyvm allow\n")
    assert code == 3
    assert "qubes that there are" not in out
    assert "    from  a qube tagged `backup`\n    to    any other qube\n" in out


def test_existing_only_leaves_out_what_could_be(diff: Diff) -> None:
    """Who asks for today gets an answer about today."""
    assert diff("", "s.X * @tag:backup @anyvm allow\n", "--existing-only")[0] == 0


def test_scripts_get_all_of_it(diff: Diff) -> None:
    """Every name is there, whatever a person would be shown."""
    code, out, _ = diff("", "s.X +a work @anyvm allow user=root\n", "--json")
    found = json.loads(out)
    assert code == 3
    (change,) = [c for c in found["existing"] if c["relation"] == "others"]
    assert change["services"] == [{"service": "s.X", "argument": "+a"}]
    assert change["direction"] == "wider"
    assert change["old"] == {"decision": "deny", "notify": True, "rule": None, "reason": "no-rule"}
    assert change["new"]["rule"] == "30-user.policy:1"
    assert change["new"]["user"] == "root"
    assert change["sources"] == ["work"]
    assert set(change["targets"]) == {"work", "vault", "net"}
    assert change["calls"] == 2
    assert [c["source"] for c in found["future"]] == ["work"]


@pytest.mark.parametrize("which", ["old", "new"])
def test_broken_policy_is_an_error_with_its_place(diff: Diff, which: str) -> None:
    """That everything else is denied would be hundreds of lines about one mistake."""
    texts = {"old": "s.X * work vault allow\n", "new": "s.X * work vault allow\n"}
    texts[which] = "s.X * work\n"
    code, out, err = diff(**texts)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: the {which} policy `")
    assert "does not load: 30-user.policy:1:11: a rule needs 5 fields" in err
    assert "\nhint: " in err


def test_text_of_policies_is_printed_without_control_characters(diff: Diff) -> None:
    """The new policy may come from somebody who wants to hide what it does."""
    _, out, _ = diff("", "s.X * work @default ask target=\x9b2Kvault\n")
    assert "\x9b" not in out
    assert "target=\\x9b2Kvault" in out
    _, out, _ = diff("", "s.X * work @default ask target=\x9b2Kvault\n", "--json")
    assert out.isascii()


def test_single_files_and_the_policy_in_force_can_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One asks before one installs."""
    force = tmp_path / "etc/qubes/policy.d"
    force.mkdir(parents=True)
    (tmp_path / "run/qubes/policy.d").mkdir(parents=True)
    (force / "30-user.policy").write_text("s.X * work vault ask\n")
    (tmp_path / "web").write_text("work vault allow\n")
    (tmp_path / "mine").write_text("!include-service s.X * web\n")
    code = _run(["--root", str(tmp_path), "policy", "diff", str(tmp_path / "mine")])
    captured = capsys.readouterr()
    assert code == 3
    assert "wider: s.X\n    ask (30-user.policy:1) → allow (web:1)" in captured.out
    assert "the daemon does not run" in captured.err


def test_policy_that_is_not_there_is_a_failure_and_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo must not look like a policy that denies everything."""
    (tmp_path / "a.policy").write_text("")
    paths = [str(tmp_path / name) for name in ("a.policy", "nosuch")]
    assert _run(["policy", "diff", *paths]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "does not exist" in captured.err
