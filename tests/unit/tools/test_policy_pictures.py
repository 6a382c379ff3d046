"""`caisson policy graph` and `qrexec-policy-graph`: pictures that say what the policy says."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from caisson.tools import qrexec_policy_graph, umbrella

POLICY = "s.X + work vault allow\ns.Y + work net ask\ns.Z + net vault deny\n"
SYSTEM = {
    "dom0": {"type": "AdminVM"},
    "work": {"type": "AppVM", "label": "0xcc0000"},
    "vault": {"type": "AppVM"},
    "net": {"type": "AppVM"},
}


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A small policy and a small system."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/30-user.policy").write_text(POLICY)
    (tmp_path / "system.json").write_text(json.dumps({"domains": SYSTEM}))
    return [
        "--policy-dir",
        str(tmp_path / "policy"),
        "--system-info",
        str(tmp_path / "system.json"),
    ]


def _upstream(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = qrexec_policy_graph.command.main(
        qrexec_policy_graph.parser(), qrexec_policy_graph.run, words
    )
    return (code, *capfd.readouterr())


def _ours(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = umbrella.command.main(umbrella.parser(), umbrella.run, ["policy", "graph", *words])
    return (code, *capfd.readouterr())


def test_allowed_calls_are_red_and_questions_orange(
    options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The options and colours are upstream's."""
    assert 'work -> vault [label="s.X" color=red]' in _upstream(capfd, *options)[1]
    _, out, _ = _upstream(capfd, *options, "--include-ask")
    assert 'work -> net [label="s.Y" color=orange]' in out
    assert "net -> vault" not in out
    assert 'net -> vault [label="s.Z" color=gray]' in _upstream(capfd, *options, "--full-output")[1]


def test_labels_can_be_skipped_and_calls_chosen(
    options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Filters take several names."""
    assert "work -> vault [color=red]" in _upstream(capfd, *options, "--skip-labels")[1]
    _, out, _ = _upstream(capfd, *options, "--include-ask", "--target", "net", "--source", "work")
    assert "vault" not in out
    assert "s.X" not in _upstream(capfd, *options, "--include-ask", "--service", "s.Y")[1]


def test_the_graph_goes_to_a_file(
    options: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is printed then."""
    assert _upstream(capfd, *options, "--output", str(tmp_path / "g.dot"))[:2] == (0, "")
    assert (tmp_path / "g.dot").read_text().startswith("digraph")


def test_graphviz_reads_what_is_written(
    options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The output is the language of Graphviz, whatever a service or qube is called."""
    for out in (_upstream(capfd, *options, "--include-ask")[1], _ours(capfd, *options)[1]):
        done = subprocess.run(
            check=False, args=["dot", "-Tsvg"], input=out, text=True, capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "vault" in done.stdout


def test_hostile_names_stay_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No markup, no escape sequence and no line of its own comes out of a name (QSB-087)."""
    names = ['a"]; evil [label="', "<b>x</b>", "a\\n", "b\x1b[2J", "c\nevil -> worse"]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/30.policy").write_text("s.X * * * allow\n")
    domains = {"dom0": {"type": "AdminVM"}, **{name: {"type": "AppVM"} for name in names}}
    (tmp_path / "system.json").write_text(json.dumps({"domains": domains}))
    words = ["--policy-dir", str(tmp_path / "p"), "--system-info", str(tmp_path / "system.json")]
    for out in (_upstream(capfd, *words)[1], _ours(capfd, *words, "--each")[1]):
        assert "\x1b" not in out
        done = subprocess.run(
            check=False, args=["dot", "-Tplain"], input=out, text=True, capture_output=True
        )
        assert done.returncode == 0
        nodes = [line for line in done.stdout.splitlines() if line.startswith("node ")]
        hubs = sum(line.startswith("node calls") for line in nodes)
        assert len(nodes) - hubs == len(domains)


def test_a_picture_can_be_drawn(
    options: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The format follows the name of the file."""
    assert _ours(capfd, *options, "-o", str(tmp_path / "g.svg"))[0] == 0
    drawn = (tmp_path / "g.svg").read_text()
    assert "<svg" in drawn
    assert "s.X" in drawn
    assert "#cc0000" in drawn, "the label's colour"


def test_a_missing_graphviz_is_named(
    options: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """DOT needs no other program, a picture does."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _ours(capfd, *options)[0] == 0
    code, out, err = _ours(capfd, *options, "--format", "svg")
    assert (code, out) == (1, "")
    assert "`dot`" in err
    assert "apt install graphviz" in err


def test_a_broken_policy_has_no_picture(
    options: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It denies everything; the error says where it is broken."""
    (tmp_path / "policy/40-broken.policy").write_text("s.X + work\n")
    code, out, err = _ours(capfd, *options)
    assert (code, out) == (1, "")
    assert "40-broken.policy:1" in err


def test_an_unknown_ending_is_refused(
    options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    code, _, err = _ours(capfd, *options, "-o", "picture.bmp")
    assert code == 1
    assert "`.bmp`" in err


@pytest.mark.parametrize("draw", [_upstream, _ours])
@pytest.mark.parametrize("option", ["--source", "--target"])
def test_a_qube_that_is_none_is_refused(
    options: list[str],
    capfd: pytest.CaptureFixture[str],
    draw: Callable[..., tuple[int, str, str]],
    option: str,
) -> None:
    """An empty picture because of a slip would say that nothing is possible."""
    error = "error: there is no qube `vualt`\nhint: did you mean `vault`?\n"
    assert draw(capfd, option, "vualt", *options) == (1, "", error)
    if option == "--target":
        assert draw(capfd, option, "@dispvm:vualt", *options) == (1, "", error)


@pytest.mark.parametrize("draw", [_upstream, _ours])
def test_a_service_that_no_rule_names_is_noted(
    options: list[str],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    draw: Callable[..., tuple[int, str, str]],
) -> None:
    """And drawn as rules for every service have it, if there are any."""
    note = "note: no rule names the service `s.W`; did you mean "
    code, out, err = draw(capfd, "--service", "s.W", *options)
    assert code == 0
    assert "vault" not in out
    assert err.startswith(note)
    assert note not in draw(capfd, "--service", "s.W", "-q", *options)[2]
    (tmp_path / "policy/40-more.policy").write_text("* * net work allow\n")
    _, out, err = draw(capfd, "--service", "s.W", *options)
    assert "s.W" in out
    assert "net" in out
    assert err.startswith(note)


def test_every_form_of_a_target_is_understood(
    options: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Keywords are what denied calls ask for; names of the admin qube are one."""
    (tmp_path / "policy/30-user.policy").write_text(
        "s.X * work @adminvm allow\ns.Y * work @dispvm deny\ns.Y * work @default deny\n"
    )
    for target in ("@adminvm", "dom0"):
        assert "s.X" in _upstream(capfd, *options, "--target", target)[1]
    for target in ("@dispvm", "@default"):
        out = _upstream(capfd, *options, "--full-output", "--target", target)[1]
        assert ("s.Y" in out, "s.X" in out) == (True, False)
