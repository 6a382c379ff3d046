"""Attacks on the policy files by a broker that a hostile qube has taken over."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from admin_rig import Answer, Daemon, daemon_rig
from broker_rig import PATIENCE, until
from forged_calls import Attacker, forged

pytestmark = pytest.mark.root

CANARY = "canary-90d1"
LIST = {"service": "policy.List"}
POLICY = f"""\
policy.List              *         mgmt  @adminvm  allow
policy.Get               +30-user  ro    @adminvm  allow
policy.Replace           +40-web   mgmt  @adminvm  allow
policy.Replace           +50-no    mgmt  @adminvm  deny
policy.RegisterArgument  +my.Back  key   work      allow target=dom0
secret.Service           *         {CANARY} work   deny
"""


def folder(daemon: Daemon) -> Path:
    """Where the policy files are."""
    return daemon.rig.paths.etc / "policy.d"


async def test_a_broker_cannot_read_or_write_policy_that_the_policy_does_not_let_be_written():
    """Qubesd judges each call itself: by source, service, argument and target."""
    async with daemon_rig(POLICY, "mgmt", "ro", "key", "work") as daemon:
        replace = {"service": "policy.Replace", "argument": "+40-web"}
        register = {"service": "policy.RegisterArgument", "argument": "+my.Back"}
        for changed in (
            {"source": "work"},
            {"source": "nowhere"},
            {**replace, "source": "ro"},
            {**replace, "argument": "+30-user"},
            {**replace, "argument": "+50-no"},
            {**replace, "argument": "+"},
            {**replace, "service": "policy.include.Replace"},
            {**replace, "service": "policy.Remove"},
            {"service": "policy.Get", "argument": "+30-user"},
            {"service": "policy.Get", "argument": "+40-web", "source": "ro"},
            {"service": "policy.GetFiles", "argument": "+secret.Service"},
            {**register, "source": "key", "requested": "mgmt"},
            {**register, "source": "key", "argument": "+other", "requested": "work"},
            {**register, "source": "mgmt", "requested": "work"},
            {**replace, "requested": "work"},
        ):
            code, out, err = await forged(daemon, b"any\n* * * * allow\n", **(LIST | changed))
            assert (code, out) == (b'{"code":1}', b""), changed
            name = err.split(b" ")[0]
            assert name in {b"PermissionDenied", b"QubesVMNotFoundError"}, (changed, err)
            assert CANARY.encode() not in err
        assert await forged(daemon, **LIST, source="dom0") == (b"", b"", b"")
        assert {path.name for path in folder(daemon).iterdir()} == {"30-user.policy"}
        assert (folder(daemon) / "30-user.policy").read_text() == POLICY
        done = await forged(daemon, b"any\n# Hi.\n", **replace, source="mgmt")
        assert done == (b'{"code":0}', b"", b"")
        done = await forged(daemon, b"k", **register, source="key", requested="work")
        assert done == (b'{"code":0}', b"", b"")


async def test_policy_services_have_no_other_way_and_no_other_service_their_way():
    """Neither a name that begins alike, nor a trusted method, is served for the broker's socket."""
    async with daemon_rig("* * * * allow target=dom0\n", "mgmt") as daemon:
        for service in (
            "policy.Lists", "policy.EvalEverything", "policy.", "policy", "policy.include",
            "internal.GetSystemInfo", "caisson.vm.List",
        ):  # fmt: skip
            assert await forged(daemon, service=service) == (b'{"code":127}', b"", b""), service
        for changed in ({"requested": "default"}, {"requested": "dispvm:mgmt"}):
            code, out, err = await forged(daemon, target_type="keyword", **(LIST | changed))
            assert (code, out) == (b'{"code":1}', b"")
            assert err.startswith(b"PolicyAdminProtocolException ")


