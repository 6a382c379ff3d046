"""Services of the admin qube: programs that qubesd runs for calls of qubes."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from broker_rig import PATIENCE, until
from dom0_rig import SHORT, ServiceRig, service_rig
from grounds.processes import alive

from caisson.daemons.logs import _harmless
from caisson.qrexec.admin_messages import MOST_OF_ONE
from caisson.qrexec.link import address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

POLICY = "* * @anyvm @adminvm allow\n* * @anyvm @anyvm allow target=dom0\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[ServiceRig]:
    """One instance for all tests that spoil nothing."""
    async with service_rig(POLICY, "work", "other") as made:
        yield made


@pytest.fixture
def admin(shared: ServiceRig) -> ServiceRig:
    """It, without services and with an empty log."""
    for directory in ("run/qubes-rpc", "usr/local/etc/qubes-rpc", "etc/qubes/rpc-config"):
        shutil.rmtree(shared.rig.paths.root / directory, ignore_errors=True)
    for file in shared.services.glob("my.*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    shared.log.clear()
    return shared


async def alone(admin: ServiceRig) -> None:
    """Wait until there is no process of a service."""
    await until(lambda: not admin.children())


async def test_a_service_is_told_of_its_call_and_of_nothing_else(
    admin: ServiceRig, monkeypatch: pytest.MonkeyPatch
):
    """QSB-038: the very bytes that the policy judged; a clean environment, `/`, its own session."""
    for name in ("SECRET", "QREXEC_REMOTE_DOMAIN", "QREXEC_SERVICE_ARGUMENT", "BASH_ENV", "ENV"):
        monkeypatch.setenv(name, "injected")
    session = "cut -d' ' -f6 /proc/$$/stat | grep -qx $$ && echo leader"
    admin.lay("my.Env", f"env; pwd; id -un; {session}")
    out = (await admin.out("my.Env+a+b--c.+")).decode()
    assert "injected" not in out
    lines = set(out.splitlines())
    assert {
        "QREXEC_SERVICE_FULL_NAME=my.Env+a+b--c.+",
        "QREXEC_SERVICE_ARGUMENT=a+b--c.+",
        "QREXEC_REMOTE_DOMAIN=work",
        "QREXEC_REQUESTED_TARGET_TYPE=name",
        "QREXEC_REQUESTED_TARGET=dom0",
        "/",
        "qubes-rpc",
        "leader",
    } <= lines
    variables = {line.partition("=")[0] for line in lines if "=" in line}
    assert not variables & {"CAISSON_ROOT", "LD_PRELOAD", "NOTIFY_SOCKET", "VIRTUAL_ENV"}
    answer = await admin.call("work", "@default", "my.Env+")
    lines = set(answer.out.decode().splitlines())
    assert {
        "QREXEC_SERVICE_ARGUMENT=",
        "QREXEC_REQUESTED_TARGET_TYPE=keyword",
        "QREXEC_REQUESTED_TARGET_KEYWORD=default",
    } <= lines
    assert not [line for line in lines if line.startswith("QREXEC_REQUESTED_TARGET=")]


async def test_streams_and_exit_codes_pass_through(admin: ServiceRig):
    """Every byte, both ways at once, more than a pipe holds; 128 and the number of a signal."""
    admin.lay("my.Cat", "exec cat")
    payload = os.urandom(300_000)
    assert await admin.out("my.Cat", stdin=payload) == payload
    admin.lay("my.Code", 'exit "$1"')
    for code in (0, 1, 42, 125, 126, 127, 255):
        answer = await admin.call("work", "dom0", f"my.Code+{code}")
        assert answer.verdict == b"X%d" % code
    admin.lay("my.Signal", "kill -KILL $$")
    assert (await admin.call("work", "dom0", "my.Signal")).code == 137
    record = await admin.rig.audited(service="my.Code", argument="+42")
    assert (record["decision"], record["target"], record["code"]) == ("allow", "dom0", 42)


async def test_which_file_is_run(admin: ServiceRig):
    """The one for the argument first; 127 where there is none, 125 where it cannot be run."""
    admin.lay("my.Service", "echo general $1")
    admin.lay("my.Service+one", "echo special $1")
    admin.lay("my.Service+", "echo empty $#")
    assert await admin.out("my.Service+one") == b"special one\n"
    assert await admin.out("my.Service+two") == b"general two\n"
    assert await admin.out("my.Service") == b"empty 0\n"
    assert (await admin.call("work", "dom0", "my.Absent")).verdict == b"X127"
    admin.lay("my.Text", "echo no", mode=0o644)
    assert (await admin.call("work", "dom0", "my.Text")).verdict == b"X125"
    for directory in ("usr/local/etc", "run"):
        path = admin.rig.paths.root / directory / "qubes-rpc"
        path.mkdir(parents=True)
        (path / "my.Service").write_text(f"#!/bin/sh\necho {directory}\n")
        (path / "my.Service").chmod(0o755)
        assert await admin.out("my.Service+two") == f"{directory}\n".encode()


async def test_what_is_no_program_is_not_served(admin: ServiceRig):
    """Also where the name of a service leads to it, as `..` does."""
    admin.lay("my.Service", "echo reached")
    (admin.services / "my.Directory").mkdir()
    os.mkfifo(admin.services / "my.Pipe")
    for name in (".", "..", "my.Directory", "my.Pipe"):
        answer = await admin.call("work", "dom0", name)
        assert (answer.verdict, answer.out) == (b"X125", b""), name
    reasons = [line["reason"] for line in admin.told("a service is not served")]
    assert len(reasons) == 4
    assert all("is neither a program nor a socket" in reason for reason in reasons)


async def test_settings_choose_the_user(admin: ServiceRig):
    """`force-user` of root's own file; not for calls with another argument."""
    admin.lay("my.Who", "id -un; id -G | wc -w")
    assert await admin.out("my.Who") == b"qubes-rpc\n1\n"
    admin.settings("my.Who+nobody", "force-user = 'nobody'\n")
    assert await admin.out("my.Who+nobody") == b"nobody\n1\n"
    assert await admin.out("my.Who+root") == b"qubes-rpc\n1\n"


