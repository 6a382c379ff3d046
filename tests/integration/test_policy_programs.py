"""`qrexec-policy-exec` and `qrexec-policy-daemon`, as scripts and upstream programs use them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_rig import PATIENCE, broker_rig, exchange, info, policy_query, prompt_agent

from caisson.paths import Paths
from caisson.policy.grants import Grant
from caisson.store.grants import GrantFile

BIN = Path(sys.executable).parent
POLICY = """\
my.Allowed  *  work  @anyvm  allow  user=root
my.Asked    *  work  vault   ask
my.Denied   *  work  vault   deny
"""
ALLOWED = "user=root\nresult=allow\ntarget=vault\n"
DENIED = (1, "result=deny\n", "")


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """A policy and a system in files; no daemon runs."""
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d/30-user.policy").write_text(POLICY)
    domains = {name: info(name) for name in ("dom0", "work", "vault")}
    (tmp_path / "system.json").write_text(json.dumps({"domains": domains}))
    return tmp_path


def execute(root: Path, *words: str) -> tuple[int, str, str]:
    """Run `qrexec-policy-exec`; exit code, stdout, stderr."""
    command = [BIN / "qrexec-policy-exec", *words]
    environment = os.environ | {"CAISSON_ROOT": str(root), "NO_COLOR": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout, done.stderr


def here(root: Path) -> tuple[str, ...]:
    """The options that decide by files."""
    return "--path", str(root / "policy.d"), "--system-info", str(root / "system.json")


def test_a_policy_in_a_directory_is_evaluated_without_a_daemon(apart: Path):
    """The answer alone is on stdout, and the exit code is 0 only for an allow."""
    code, out, err = execute(apart, *here(apart), "--", "work", "vault", "my.Allowed+a")
    assert (code, err) == (0, "")
    assert out.startswith(ALLOWED)
    assert execute(apart, *here(apart), "work", "vault", "my.Denied") == DENIED
    code, out, err = execute(apart, *here(apart), "--", "work", "", "my.Allowed")
    assert (code, out) == DENIED[:2]
    assert err.startswith("denied: neither the caller nor the rule says which qube")


def test_questions_can_be_taken_for_a_yes_or_left_out(apart: Path):
    """`--assume-yes-for-ask` and `--just-evaluate`, without anybody to ask."""
    asked = ("work", "vault", "my.Asked")
    code, out, _ = execute(apart, *here(apart), "--assume-yes-for-ask", *asked)
    assert (code, "target=vault\n" in out) == (0, True)
    assert execute(apart, *here(apart), "--just-evaluate", *asked) == DENIED


def test_a_grant_is_no_part_of_another_policy(apart: Path):
    """What holds for a while counts where the instance's own policy is evaluated."""
    paths = Paths(apart)
    (apart / "etc/qubes").mkdir(parents=True)
    (apart / "policy.d").rename(paths.policy_dirs[1])
    paths.policy_dirs[0].mkdir(parents=True)
    source, target = (f"uuid:{info(name)['uuid']}" for name in ("work", "vault"))
    file = GrantFile(paths)
    expires = file.clock.now() + 600 * 10**9
    file.write([Grant("grant-0123abcd", "my.Denied", "*", source, target, expires)])
    asked = ("--system-info", str(apart / "system.json"), "work", "vault", "my.Denied")
    assert execute(apart, *asked)[0] == 0
    assert execute(apart, "--path", str(paths.policy_dirs[1]), *asked) == DENIED


