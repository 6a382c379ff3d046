"""`caisson doctor`: it names every barrier, with a daemon and without, and leaves nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caisson.daemons.doctor import policy, questions
from caisson.engines import BARRIERS
from caisson.lifecycle import probe
from caisson.paths import AGENT_BINARY, Paths
from caisson.tools.prompting.place import listening

pytestmark = pytest.mark.root
needs_agent = pytest.mark.skipif(not AGENT_BINARY.exists(), reason="needs the agent to be built")


def doctor(root: Path) -> list[dict[str, Any]]:
    """What the command finds where no daemon runs."""
    program = Path(sys.executable).parent / "caisson"
    done = subprocess.run(
        [program, "--root", str(root), "doctor", "--json"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def left_of(paths: Paths) -> list[str]:
    """What remains of a probe: files, sockets, control groups."""
    inner = Paths(paths.state / ".probe")
    found = [str(path) for path in paths.state.iterdir() if path.name != ".probe-lock"]
    found += [str(path) for path in Path("/tmp").glob("caisson-probe-*")]
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        found += [str(path) for path in (hierarchy / f"qubes-{inner.instance}").glob("*/")]
    return found


@needs_agent
async def test_a_probe_tells_of_every_barrier_and_leaves_nothing(tmp_path: Path):
    """By the report of the real agent in a real qube."""
    paths = Paths(tmp_path)
    found = await probe.barriers(paths)
    assert [finding.name for finding in found] == [f"barrier {name}" for name in sorted(BARRIERS)]
    assert [finding for finding in found if not finding.ok] == []
    assert left_of(paths) == []


@needs_agent
async def test_of_two_probes_at_once_one_says_that_the_other_is_under_way(tmp_path: Path):
    """They would end each other."""
    paths = Paths(tmp_path)
    both = await asyncio.gather(probe.barriers(paths), probe.barriers(paths))
    assert sorted(len(found) for found in both) == [1, len(BARRIERS)]
    assert "under way" in min(both, key=len)[0].detail
    assert left_of(paths) == []


async def test_a_probe_that_cannot_run_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With its reason, and without remains."""
    monkeypatch.setattr(probe, "AGENT_BINARY", tmp_path / "nosuch")
    paths = Paths(tmp_path / "instance")
    (finding,) = await probe.barriers(paths)
    assert not finding.ok
    assert finding.name == "barriers"
    assert "nosuch" in finding.detail + finding.remedy
    assert left_of(paths) == []


def test_it_tells_whether_a_person_can_be_asked(tmp_path: Path):
    """Where nobody is, nothing is broken, but each question ends as a refusal."""
    paths = Paths(tmp_path)
    paths.prompt_agent.parent.mkdir(parents=True)
    nobody = questions(paths)
    assert (nobody.ok, "start `caisson prompt`" in nobody.detail) == (True, True)
    with listening(paths.prompt_agent):
        assert questions(paths).detail == "asked in 1 place"
        with listening(paths.prompt_agent):
            assert questions(paths).detail == "asked in 2 places"
    assert questions(paths) == nobody


@pytest.mark.parametrize("said", [None, [], {}, {"barriers": 1}, {"barriers": {"bpf": True}}])
def test_a_barrier_that_is_not_reported_is_down(said: object):
    """Each with a remedy."""
    found = probe.findings(said)
    assert len(found) == len(BARRIERS)
    assert all(not finding.ok and finding.remedy for finding in found)


def test_a_report_of_a_qube_cannot_write_to_the_terminal():
    """What the agent says is shown escaped."""
    (finding,) = [
        finding
        for finding in probe.findings({"barriers": {"bpf": {"up": False, "detail": "\x1b[2J"}}})
        if finding.name == "barrier bpf"
    ]
    assert "\x1b" not in finding.detail


@needs_agent
def test_without_a_daemon_the_doctor_says_so_first_and_checks_the_machine_itself(
    tmp_path: Path,
):
    """Exit code not 0, for something is missing: the daemon."""
    first, *others = doctor(tmp_path)
    assert first["name"] == "daemon"
    assert not first["ok"]
    assert "caisson up" in first["remedy"]
    assert "systemctl" in first["remedy"]
    assert {f"barrier {name}" for name in BARRIERS} <= {other["name"] for other in others}
    assert "kernel" in {other["name"] for other in others}
    assert not any(other["detail"].endswith("…") for other in others)
    assert list(tmp_path.iterdir()) == []
    nowhere = tmp_path / "nosuch"
    assert [finding["name"] for finding in doctor(nowhere)] == ["daemon", "root directory"]
    assert not nowhere.exists()


def test_a_policy_that_does_not_load_is_a_finding_with_its_place(tmp_path: Path):
    """All else may be well, and yet every call is denied."""
    paths = Paths(tmp_path)
    directory = paths.etc / "policy.d"
    assert not (missing := policy(paths)).ok
    assert "create it" in missing.remedy
    directory.mkdir(parents=True)
    (directory / "30-user.policy").write_text("a.B * work vault allow\n")
    assert policy(paths).ok
    (directory / "30-user.policy").write_text("\na.B * work vault alow\n")
    for _ in ("before the broker has started", "after"):
        broken = policy(paths)
        assert not broken.ok
        assert "30-user.policy:2:18" in broken.detail
        assert "every call is denied" in broken.remedy
        (paths.run / "policy.d").mkdir(parents=True, exist_ok=True)
