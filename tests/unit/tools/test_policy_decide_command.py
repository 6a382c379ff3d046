"""`caisson policy decide`: requests as lines in, decisions as lines out."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caisson.tools.policy.decide import LONGEST_LINE

COMMAND = Path(sys.executable).parent / "caisson"
GOOD = {"service": "s.X", "argument": "+a", "source": "work", "target": "vault"}
SYSTEM: dict[str, dict[str, Any]] = {
    "dom0": {"type": "AdminVM", "uuid": "00000000-0000-0000-0000-000000000000"},
    "work": {"type": "AppVM"},
    "vault": {"type": "AppVM", "uuid": "00000000-0000-4000-8000-000000000001"},
    "dvm": {"type": "AppVM", "template_for_dispvms": True},
}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command line, with a small policy and system."""
    directory = tmp_path / "policy"
    directory.mkdir()
    (directory / "30-user.policy").write_text(
        "s.X +a work vault allow user=root\ns.X + work @anyvm ask default_target=vault\n"
        "s.Z * work @dispvm:dvm allow notify=yes\ns.X * * * deny notify=no\n"
    )
    system = tmp_path / "system.json"
    system.write_text(json.dumps({"domains": SYSTEM}))
    options = ["--policy-dir", str(directory), "--system-info", str(system)]
    return [str(COMMAND), "policy", "decide", *options]


def _decide(words: list[str], untrusted: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, input=untrusted, capture_output=True, check=False)


def _lines(*requests: dict[str, Any]) -> bytes:
    return "".join(f"{json.dumps(request)}\n" for request in requests).encode()


def test_decisions_have_the_keys_that_scripts_read(words: list[str]):
    """One object a request, in order; lists are sorted, what is not there is null."""
    asked = _lines(
        GOOD,
        {**GOOD, "argument": "+"},
        {**GOOD, "argument": "+b"},
        {**GOOD, "target": f"uuid:{SYSTEM['vault']['uuid']}"},
        {**GOOD, "service": "s.Z", "target": "@dispvm:dvm"},
        {**GOOD, "service": "s.Y"},
    )
    done = _decide(words, asked + b"\n  \n" + json.dumps(GOOD).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    allow: dict[str, Any] = {
        "decision": "allow",
        "target": "vault",
        "requested_target": "vault",
        "user": "root",
        "autostart": True,
        "notify": False,
        "rule": "30-user.policy:1",
    }
    uuid = {"target": f"uuid:{SYSTEM['vault']['uuid']}"}
    disposable = {"target": "@dispvm:dvm", "requested_target": "@dispvm:dvm", "user": None}
    deny = {"decision": "deny", "notify": False, "reason": "rule"}
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0] == answers[6] == allow
    assert answers[1] == {
        "decision": "ask",
        "targets": ["@dispvm:dvm", "dvm", "vault"],
        "default_target": "vault",
        "requested_target": "vault",
        "user": None,
        "autostart": True,
        "notify": False,
        "rule": "30-user.policy:2",
    }
    assert deny.items() <= answers[2].items()
    assert answers[3] == {**allow, **uuid, "requested_target": uuid["target"]}
    assert answers[4] == {**allow, **disposable, "notify": True, "rule": "30-user.policy:3"}
    assert {**deny, "notify": True, "reason": "no-rule"}.items() <= answers[5].items()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"nonsense", b"JSON is malformed"),
        (b'{"service": "s.X"}', b"missing required field"),
        (b'{"service": 1, "argument": "+", "source": "a", "target": "b"}', b"`$.service`"),
        (b'{"service": "s.X", "argument": "a", "source": "a", "target": "b"}', b"with `+`"),
        (b"[]", b"got `array`"),
        (b"\0\0", b"JSON is malformed"),
        (b'{"service": "s\\u0000", "argument": "+", "source": "a", "target": "b"}', b"NUL"),
        (b'{"service": "\xff", "argument": "+", "source": "a", "target": "b"}', b"utf-8"),
        (b'{"service": "\\ud800", "argument": "+", "source": "a", "target": "b"}', b"malformed"),
        (b"[" * 100_000, b"`array`"),
        (b'{"x": ' + b"[" * 100_000, b"recursion"),
        (b'{"service": ' + b'{"a":' * 30_000, b"`object`"),
        (b"x" * (1024 * 1024), b"longer than"),
        (b" " * LONGEST_LINE + b"{}", b"longer than"),
    ],
)
def test_line_that_is_no_request_ends_it_behind_the_answers_before(
    words: list[str], line: bytes, complaint: bytes
):
    """The error names the line, and stays one line whatever the input is."""
    good = _lines(GOOD)
    done = _decide(words, good + b"\n" + good + line + b"\n" + good)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(b"error: line 4 of the input is ")
    assert complaint in error
    assert len(error) < 200
    assert hint.startswith(b"hint: write `{")


def test_program_that_waits_for_each_answer_gets_it(words: list[str]):
    """A coprocess asks again only when it was answered."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            process.stdin.write(_lines(GOOD)[:20])
            process.stdin.flush()
            process.stdin.write(_lines(GOOD)[20:])
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["decision"] == "allow"
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_many_requests_are_answered_in_order(words: list[str]):
    """Chunks of the input end anywhere in a line."""
    many = [{**GOOD, "argument": "+a" if number % 3 else "+"} for number in range(5000)]
    done = _decide(words, _lines(*many))
    expected = ["allow" if number % 3 else "ask" for number in range(5000)]
    assert [json.loads(line)["decision"] for line in done.stdout.splitlines()] == expected


def test_broken_policy_denies_and_shows_the_mistake(words: list[str], tmp_path: Path):
    """Scripts see denials, and a person sees the line that is wrong."""
    (tmp_path / "policy" / "30-user.policy").write_text("s.X * work @tag: allow\n")
    done = _decide(words, _lines(GOOD, GOOD))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["reason"] for answer in answers] == ["syntax", "syntax"]
    assert done.stderr.splitlines()[:3] == [
        b"error: 30-user.policy:1:12: `@tag:` is not a target",
        b"    s.X * work @tag: allow",
        b"               ^",
    ]


def test_closed_input_is_an_error(words: list[str]):
    """Not a crash, and no decision on whatever file takes its number."""
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *words], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: input cannot be read: bad file descriptor\n"


def test_input_that_does_not_block_is_waited_for(words: list[str]):
    """As programs hand it over whose own loop needs it so."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(2):
                ours.sendall(_lines(GOOD))
                assert json.loads(process.stdout.readline())["decision"] == "allow"
            ours.shutdown(socket.SHUT_WR)
            assert process.stdout.read() == b""
        assert process.returncode == 0