async def test_a_service_gains_nothing_by_what_it_runs(admin: ServiceRig):
    """No new privileges, no capabilities, no core, few descriptors of which three are open."""
    admin.lay("my.Status", "cat /proc/self/status; ulimit -Hc; ulimit -Hn; ls /proc/self/fd")
    held = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        out = (await admin.out("my.Status")).decode()
    finally:
        os.close(held)
    status = dict(line.split(":\t", 1) for line in out.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert {int(status[key], 16) for key in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    # `ls` has its directory open as well.
    assert out.splitlines()[-6:] == ["0", "1024", "0", "1", "2", "3"]


async def test_what_a_service_says_is_for_the_log(admin: ServiceRig):
    """QSB-087: the caller's stderr ends at once; lines are escaped, cut, and bounded in number."""
    admin.lay("my.Talk", "printf '\\033]0;owned\\007\\rerror: all is well\\n\\303\\244' >&2; cat")
    session = await admin.begin("work", "dom0", "my.Talk")
    assert await asyncio.wait_for(asyncio.to_thread(os.read, session.stderr, 1), PATIENCE) == b""
    session.end_input()
    assert (await session.finish()).verdict == b"X0"
    said = [line["text"] for line in admin.told("a service says")]
    assert said == ["\\x1b]0;owned\\x07\\rerror: all is well", "\\xc3\\xa4"]
    for line in admin.log:
        assert _harmless(None, "", dict(line)) == line
    admin.lay("my.Flood", "head -c 3000000 /dev/zero >&2; seq 10000 >&2")
    await admin.out("my.Flood", "other")
    lines = [line for line in admin.log if line.get("qube") == "other"]
    assert len(lines) < 200
    assert max(len(str(line.get("text", ""))) for line in lines) < 4100


def marks_of(admin: ServiceRig) -> Path:
    """A directory that services may write to."""
    marks = admin.rig.paths.root / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    return marks


async def test_a_caller_that_leaves_takes_its_service_along():
    """It sees the end of its input; one that does not care is ended, with what it started."""
    async with service_rig(POLICY, "work") as admin:
        marks = marks_of(admin)
        admin.lay("my.Polite", f"echo ready; cat >{marks}/polite; mv {marks}/polite {marks}/ended")
        session = await admin.begin("work", "dom0", "my.Polite")
        assert await session.read(6) == b"ready\n"
        session.leave()
        await until((marks / "ended").exists)
        await alone(admin)
    async with service_rig(POLICY, "work", patience=SHORT) as admin:
        marks = marks_of(admin)
        admin.lay(
            "my.Stubborn",
            "trap '' TERM HUP PIPE; (trap '' TERM; while :; do sleep 1000; done) &\n"
            f"echo $! >{marks}/child; echo ready; while :; do sleep 1000; done",
        )
        session = await admin.begin("work", "dom0", "my.Stubborn")
        assert await session.read(6) == b"ready\n"
        child = (marks / "child").read_text()
        assert alive(int(child))
        session.leave()
        await alone(admin)
        await until(lambda: not alive(int(child)))


async def test_nothing_that_a_service_started_outlives_it(admin: ServiceRig):
    """Its group ends with it; its exit code is its own."""
    admin.lay("my.Leaver", "sleep 1000 & echo $!; exit 7")
    answer = await admin.call("work", "dom0", "my.Leaver")
    assert answer.code == 7
    await until(lambda: not alive(int(answer.out)))


async def test_services_end_with_qubesd():
    """An end in order leaves no process behind, however long it would go on."""
    async with service_rig(POLICY, "work", patience=SHORT) as admin:
        admin.lay("my.Slow", "trap '' TERM; echo ready; while :; do sleep 1000; done")
        session = await admin.begin("work", "dom0", "my.Slow")
        assert await session.read(6) == b"ready\n"
        await admin.end_qubesd()
        assert not admin.children()
        lost = b"E255\0the connection to the other qube was lost"
        assert (await session.client.receive())[0] == lost
        session.leave()


async def test_a_hundred_callers_of_a_slow_service_leave_room_for_others():
    """One qube has as many as it may, the rest fail; another qube is served at once."""
    async with service_rig(POLICY, "work", "other", patience=SHORT) as admin:
        admin.lay("my.Slow", "exec cat")
        admin.lay("my.Quick", "echo quick")
        clients = [await admin.rig.call("work", "dom0", "my.Slow") for _ in range(100)]
        verdicts = [await client.receive() for client in clients]
        accepted = [pipes for verdict, pipes in verdicts if verdict == b"A"]
        assert len(accepted) == MOST_OF_ONE
        assert {v[:4] for v, _ in verdicts} == {b"A", b"E125"}
        assert await admin.out("my.Quick", "other") == b"quick\n"
        for pipes in accepted:
            for descriptor in pipes:
                os.close(descriptor)
        for client in clients:
            client.close()
        await alone(admin)
        assert await admin.out("my.Quick") == b"quick\n"


async def test_a_socket_serves_too(admin: ServiceRig):
    """It is told of the call first, then gets what the caller sends."""
    heard: list[bytes] = []

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.write(b"answer")
        writer.close()
        await writer.wait_closed()

    path = admin.services / "my.Socket"
    server = await asyncio.start_unix_server(session, address(path))
    path.chmod(0o666)
    try:
        answer = await admin.call("work", "@adminvm", "my.Socket+a", b"data")
    finally:
        server.close()
    assert (answer.verdict, answer.out) == (b"X0", b"answer")
    assert heard == [b"my.Socket+a work keyword adminvm\0data"]


async def test_a_service_that_is_just_started_goes_on_without_its_caller():
    """The call ends with 0 at once; no stream is the caller's; not for ever, and it counts."""
    async with service_rig(POLICY, "work", patience=replace(SHORT, just_started=30)) as admin:
        gate = admin.rig.paths.root / "gate"
        os.mkfifo(gate)
        gate.chmod(0o666)
        admin.lay("my.Long", f"cat; echo lost; read -r line <{gate}; exec sleep 1000")
        session = await admin.begin("work", "dom0", "my.Long", flags="e")
        answer = await session.finish()
        assert (answer.verdict, answer.out, answer.err) == (b"X0", b"", b"")
        (pid,) = admin.children()
        # It waits for this: so it is there, though its caller has left.
        await asyncio.to_thread(gate.write_text, "on\n")
        assert alive(pid)
        await admin.end_qubesd()
        await alone(admin)
    async with service_rig(POLICY, "work", patience=replace(SHORT, just_started=0.1)) as admin:
        admin.lay("my.Long", "exec sleep 1000")
        assert (await (await admin.begin("work", "dom0", "my.Long", "e")).finish()).code == 0
        await alone(admin)


async def test_a_missing_user_is_no_reason_to_run_as_root(admin: ServiceRig):
    """The call fails, and the log says what to do."""
    admin.lay("my.Who", "id -un")
    admin.settings("my.Who", "force-user = 'no-such-user'\n")
    answer = await admin.call("work", "dom0", "my.Who")
    assert (answer.verdict[:1], answer.out) == (b"X", b"")
    assert answer.code != 0
    with pytest.raises(KeyError):
        pwd.getpwnam("no-such-user")


def descriptors() -> int:
    """How many are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def begin_many(admin: ServiceRig, count: int, service: str) -> None:
    """Make calls one after the other."""
    for _ in range(count):
        await admin.out(service)


async def test_no_descriptor_and_no_process_is_left_after_many_calls():
    """What a call took is given back."""
    async with service_rig(POLICY, "work") as admin:
        admin.lay("my.Quick", "echo quick; echo said >&2")
        await begin_many(admin, 3, "my.Quick")
        await alone(admin)
        before = descriptors()
        await begin_many(admin, 30, "my.Quick")
        await alone(admin)
        await until(lambda: descriptors() <= before)
