"""Decisions that an independent implementation of the policy language computed."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caisson.admin.client import Client
from caisson.policy import (
    BrokenPolicy,
    PolicyError,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)
from caisson.tools.policy import decide as command

CHECKOUT = Path(__file__).parents[2]
OWN = Path(__file__).parent / "vectors" / "policy-own.jsonl"
SHARED = (
    Path(os.environ.get("CAISSON_SHARED", CHECKOUT.parent / "shared"))
    / "vectors"
    / "policy-decisions.jsonl"
)
FILES = [
    pytest.param(OWN, id="own"),
    pytest.param(
        SHARED,
        id="shared",
        marks=pytest.mark.skipif(
            not SHARED.exists(),
            reason=f"no shared vectors at {SHARED}; CAISSON_SHARED names their directory",
        ),
    ),
]


def _load(files: dict[str, str]) -> PolicySet | BrokenPolicy:
    try:
        return parse_policy(files)
    except PolicyError as e:
        return BrokenPolicy(e)


def _differences(expected: dict[str, Any], decision: dict[str, Any]) -> dict[str, Any]:
    return {k: (v, decision.get(k)) for k, v in expected.items() if v != decision.get(k)}


@pytest.mark.parametrize("evaluate", [decide, decide_by_reference])
@pytest.mark.parametrize("path", FILES)
def test_decisions_are_those_of_the_vectors(path: Path, evaluate: Any):
    """Every field that a vector states is the same: decision, targets, rule, notify and reason."""
    wrong, checked = [], 0
    for line in path.read_text().splitlines():
        vector = json.loads(line)
        policy = _load(vector["policy"])
        domains = SystemInfo.from_dict(vector["domains"])
        for request, expected in zip(vector["requests"], vector["expect"], strict=True):
            decision = evaluate(Request(**request), policy, domains).as_dict()
            checked += 1
            if different := _differences(expected, decision):
                wrong.append((vector.get("id"), request, different))
    assert checked
    assert not wrong, f"{len(wrong)} of {checked}; the first: {wrong[0]}"


def _laid_out(vector: dict[str, Any], place: Path) -> argparse.Namespace:
    """A vector as files, and the options that name them."""
    directory, system = place / "policy", place / "system.json"
    directory.mkdir(parents=True)
    for name, text in vector["policy"].items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    system.write_text(json.dumps({"domains": vector["domains"]}))
    requests = "".join(f"{json.dumps(request)}\n" for request in vector["requests"])
    (place / "requests").write_text(requests)
    return argparse.Namespace(quiet=True, policy_dir=directory, system_info=system)


def _wrong(vector: dict[str, Any], output: str) -> list[Any]:
    decisions = [json.loads(line) for line in output.splitlines()]
    pairs = zip(vector["requests"], vector["expect"], decisions, strict=True)
    return [(request, d) for request, e, got in pairs if (d := _differences(e, got))]


@pytest.mark.parametrize("path", FILES)
def test_command_answers_every_vector(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    """Read from files as people and CI do it, one answer a line."""
    for number, line in enumerate(path.read_text().splitlines()):
        vector = json.loads(line)
        options = _laid_out(vector, tmp_path / str(number))
        with (tmp_path / str(number) / "requests").open() as requests:
            monkeypatch.setattr(sys, "stdin", requests)
            assert command.run(options, Client()) == 0
        assert not _wrong(vector, capfd.readouterr().out), vector.get("id")


@pytest.mark.parametrize("path", FILES)
def test_command_answers_a_vector_as_a_program(path: Path, tmp_path: Path):
    """From the command line to the last byte."""
    vector = json.loads(path.read_text().splitlines()[0])
    options = _laid_out(vector, tmp_path)
    words = ["policy", "decide", "--policy-dir", options.policy_dir]
    with (tmp_path / "requests").open() as requests:
        done = subprocess.run(
            [Path(sys.executable).parent / "caisson", *words, "--system-info", options.system_info],
            stdin=requests,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert not _wrong(vector, done.stdout)
