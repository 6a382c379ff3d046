"""Which policy the sub-commands of `caisson policy` speak about."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caisson.tools import command, umbrella

REQUEST = '{"service": "s.X", "argument": "+", "source": "work", "target": "vault"}\n'
COMMANDS = {
    "decide": (),
    "explain": ("work", "vault", "s.X"),
    "graph": (),
    "reach": ("work",),
    "test": ("table.toml",),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system, and a table of one denial."""
    domains = {name: {"type": "AppVM"} for name in ("work", "vault")}
    (tmp_path / "system.json").write_text(json.dumps({"domains": domains}))
    (tmp_path / "table.toml").write_text(
        '[[expect]]\nsource = "work"\ntarget = "vault"\nservice = "s.X"\ndecision = "deny"\n'
    )
    (tmp_path / "request").write_text(REQUEST)
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "request").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield tmp_path


def _run(place: Path, action: str, *options: str) -> int:
    words = ["--root", str(place), "policy", action, *COMMANDS[action]]
    return command.main(
        umbrella.parser(), umbrella.run, [*words, "--system-info", "system.json", *options]
    )


@pytest.mark.parametrize("action", COMMANDS)
@pytest.mark.parametrize("name", ["nope", "system.json"])
def test_mistyped_directory_is_no_policy_that_denies(
    place: Path, capsys: pytest.CaptureFixture[str], action: str, name: str
) -> None:
    """A script that asks by a typo gets an error, and no decision."""
    assert _run(place, action, "--policy-dir", name) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: `{name}` is no directory of policy files\n"
        "hint: name the directory in which the `.policy` files are\n"
    )


@pytest.mark.parametrize("action", COMMANDS)
def test_directory_without_policy_files_is_noted(
    place: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    """It denies everything, which may be meant or not."""
    (place / "empty.d").mkdir()
    assert _run(place, action, "--policy-dir", "empty.d") == 0
    note = "note: no `*.policy` file is in `empty.d`: every call is denied\n"
    assert capsys.readouterr().err.startswith(note)


@pytest.mark.parametrize("action", COMMANDS)
def test_instance_that_does_not_run_needs_no_run_directory(
    place: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    """After a boot `/run` is empty until the broker has started; the policy is none the worse."""
    policy = place / "etc/qubes/policy.d"
    policy.mkdir(parents=True)
    (policy / "30-user.policy").write_text("s.X * work @anyvm deny\n")
    assert _run(place, action) == 0
    assert "cannot be read" not in "".join(capsys.readouterr())


def test_running_instance_without_its_run_directory_is_broken(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the broker has it, which denies every call then."""
    policy = place / "etc/qubes/policy.d"
    policy.mkdir(parents=True)
    (policy / "30-user.policy").write_text("s.X * work @anyvm allow\n")
    (place / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(place / "run/qubesd.internal.sock"))
        daemon.listen()
        assert _run(place, "explain") == 1
    assert "cannot be read" in "".join(capsys.readouterr())