def test_verbose_says_which_rule_decided(apart: Path):
    """On stderr: stdout stays what a program reads."""
    code, out, err = execute(apart, *here(apart), "-v", "work", "vault", "my.Denied")
    assert (code, out) == (1, "result=deny\n")
    assert "30-user.policy:3" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("3", "work", "vault", "my.Allowed", "12"), 2, "hint: give SOURCE TARGET SERVICE"),
        (("work", "vault"), 2, "required: SERVICE[+ARGUMENT]\n"),
        (("work", "vault", "my Service"), 1, "service name `my Service` is not valid"),
        (("work\njust_evaluate=yes", "vault", "my.Asked"), 1, "`work\\njust_evaluate=yes`"),
        (("work", "vault\nassume_yes_for_ask=yes", "my.Asked"), 1, "`vault\\nassume_yes"),
        (("work", "vault", "my.Allowed+\x1b[2J"), 1, "\\x1b[2J"),
        (("work", "vault", "my.Allowed"), 1, "hint: start the broker: caisson up"),
    ],
)
def test_what_has_no_meaning_is_said(apart: Path, words: tuple[str, ...], code: int, said: str):
    """The old form that also connects, bad names, and no broker; never a raw escape."""
    done = execute(apart, *words)
    assert (done[0], done[1]) == (code, "")
    assert said in done[2]
    assert "\x1b" not in done[2]


@pytest.mark.root
async def test_the_broker_is_asked_where_no_policy_is_named():
    """As if the call were made: a person answers, and the log has a record."""
    async with broker_rig(POLICY) as rig, prompt_agent(rig, lambda _: b"allow:vault"):
        await rig.add("work")
        await rig.add("vault")
        root = rig.paths.root
        code, out, err = await asyncio.to_thread(execute, root, "work", "vault", "my.Asked+x")
        assert (code, err) == (0, "")
        assert "requested_target=vault\n" in out
        assert (await rig.audited(service="my.Asked"))["answered_by"] == "uid 0"
        words = ("--just-evaluate", "work", "vault", "my.Asked")
        assert await asyncio.to_thread(execute, root, *words) == DENIED


