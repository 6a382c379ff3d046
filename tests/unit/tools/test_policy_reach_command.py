"""`caisson policy reach`: what a person and a script read, and the exit codes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caisson.policy import Request, SystemInfo, decide, parse_policy
from caisson.tools import umbrella

POLICY = """\
qubes.Filecopy  *   @tag:vault  @anyvm      deny
qubes.Filecopy  *   @anyvm      @tag:vault  deny
qubes.OpenInVM  *   @anyvm      @dispvm     allow
my.Backup       *   @tag:vault  backup      allow
my.Restore      +x  backup      work        ask
"""
ADMIN = "admin.vm.Start  *  work  backup  allow  target=dom0\n"


def _qube(**told: Any) -> dict[str, Any]:
    wiring = {"netvm": None, "template": None, "provides_network": False}
    return {"type": "AppVM", "tags": [], **wiring, **told}


SYSTEM = {
    "dom0": {"type": "AdminVM"},
    "net": _qube(provides_network=True),
    "work": _qube(netvm="net", default_dispvm="dvm"),
    "wallet": _qube(tags=["vault"], default_dispvm="dvm"),
    "backup": _qube(),
    "dvm": _qube(netvm="net", template_for_dispvms=True),
}
NO_TEMPLATE = ("--assume", "no tag:vault and type:TemplateVM", "--assume", "no type:RemoteVM")
NO_DISPOSABLE = ("--assume", "no tag:vault and type:DispVM")
Told = tuple[int, str, str]


@pytest.fixture
def reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Told]:
    """What the command answers: exit code, standard output, standard error."""
    policy = tmp_path / "policy.d"
    policy.mkdir()
    (policy / "30-user.policy").write_text(POLICY)
    (tmp_path / "system.json").write_text(json.dumps({"domains": SYSTEM}))

    def run(*words: str, system: str = "system.json") -> Told:
        files = ["--policy-dir", str(policy), "--system-info", str(tmp_path / system)]
        monkeypatch.setattr(sys, "argv", ["caisson", "policy", "reach", *words, *files])
        code = umbrella.main()
        return code, *capsys.readouterr()

    return run


def test_who_gets_data_is_a_tree_of_shortest_chains_with_their_rules(
    reach: Callable[..., Told],
) -> None:
    """Each qube once, below the one that it gets the data from, with the reason."""
    code, out, err = reach("wallet")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "5 can get data from wallet",
        "  backup           wallet calls `my.Backup` of `backup` (30-user.policy:4)",
        (
            "    work           backup calls `my.Restore+x` of `work` "
            "(30-user.policy:5, if you say yes)"
        ),
        "      net          one is the network qube of the other",
        "        @internet  network",
        "        dvm        one is the network qube of the other",
        "and 4 disposables that may come to be (`--disposables`)",
    ]


def test_way_to_one_qube_is_told_step_by_step(reach: Callable[..., Told]) -> None:
    """In the direction in which the data goes, whoever is asked about."""
    expected = [
        "  1. wallet → backup: wallet calls `my.Backup` of `backup` (30-user.policy:4)",
        (
            "  2. backup → work: backup calls `my.Restore+x` of `work` "
            "(30-user.policy:5, if you say yes)"
        ),
    ]
    assert reach("wallet", "--to", "work")[1].splitlines() == expected
    assert reach("work", "--from", "--to", "wallet")[1].splitlines() == expected


def test_questions_can_be_taken_for_denials(reach: Callable[..., Told]) -> None:
    """And that is said."""
    code, out, err = reach("wallet", "--to", "work", "--no-ask")
    assert (code, out) == (0, "nothing gets from wallet to work\n")
    assert err == "assuming that every question is answered by no\n"


def test_replies_can_be_taken_to_carry_nothing(reach: Callable[..., Told]) -> None:
    """Without the reply of its backup, nobody can get data to the wallet; the one way stays."""
    words = ("wallet", "--from", "--one-way", "my.Backup", "--one-way", "qubes.OpenInVM")
    assert reach("wallet", "--from", "--to", "backup")[1] != ""
    code, out, err = reach(*words, "--to", "backup")
    assert (code, out) == (0, "nothing gets from backup to wallet\n")
    assert "assuming that replies of `my.Backup` carry nothing\n" in err
    assert "backup" in reach("wallet", "--one-way", "my.Backup")[1]


def test_other_services_can_be_left_out(reach: Callable[..., Told]) -> None:
    """The wiring stays."""
    assert reach("wallet", "--to", "work", "--service", "my.Restore")[1].startswith("nothing")
    assert reach("net", "--to", "work", "--service", "my.Restore")[1].startswith("  1. net → work")


def test_who_may_administer_a_qube_exchanges_data_with_it(
    reach: Callable[..., Told], tmp_path: Path
) -> None:
    """The call goes to dom0, but it is about the qube that was named."""
    (tmp_path / "policy.d/20-admin.policy").write_text(ADMIN)
    _, out, _ = reach("work", "--to", "backup", "--service", "admin.vm.Start")
    assert out == (
        "  1. work → backup: work may administer qubes: "
        "`admin.vm.Start` of `backup` (20-admin.policy:1)\n"
    )


def test_chains_are_told_to_scripts(reach: Callable[..., Told]) -> None:
    """With what was assumed, and whether everything was known."""
    code, out, _ = reach("wallet", "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["complete"], told["ask_counts"], told["direction"]) == (True, True, "from")
    [backup] = [chain for chain in told["chains"] if chain["end"] == "backup"]
    assert backup["hops"] == [
        {
            "source": "wallet",
            "target": "backup",
            "way": "call",
            "caller": "wallet",
            "service": "my.Backup",
            "request": "backup",
            "rule": "30-user.policy:4",
            "asked": False,
        }
    ]
    assert not any(chain["is_new"] for chain in told["chains"])
    told = json.loads(reach("wallet", "--json", "--disposables")[1])
    assert any(chain["is_new"] for chain in told["chains"])


def test_unknown_wiring_is_said(reach: Callable[..., Told], tmp_path: Path) -> None:
    """The system information of others does not tell networks and templates."""
    told = {
        name: {key: value for key, value in qube.items() if key not in {"netvm", "template"}}
        for name, qube in SYSTEM.items()
    }
    (tmp_path / "upstream.json").write_text(json.dumps({"domains": told}))
    code, _, err = reach("wallet", system="upstream.json")
    assert code == 0
    assert err.startswith("warning: the system information does not tell networks and templates")
    assert json.loads(reach("wallet", "--json", system="upstream.json")[1])["complete"] is False


def test_assertion_that_holds_tells_what_it_assumes(reach: Callable[..., Told]) -> None:
    """Nothing is assumed in silence."""
    texts = ["no type:TemplateVM", "no type:RemoteVM", "no backup and base", "backup has no netvm"]
    assumed = [word for text in texts for word in ("--assume", text)]
    words = ("--assert", "tag:vault never reaches netvm", *NO_DISPOSABLE, *assumed)
    code, out, _ = reach(*words, "--no-ask")
    assert (code, out.splitlines()) == (
        0,
        [
            "holds: tag:vault never reaches netvm",
            "  assuming that no qube is `tag:vault and type:DispVM`",
            "  assuming that no qube is `type:TemplateVM`",
            "  assuming that no qube is `type:RemoteVM`",
            "  assuming that no qube is `base and name:backup`",
            "  assuming that no qube is `name:backup and netvm`",
            "  assuming that no qube is `netvm and tag:vault`",
            "  and that each disposable has the tags of its base, and came to be by this policy",
        ],
    )


def test_assertion_that_fails_tells_a_story(reach: Callable[..., Told]) -> None:
    """A system, and each step with its rule."""
    words = ("--assert", "tag:vault never reaches netvm", *NO_TEMPLATE, *NO_DISPOSABLE)
    code, out, _ = reach(*words)
    assert code == 3
    assert out.startswith("fails: tag:vault never reaches netvm\n")
    assert "(30-user.policy:4)" in out
    assert "qube1: AppVM, tag:vault" in out


def test_counter_example_can_be_decided_again(reach: Callable[..., Told]) -> None:
    """What a script gets is a system in which the calls of the chain are let through."""
    words = ("--assert", "tag:vault never reaches netvm", *NO_TEMPLATE, *NO_DISPOSABLE, "--json")
    code, out, _ = reach(*words, "--assume", "backup has no netvm")
    [told] = json.loads(out)["assertions"]
    assert (code, told["answer"]) == (3, "fails")
    policy = parse_policy({"30-user.policy": POLICY})
    system = SystemInfo.from_dict(told["example"]["domains"])
    calls = [hop for hop in told["example"]["hops"] if hop["service"]]
    assert calls
    for hop in calls:
        service, plus, argument = hop["service"].partition("+")
        request = Request(service, plus + argument, hop["caller"], hop["request"])
        assert decide(request, policy, system).as_dict()["decision"] in {"allow", "ask"}


def test_assertions_come_from_a_file(reach: Callable[..., Told], tmp_path: Path) -> None:
    """For CI: the worst answer decides about the exit code."""
    file = tmp_path / "flows.toml"
    text = (
        'assert = ["tag:vault never reaches netvm", "tag:vault never reaches backup"]\n'
        'assume = ["no type:TemplateVM", "backup has no netvm", "no backup and base", '
        '"no tag:vault and type:DispVM", "no type:RemoteVM"]\n'
    )
    file.write_text(text)
    code, out, _ = reach("--assert-file", str(file), "--no-ask")
    assert code == 3
    assert [line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")] == [
        "holds",
        "fails",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("assert = 'x'", "is no file of assertions"),
        ("asert = []", "is no file of assertions"),
        ("assert = []", "has no assertion"),
        ("\x00", "is no file of assertions"),
        ("assert = ['x']", "`x` is not an assertion"),
        ("x = " + "[" * 9999, "error:"),
        ("#" * 1_000_001, "is larger than"),
    ],
)
def test_bad_file_is_refused(
    reach: Callable[..., Told], tmp_path: Path, text: str, expected: str
) -> None:
    """Nothing holds because a file was misread."""
    (tmp_path / "flows.toml").write_text(text)
    code, out, err = reach("--assert-file", str(tmp_path / "flows.toml"))
    assert (code, out) == (2, "")
    assert expected in err


def test_missing_file_is_told_from_an_assertion_that_fails(reach: Callable[..., Told]) -> None:
    """As a table that cannot be used: 2, with the name of the file."""
    code, out, err = reach("--assert-file", "/nonexistent.toml")
    assert (code, out) == (2, "")
    assert err.startswith("error: `/nonexistent.toml` cannot be read: no such file or directory\n")


@pytest.mark.parametrize("option", ["--one-way", "--service"])
def test_service_that_no_rule_names_is_noted(reach: Callable[..., Told], option: str) -> None:
    """A slip in a filter reads as if nothing could flow; one in a file does, too."""
    note = "note: no rule names the service `qubes.Fileopy`; did you mean `qubes.Filecopy`?\n"
    code, _, err = reach("wallet", option, "qubes.Fileopy", option, "my.Backup")
    assert (code, err.count("note: ")) == (0, 1)
    assert note in err
    assert note not in reach("wallet", option, "qubes.Fileopy", "-q")[2]
    assertion = ("--assert", "tag:vault never reaches netvm")
    assert note in reach(*assertion, option, "qubes.Fileopy")[2]
    assert "note: no rule names the service `x`\n" in reach("wallet", option, "x")[2]


def test_service_in_a_file_that_no_rule_names_is_noted(
    reach: Callable[..., Told], tmp_path: Path
) -> None:
    """Such a file may be older than the policy."""
    file = tmp_path / "flows.toml"
    file.write_text('assert = ["tag:vault never reaches netvm"]\none_way = ["my.Bakup"]\n')
    assert "`my.Bakup`; did you mean `my.Backup`?" in reach("--assert-file", str(file))[2]


def test_option_of_services_leaves_the_qube_alone(reach: Callable[..., Told]) -> None:
    """One name each, so that the qube may stand behind it."""
    before = reach("wallet", "--service", "my.Backup", "--service", "my.Restore")
    assert before[0] == 0
    assert reach("--service", "my.Backup", "--service", "my.Restore", "wallet") == before
    assert "wallet calls `my.Backup` of `backup`" in before[1]


@pytest.mark.parametrize("words", [("walet",), ("work", "--to", "walet"), ("walet", "--from")])
def test_name_that_no_qube_has_is_answered_with_close_ones(
    reach: Callable[..., Told], words: tuple[str, ...]
) -> None:
    """A slip costs one look."""
    assert reach(*words) == (
        1,
        "",
        "error: there is no qube `walet`\nhint: did you mean `wallet`?\n",
    )
    assert reach("internet")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 2, "name either a qube or assertions"),
        (("wallet", "--assert", "a never reaches b"), 2, "name either a qube or assertions"),
        (("--assert", "a never reaches b", "--to", "c"), 2, "go with a qube"),
        (("wallet", "--assume", "no a"), 2, "goes with an assertion"),
        (("nosuch",), 1, "there is no qube `nosuch`"),
        (("wallet", "--to", "nosuch"), 1, "there is no qube `nosuch`"),
        (("--assert", "a reaches b"), 1, "is not an assertion"),
        (("--assert", "@tag:a never reaches b"), 1, "is neither a name, nor a tag or type"),
        (("--assert", "a never reaches a"), 1, "both ends"),
        (("--assert", "a never reaches b", "--assume", "no a"), 1, "nothing to check"),
        (("--assert", "a never reaches b", "--assume", "maybe a"), 1, "is not an assumption"),
        (("--assert", "a" * 2000), 1, "longer than"),
        (("--assert", "a\x1b never reaches b"), 1, "is not understood"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    reach: Callable[..., Told], words: tuple[str, ...], code: int, expected: str
) -> None:
    """A question that nothing fits is an error, not an assertion that holds."""
    told = reach(*words)
    assert (told[0], told[1]) == (code, "")
    assert expected in told[2]
    assert "\x1b" not in told[2]


def test_documented_example_is_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page says what the command says, for both policies."""
    page = (Path(__file__).parents[3] / "docs/concepts/information-flow.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    policies = [text for kind, text in blocks if kind == "policy"]
    [console] = [text for kind, text in blocks if kind == "console"]
    [assertions] = [text for kind, text in blocks if kind == "toml"]
    (tmp_path / "flows.toml").write_text(assertions)
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d/30-user.policy").write_text(policies[0])
    command, _, expected = console.partition("\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command.removeprefix("$ ").split())
    assert (umbrella.main(), capsys.readouterr().out) == (3, expected)
    (tmp_path / "policy.d/20-disposables.policy").write_text(policies[1])
    assert umbrella.main() == 0
    assert capsys.readouterr().out.startswith("holds: ")


def test_broken_policy_is_no_answer(reach: Callable[..., Told], tmp_path: Path) -> None:
    """It denies everything until it is mended, and then it does not."""
    (tmp_path / "policy.d/40-more.policy").write_text("nonsense\n")
    code, out, err = reach("--assert", "a never reaches b")
    assert (code, out) == (1, "")
    assert "40-more.policy:1" in err