async def test_payloads_of_those_who_may_not_write_are_not_even_read():
    """A broker that names many qubes cannot make qubesd hold a large payload for each."""
    async with daemon_rig(POLICY, "mgmt", "work") as daemon:
        replace = {"service": "policy.Replace", "argument": "+40-web"}
        # The payload never ends: who may not write is answered all the same.
        attacker = Attacker(daemon.rig.paths.admin_calls)
        attacker.call(**replace, source="work")
        assert await attacker.answer() == b'{"code":1}'
        attacker.close()
        waiting = [Attacker(daemon.rig.paths.admin_calls) for _ in range(8)]
        for each in waiting:
            each.call(**replace, source="mgmt")
        lines = daemon.piped._turns._lines
        await until(lambda: "mgmt" in lines and lines["mgmt"].calls == len(waiting))
        assert lines["mgmt"].turns.locked()
        # The others still have their turns.
        assert (await forged(daemon, **LIST, source="work"))[0] == b'{"code":1}'
        for each in waiting:
            each.close()
        await until(lambda: not lines)


async def test_who_may_write_one_policy_cannot_break_all_of_it_beyond_repair():
    """What qubesd can read as root and the broker cannot is refused, and the next call counts."""
    async with daemon_rig(POLICY, "mgmt") as daemon:

        async def replaced(content: str) -> Answer:
            payload = f"any\n{content}".encode()
            return await daemon.call("mgmt", "dom0", "policy.Replace+40-web", payload)

        closed = folder(daemon) / "include/closed"
        closed.parent.mkdir(exist_ok=True)
        closed.write_text("# Nothing.\n")
        closed.chmod(0o600)
        for line in (
            "!include-dir /root",
            "!include /etc/shadow",
            "!include /proc/self/environ",
            "!include-service my.X * /etc/shadow",
            "!include ../../../../../../../../etc/shadow",
            "!include include/closed",
        ):
            answer = await replaced(f"{line}\n")
            assert (answer.code, answer.out) == (1, b""), answer
            assert answer.err.startswith(b"PolicyAdminSyntaxException "), answer.err
        assert (await replaced("# Mended.\n")).code == 0


async def test_errors_do_not_tell_which_files_the_machine_has():
    """QSB-099: the same words for one that exists and one that does not, and no place in it."""
    async with daemon_rig(POLICY, "mgmt") as daemon:
        told = set()
        for path in ("/etc/shadow", "/etc/nobody", "/root", "/nobody", "/proc/self/environ"):
            payload = f"any\n!include {path}\n".encode()
            answer = await daemon.call("mgmt", "dom0", "policy.Replace+40-web", payload)
            told.add(answer.err.replace(path.encode(), b"PATH"))
        assert len(told) == 1
        assert b"40-web.policy:1: `PATH` lies outside the policy directory\n" in told.pop()


HOLD = """
import fcntl, os, sys
for path in sys.argv[1:]:
    try:
        fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("held", flush=True)
    except PermissionError:
        print("refused", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_nobody(*paths: Path) -> Iterator[list[str]]:
    """Somebody without rights or groups who locks what can be locked; what came of each."""
    # The checkout and its Python may lie where only root may enter.
    command = ["/usr/bin/python3", "-c", HOLD, *map(str, paths)]
    somebody = {"user": 65_534, "group": 65_534, "extra_groups": []}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", **somebody
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        yield [holder.stdout.readline().strip() for _ in paths]
        holder.stdin.close()


async def test_nobody_on_the_machine_can_keep_the_policy_from_being_changed():
    """The lock is on what only root can open, and not on the directory, which all may read."""
    async with daemon_rig(POLICY, "mgmt") as daemon:
        paths = daemon.rig.paths

        async def replaced(content: bytes) -> Answer:
            call = daemon.call("mgmt", "dom0", "policy.Replace+40-web", b"any\n" + content)
            return await asyncio.wait_for(call, PATIENCE)

        assert (await replaced(b"# One.\n")).code == 0
        attacked = (folder(daemon), paths.run, paths.policy_lock)
        with held_by_nobody(*attacked) as came:
            assert came == ["held", "held", "refused"]
            assert (await replaced(b"# Two.\n")).code == 0