@contextmanager
def daemon(root: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A running `qrexec-policy-daemon`, ready to answer."""
    command = [BIN / "qrexec-policy-daemon", "--root", str(root), *words]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        assert "serving" in running.stderr.readline()
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=PATIENCE)


async def test_the_daemon_serves_the_three_sockets_by_files(apart: Path):
    """A policy that changes counts for the next request; nothing is left when it ends."""
    sockets = {kind: apart / f"{kind}.sock" for kind in ("socket", "eval-socket", "gui-socket")}
    where = [word for kind, path in sockets.items() for word in (f"--{kind}-path", str(path))]
    options = ("--policy-path", *here(apart)[1:], *where)
    with daemon(apart, *options) as running:
        assert stat.S_IMODE(sockets["socket"].stat().st_mode) == 0o660
        reply = await exchange(sockets["socket"], policy_query("my.Allowed+a"))
        assert reply.decode().startswith(ALLOWED)
        head = b"policy.EvalSimple+my.Asked dom0 name dom0\0work\0vault"
        assert await exchange(sockets["eval-socket"], head, end=True) == b"result=allow\n"
        gui = head.replace(b"Simple", b"GUI")
        assert await exchange(sockets["gui-socket"], gui, end=True) == b"result=deny\n"
        (apart / "policy.d/30-user.policy").write_text("")
        assert await exchange(sockets["socket"], policy_query("my.Allowed")) == b"result=deny\n"
        (apart / "system.json").write_text("no system")
        assert await exchange(sockets["socket"], policy_query("my.Allowed")) == b"result=deny\n"
    assert running.returncode == 0
    assert not any(path.exists() for path in sockets.values())


async def test_a_second_directory_is_overridden_by_the_first(apart: Path):
    """As `/run/qubes/policy.d` overrides `/etc/qubes/policy.d`, file by file."""
    (apart / "over").mkdir()
    (apart / "over/30-user.policy").write_text("my.Denied * work vault allow\n")
    (apart / "policy.d/40-more.policy").write_text("my.More * work vault allow\n")
    options = ("--policy-path", str(apart / "over"), "--policy-path", *here(apart)[1:])
    with daemon(apart, *options, "--socket-path", str(apart / "policy.sock")):
        for service, verdict in (("my.Denied", b"allow"), ("my.More", b"allow")):
            reply = await exchange(apart / "policy.sock", policy_query(service))
            assert b"result=%s\n" % verdict in reply
        reply = await exchange(apart / "policy.sock", policy_query("my.Allowed"))
        assert reply == b"result=deny\n"


def test_the_daemon_takes_no_place_that_is_not_its_own(apart: Path):
    """Without a socket it says what to name; a file that is no socket stays."""
    command = [BIN / "qrexec-policy-daemon", "--root", str(apart), "--policy-path"]
    command += here(apart)[1:]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "hint: name one with --socket-path" in done.stderr) == (2, True)
    taken = apart / "system.json"
    command += ["--socket-path", str(taken)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "address already in use" in done.stderr) == (1, True)
    assert "\nhint: what is there is no socket: choose another place\n" in done.stderr
    assert taken.is_file()


async def test_a_second_daemon_takes_no_socket_from_the_first(apart: Path):
    """The first would go on without being asked, and at the end of the second nobody answers."""
    place = apart / "policy.sock"
    options = ("--policy-path", *here(apart)[1:], "--socket-path", str(place))
    command = [BIN / "qrexec-policy-daemon", "--root", str(apart), *options]
    with daemon(apart, *options) as running:
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False
        )
        said = f"error: somebody answers at `{place}` already\nhint: choose another socket"
        assert (done.returncode, done.stderr.startswith(said)) == (1, True)
        assert (await exchange(place, policy_query("my.Allowed"))).decode().startswith(ALLOWED)
        running.kill()
        running.wait()
        assert place.exists()
        with daemon(apart, *options):
            reply = await exchange(place, policy_query("my.Allowed"))
            assert reply.decode().startswith(ALLOWED)


@pytest.mark.parametrize(
    ("policy", "system", "socket", "said"),
    [
        ("nope", "system.json", "q.sock", "nope` is no directory of policy files\nhint: "),
        ("system.json", "system.json", "q.sock", "json` is no directory of policy files\nhint: "),
        ("policy.d", "nope", "q.sock", "nope`: no such file or directory\n"),
        ("policy.d", "policy.d/30-user.policy", "q.sock", "is not system information"),
        ("policy.d", None, "q.sock", "the daemon does not run"),
        ("policy.d", "system.json", "nodir/q.sock", "\nhint: make the directory `"),
    ],
)
def test_the_daemon_does_not_begin_to_deny_for_want_of_what_it_needs(
    apart: Path, policy: str, system: str | None, socket: str, said: str
):
    """A mistyped policy or system, or no daemon to ask, is an error before it serves."""
    command = [BIN / "qrexec-policy-daemon", "--root", str(apart)]
    command += ["--policy-path", str(apart / policy), "--socket-path", str(apart / socket)]
    command += [] if system is None else ["--system-info", str(apart / system)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "serving" not in done.stderr


def test_a_denial_that_no_rule_explains_is_explained(apart: Path):
    """On stderr: a broken policy, a caller that there is not, and nobody there to ask."""
    policy, system = here(apart)[:2], here(apart)[2:]
    code, out, err = execute(apart, "--path", str(apart / "nope"), *system, "work", "vault", "my.A")
    assert (code, out) == (1, "")
    assert "nope` is no directory of policy files\nhint: " in err
    unknown = execute(apart, *policy, *system, "wrok", "vault", "my.Allowed")
    assert unknown == (*DENIED[:2], "denied: there is no qube `wrok`\n")
    code, out, err = execute(apart, *policy, *system, "work", "vault", "my.Asked")
    assert (code, out) == DENIED[:2]
    assert err.startswith("denied: ")
    (apart / "policy.d/40-broken.policy").write_text("nonsense\n")
    code, out, err = execute(apart, *policy, *system, "work", "vault", "my.Allowed")
    assert (code, out) == DENIED[:2]
    assert err.startswith("denied: the policy is broken: 40-broken.policy:1:9: ")


def test_an_instance_that_does_not_run_is_decided_on_without_its_run_directory(apart: Path):
    """After a boot `/run` is empty until the broker makes what it needs there."""
    paths = Paths(apart)
    (apart / "etc/qubes").mkdir(parents=True)
    (apart / "policy.d").rename(paths.policy_dirs[1])
    code, out, err = execute(apart, *here(apart)[2:], "work", "vault", "my.Allowed")
    assert (code, err) == (0, "")
    assert out.startswith(ALLOWED)
