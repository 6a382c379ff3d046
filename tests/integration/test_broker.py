"""The broker as a process: calls, starts, prompts, restarts, with real sockets and pipes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from broker_rig import (
    PATIENCE,
    Peer,
    Rig,
    broker_account,
    broker_rig,
    listening,
    prompt_agent,
    until,
)

from caisson.names import QubeName

pytestmark = pytest.mark.root

ALLOW = "* * @anyvm @anyvm allow\n"


def close(*descriptors: int) -> None:
    """Close what a test received."""
    for descriptor in descriptors:
        os.close(descriptor)


def python(code: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """Another process, which talks over its stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE
    )


def mount_small(directory: Path) -> None:
    """A file system that is soon full, owned by the broker."""
    options = f"size=128k,mode=0755,uid={broker_account().pw_uid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)


def unmount(directory: Path) -> None:
    """Undo `mount_small`."""
    subprocess.run(["umount", "-l", directory], check=True)


async def outcome(client: Peer) -> bytes:
    """The last word of the broker to a client."""
    message, descriptors = await client.receive()
    close(*descriptors)
    if message == b"A":
        message, _ = await client.receive()
    return message


async def test_allowed_call_runs_over_pipes_and_gives_the_exit_code():
    """Both sides get their ends of three pipes, bytes pass, and the code comes back."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service+arg")
        service = await agent.next_call()
        assert (service.descriptor, service.source, service.user) == ("my.Service+arg", "work", "")
        accepted, (stdin, stdout, stderr) = await client.receive()
        assert accepted == b"A"
        os.write(stdin, b"question")
        assert os.read(service.stdin, 100) == b"question"
        os.write(service.stdout, b"answer")
        os.write(service.stderr, b"trouble")
        assert os.read(stdout, 100) == b"answer"
        assert os.read(stderr, 100) == b"trouble"
        await service.end(42)
        assert os.read(stdout, 100) == b"", "the broker kept an end of the pipe"
        assert (await client.receive())[0] == b"X42"
        assert (await client.receive())[0] == b""
        record = await rig.audited(service="my.Service")
        assert record["decision"] == "allow"
        assert record["rule"] == "30-user.policy:1"
        assert record["target"] == "vault"
        assert record["code"] == 42
        close(stdin, stdout, stderr)


async def test_both_sides_get_pipes_and_never_a_socket():
    """A socket between two qubes would let them pass each other descriptors."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        service = await agent.next_call()
        _, descriptors = await client.receive()
        for descriptor in (*descriptors, service.stdin, service.stdout, service.stderr):
            assert stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        service.close()
        close(*descriptors)


async def test_denied_call_is_refused_and_audited():
    """Without a rule the answer is no, and it is written down."""
    async with broker_rig("") as rig:
        await rig.run("work")
        await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        assert await outcome(client) == b"R"
        assert (await client.receive())[0] == b""
        record = await rig.audited(service="my.Service")
        assert (record["decision"], record["code"]) == ("deny", 126)


@pytest.mark.parametrize("target", ["work", "uuid"])
async def test_qube_cannot_call_itself(target: str):
    """By name or by uuid: a loop through the broker is refused."""
    async with broker_rig("* * * * allow\n") as rig:
        await rig.run("work")
        if target == "uuid":
            target = f"uuid:{rig.domains['work']['uuid']}"
        assert await outcome(await rig.call("work", target, "my.Service")) == b"R"


async def test_call_to_the_admin_qube_fails_without_qubesd_s_door():
    """Allowed by policy, but the broker itself runs nothing: 125, and not a word why."""
    async with broker_rig("* * @anyvm @adminvm allow\n") as rig:
        await rig.run("work")
        answer = await outcome(await rig.call("work", "dom0", "my.Service"))
        assert answer == b"E125\0the target could not be reached"


async def test_edited_policy_decides_the_very_next_call():
    """Whoever has written a policy file need not wait for it to be read."""
    async with broker_rig("") as rig:
        await rig.run("work")
        await rig.run("vault")
        for number in range(10):
            rig.policy(f"my.Service * work @anyvm allow target=dom0\n# {number}\n")
            assert (await outcome(await rig.call("work", "vault", "my.Service")))[:1] == b"E"
            rig.policy(f"my.Service * work @anyvm deny\n# {number}\n")
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_broken_policy_denies_everything_and_says_where():
    """One wrong line anywhere: no call passes, and the audit log names the file."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        rig.policy("this is no rule\n", "40-broken.policy")
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
        record = await rig.audited(service="my.Service")
        assert "40-broken.policy" in record["reason"]
        assert "40-broken.policy" in rig.log.read_text()
        (rig.paths.etc / "policy.d/40-broken.policy").unlink()
        await rig.call("work", "vault", "my.Service")
        (await agent.next_call()).close()


async def test_no_call_is_decided_on_a_state_that_was_told_gone():
    """When `push` has returned, the next decision knows of the change."""
    async with broker_rig("* * @anyvm @tag:open allow target=dom0\n") as rig:
        await rig.run("work")
        for _ in range(30):
            await rig.add("vault", tags=("open",))
            assert (await outcome(await rig.call("work", "vault", "my.Service")))[:1] == b"E"
            await rig.add("vault")
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_removed_qube_is_no_target():
    """A name that went is a name that never was."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.add("vault")
        await rig.link.push({}, ["vault"])
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_malformed_information_leaves_out_one_qube_not_all():
    """A qube whose information is malformed does not take the others with it."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.link.push({"odd": {"tags": 7}, "fine": rig.domains["vault"]})
        assert await outcome(await rig.call("work", "odd", "my.Service")) == b"R"
        await rig.call("work", "vault", "my.Service")
        (await agent.next_call()).close()


async def test_halted_target_is_started_once_for_all_callers():
    """Callers that come together share one start."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.add("vault", state="Halted")
        gate = asyncio.Event()

        async def start(op: str, name: str, source: str) -> str:
            await gate.wait()
            await rig.link.open_qube(QubeName(name))
            return name

        rig.on_request = start
        clients = [await rig.call("work", "vault", f"my.S{n}") for n in range(5)]
        await until(lambda: bool(rig.requests))
        gate.set()
        await until(lambda: rig.socket("vault").exists())
        agent = await rig.agent("vault")
        for _ in clients:
            await (await agent.next_call()).end(0)
        assert [await outcome(c) for c in clients] == [b"X0"] * 5
        assert rig.requests == [("start", "vault", "work")]


async def test_failed_start_tells_the_caller_no_more_than_that():
    """125 for the caller; the reason stands in the audit log only."""
    async with broker_rig("* * work @default allow target=secret-vault\n") as rig:
        await rig.run("work")
        await rig.add("secret-vault", state="Halted")
        message = await outcome(await rig.call("work", "", "my.Service"))
        assert message.startswith(b"E125\0")
        assert b"secret" not in message
        record = await rig.audited(service="my.Service")
        assert "nothing starts in this test" in record["reason"]


async def test_autostart_no_denies_a_halted_target():
    """The rule may forbid the start."""
    async with broker_rig("* * work vault allow autostart=no\n") as rig:
        await rig.run("work")
        await rig.add("vault", state="Halted")
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
        assert rig.requests == []


@asynccontextmanager
async def disposables(policy: str) -> AsyncIterator[Rig]:
    """An instance whose qubesd makes disposables."""
    async with broker_rig(policy) as rig:
        await rig.run("work", default_dispvm="dvm")
        await rig.add("dvm", state="Halted", template_for_dispvms=True)

        async def make(op: str, name: str, source: str) -> str:
            if op == "disposable":
                await rig.add("disp1", type="DispVM")
                await rig.link.open_qube(QubeName("disp1"))
                return "disp1"
            if op == "discard":
                await rig.link.close_qube(QubeName(name))
                await rig.link.push({}, [name])
            return name

        rig.on_request = make
        yield rig


async def test_disposable_serves_one_call_and_is_discarded():
    """`@dispvm` gives a qube of its own, which ends with the call."""
    async with disposables("* * work @dispvm allow\n") as rig:
        client = await rig.call("work", "@dispvm", "my.Service")
        await until(lambda: rig.socket("disp1").exists())
        agent = await rig.agent("disp1")
        await (await agent.next_call()).end(3)
        assert await outcome(client) == b"X3"
        await until(lambda: len(rig.requests) >= 2)
        assert rig.requests == [("disposable", "dvm", "work"), ("discard", "disp1", "dom0")]
        assert (await rig.audited(service="my.Service"))["target"] == "disp1"


async def test_disposable_is_discarded_when_the_caller_goes():
    """Nobody waits for the answer: the qube is not kept, however far it had come."""
    async with disposables("* * work @dispvm allow\n") as rig:
        client = await rig.call("work", "@dispvm", "my.Service")
        await until(lambda: bool(rig.requests))
        client.close()
        await until(lambda: ("discard", "disp1", "dom0") in rig.requests)
        await rig.audited(service="my.Service", ended="caller-gone")


async def test_disposable_is_discarded_when_the_broker_dies():
    """Nobody is left who would know when its call ends: qubesd discards it."""
    async with disposables("* * work @dispvm allow\n") as rig:
        await rig.call("work", "@dispvm", "my.Service")
        await until(lambda: rig.socket("disp1").exists())
        agent = await rig.agent("disp1")
        (await agent.next_call()).close()
        await rig.kill_broker()
        await until(lambda: ("discard", "disp1", "dom0") in rig.requests)
        rig.start_broker()
        await rig.ready()


async def test_killed_broker_comes_back_to_running_qubes():
    """Kill -9 at any time: sessions end, agents come back, and calls pass again."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Old")
        old = await agent.next_call()
        await rig.kill_broker()
        assert (await agent.peer.receive())[0] == b""
        assert await outcome(client) == b""
        rig.start_broker()
        await rig.ready()
        agent = await rig.agent("vault")
        assert (await rig.audited(service="my.Old"))["ended"] == "broker-gone"
        # The exit code of a call of the former broker means nothing to this one.
        await agent.peer.send(b"X%d\x007" % old.id)
        client = await rig.call("work", "vault", "my.New")
        await (await agent.next_call()).end(0)
        assert await outcome(client) == b"X0"
        assert rig.hellos.count(("vault", os.getpid())) == 2
        old.close()


async def test_an_agent_tells_once_how_the_set_up_of_its_qube_went():
    """The number reaches qubesd with the kernel's process id; saying it twice ends the session."""
    async with broker_rig(ALLOW) as rig:
        agent = await rig.run("vault")
        await agent.peer.send(b"U3")
        await until(lambda: rig.set_up == [("vault", os.getpid(), 3)])
        await agent.peer.send(b"U2")
        await until(lambda: rig.gone == ["vault"])
        assert len(rig.set_up) == 1


async def test_calls_in_flight_outlive_qubesd():
    """Qubesd is killed and comes back: agents stay admitted, running calls go on."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Old")
        old = await agent.next_call()
        await rig.link.close()
        waiting = await rig.call("work", "vault", "my.Waiting")
        await old.end(1)
        assert await outcome(client) == b"X1"
        rig.hellos.clear()
        rig.link = rig.make_link()
        await rig.link.replace(rig.domains)
        for name in ("work", "vault"):
            await rig.link.open_qube(QubeName(name))
        await rig.link.start()
        await rig.ready()
        await (await agent.next_call()).end(2)
        assert await outcome(waiting) == b"X2"
        assert sorted(rig.hellos) == [("vault", os.getpid()), ("work", os.getpid())]


async def test_nothing_is_decided_without_qubesd():
    """Nobody knows what exists any more: calls wait a little, and then are refused."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.run("vault")
        await rig.link.close()
        message = await outcome(await rig.call("work", "vault", "my.Service"))
        assert message.startswith(b"E125\0")


async def test_nothing_is_decided_while_qubesd_starts():
    """A link that is taken, but not served yet, is as good as none; then it tells everything."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.link.close()
        rig.link = rig.make_link()
        rig.link.bind()
        message = await outcome(await rig.call("work", "vault", "my.Early"))
        assert message.startswith(b"E125\0")
        await rig.link.replace(rig.domains)
        for name in ("work", "vault"):
            await rig.link.open_qube(QubeName(name))
        await rig.link.start()
        await rig.ready()
        client = await rig.call("work", "vault", "my.Late")
        await (await agent.next_call()).end(0)
        assert await outcome(client) == b"X0"


async def test_qubes_that_ended_while_the_broker_was_away_are_closed():
    """After it comes back, the broker serves the qubes that run, and no others."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.run("vault")
        await rig.kill_broker()
        await rig.link.close_qube(QubeName("vault"))
        rig.start_broker()
        await rig.ready()
        assert not rig.socket("vault").parent.exists()
        assert rig.socket("work").exists()


async def test_end_of_the_target_ends_its_calls():
    """The caller is not left waiting: 255, and words that tell it from a service's own 255."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        (await agent.next_call()).close()
        await rig.link.close_qube(QubeName("vault"))
        assert await outcome(client) == b"E255\0the connection to the other qube was lost"
        await rig.audited(service="my.Service", ended="target-gone")


async def test_admin_qube_runs_services_and_commands_without_policy():
    """Calls of the admin qube are not policed, and are audited."""
    async with broker_rig("") as rig:
        agent = await rig.run("vault")
        client = rig.client("dom0")
        await client.send(b"Dvault\0root\0QUBESRPC my.Service+a dom0")
        service = await agent.next_call()
        assert (service.user, service.descriptor, service.source) == (
            "root",
            "my.Service+a",
            "dom0",
        )
        await service.end(5)
        assert await outcome(client) == b"X5"
        client = rig.client("dom0")
        await client.send(b"Dvault\0\0echo one; echo two")
        service = await agent.next_call()
        assert service.descriptor == "echo one; echo two"
        await service.end(0)
        assert await outcome(client) == b"X0"
        assert (await rig.audited(command="echo one; echo two"))["source"] == "dom0"


async def test_admin_qube_learns_that_the_target_does_not_run():
    """The person who calls may know the name."""
    async with broker_rig("") as rig:
        client = rig.client("dom0")
        await client.send(b"Dvault\0\0true")
        assert await outcome(client) == b"E125\0qube `vault` is not running"


async def test_default_user_of_the_target_is_used():
    """A call without `user=` runs as the qube's default user."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault", default_user="alice")
        await rig.call("work", "vault", "my.Service")
        service = await agent.next_call()
        assert service.user == "alice"
        service.close()


# Prompts.

ASK = "my.Service * work @anyvm ask\n* * * * deny\n"


async def test_person_chooses_the_target():
    """The person's choice counts; the caller's wish is never preselected."""
    async with broker_rig(ASK) as rig:
        await rig.run("work")
        vault, other = await rig.run("vault"), await rig.run("other")
        async with prompt_agent(rig, lambda _: b"allow:other") as questions:
            client = await rig.call("work", "vault", "my.Service+a")
            await (await other.next_call()).end(0)
            assert await outcome(client) == b"X0"
        (question,) = questions
        assert (question["source"], question["service"]) == ("work", "my.Service")
        assert question["argument"] == "+a"
        assert question["targets"] == ["other", "vault"]
        assert question["default_target"] == ""
        assert question["icons"]["vault"] == "appvm-red"
        record = await rig.audited(service="my.Service")
        assert (record["target"], record["answered_by"]) == ("other", "uid 0")
        assert record["requested"] == "vault"
        vault.peer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"deny",
        b"",
        b"allow",
        b"allow:",
        b"allow:dom0",
        b"allow:nosuch",
        b"ALLOW:vault",
        b"\xff\0",
        b"allow:vault\nallow:vault",
        b"a" * 100_000,
    ],
)
async def test_everything_that_is_not_an_offered_target_is_a_refusal(answer: bytes):
    """Only `allow:` and one of the targets that were offered lets the call pass."""
    async with broker_rig(ASK) as rig:
        await rig.run("work")
        await rig.run("vault")
        async with prompt_agent(rig, lambda _: answer):
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_without_a_prompt_agent_the_call_is_refused():
    """Nobody to ask means no."""
    async with broker_rig(ASK) as rig:
        await rig.run("work")
        await rig.run("vault")
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
        assert (await rig.audited(service="my.Service"))["reason"] == "no prompt agent is running"


async def test_prompt_agent_of_a_stranger_is_not_asked():
    """Who may answer: root, and members of the group `qubes`."""
    async with broker_rig(ASK) as rig:
        await rig.run("work")
        await rig.run("vault")
        rig.paths.prompt_agent.parent.chmod(0o777)
        code = (
            "import socket,sys,os\n"
            "os.setresuid(4242,4242,4242)\n"
            "s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1],0o666)\n"
            "s.listen(5); print('up',flush=True); c,_=s.accept()\n"
            "while c.recv(65536): pass\n"
            "c.sendall(b'allow:vault')\n"
        )
        stranger = python(code, rig.paths.prompt_agent)
        try:
            assert stranger.stdout is not None
            await asyncio.to_thread(stranger.stdout.readline)
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
            assert "may not answer" in (await rig.audited(service="my.Service"))["reason"]
        finally:
            stranger.kill()
            stranger.wait()
            stranger.stdout.close()


async def test_one_question_a_qube_is_shown_and_few_wait():
    """A qube that asks and asks fills its own queue, and no other's."""
    async with broker_rig("* * @anyvm @anyvm ask\n") as rig:
        for name in ("work", "play", "vault"):
            await rig.run(name)
        async with prompt_agent(rig, lambda _: None) as questions:
            clients = [await rig.call("work", "vault", "my.Service") for _ in range(12)]
            refused = [c for c in clients[9:] if await outcome(c) == b"R"]
            assert len(refused) == 3
            await until(lambda: len(questions) >= 1)
            assert len(questions) == 1
            await rig.call("play", "vault", "my.Service")
            await until(lambda: len(questions) >= 2)
            clients[0].close()
            await until(lambda: len(questions) >= 3)


async def test_caller_that_goes_takes_its_question_back():
    """The agent sees the end of the connection."""
    async with broker_rig(ASK) as rig:
        await rig.run("work")
        await rig.run("vault")
        gone = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            client.close()
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            gone.set()

        async with listening(rig, serve):
            client = await rig.call("work", "vault", "my.Service")
            async with asyncio.timeout(PATIENCE):
                await gone.wait()
        await rig.audited(service="my.Service", ended="caller-gone")


async def test_policy_that_changed_during_the_question_decides():
    """A rule that was taken away while the person thought does not allow any more."""
    async with broker_rig(ASK) as rig:
        await rig.run("work")
        await rig.run("vault")

        def answer(_: dict[str, Any]) -> bytes:
            rig.policy("* * * * deny\n")
            return b"allow:vault"

        async with prompt_agent(rig, answer):
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_answer_counts_for_the_qube_that_was_shown():
    """A qube that is removed and made anew under its name is another one (#8719)."""
    async with broker_rig(ASK) as rig:
        await rig.run("work")
        await rig.run("vault")

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if (await reader.read()).startswith(b"policy.Ask"):
                other = rig.domains["vault"] | {"uuid": "00000000-0000-4000-8000-00000000abcd"}
                await rig.link.push({"vault": other})
                writer.write(b"allow:vault")
            writer.close()

        async with listening(rig, answer):
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"


async def test_denial_is_told_to_the_person():
    """policy.Notify: who tried what."""
    async with broker_rig("") as rig:
        await rig.run("work")
        told: asyncio.Queue[bytes] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await told.put(await reader.read())

        async with listening(rig, serve):
            assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
            async with asyncio.timeout(PATIENCE):
                descriptor, _, body = (await told.get()).partition(b"\0")
        assert descriptor == b"policy.Notify dom0 name dom0"
        assert json.loads(body) == {
            "resolution": "deny", "service": "my.Service", "argument": "+",
            "source": "work", "target": "vault",
        }  # fmt: skip


# Load.


async def test_a_thousand_calls_are_in_flight_without_loss():
    """All of them run at once, and each gets its own exit code."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")

        async def one(number: int) -> tuple[int, Peer]:
            return number, await rig.call("work", "vault", f"my.Service+{number}")

        calls = [await one(n) for n in range(1000)]
        services = [await agent.next_call() for _ in calls]
        assert len({s.id for s in services}) == 1000
        for service in services:
            await service.end(int(service.descriptor.partition("+")[2]) % 256)
        for number, client in calls:
            assert await outcome(client) == b"X%d" % (number % 256)
            client.close()
        assert len(rig.audit()) == 1000


async def test_stalled_agent_delays_no_other_qube_and_loses_no_call():
    """An agent that is far behind: its calls wait without descriptors; other calls pass."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        stuck = await rig.run("stuck")
        vault = await rig.run("vault")
        calls = [await rig.call("work", "stuck", f"my.Service+{n}") for n in range(700)]
        for number in range(20):
            client = await rig.call("work", "vault", f"my.Service+{number}")
            await (await vault.next_call()).end(0)
            assert await outcome(client) == b"X0"
        for _ in calls:
            service = await stuck.next_call()
            await service.end(int(service.descriptor.partition("+")[2]) % 256)
        for number, client in enumerate(calls):
            assert await outcome(client) == b"X%d" % (number % 256)


async def test_flood_for_a_stalled_agent_lets_another_caller_take_its_turn():
    """Callers take turns, however many calls one of them has waiting."""
    async with broker_rig(ALLOW) as rig:
        for name in ("evil", "work"):
            await rig.run(name)
        agent = await rig.run("vault")
        for number in range(600):
            await rig.call("evil", "vault", f"my.Flood+{number}")
        await rig.call("work", "vault", "my.Honest")
        before = 0
        while (service := await agent.next_call()).descriptor != "my.Honest+":
            await service.end(0)
            before += 1
        service.close()
        assert before < 400


async def test_call_that_waited_is_judged_again():
    """The policy changed while the target's agent was behind: the new one counts."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        calls = [await rig.call("work", "vault", "my.Service") for _ in range(400)]
        rig.policy("* * * * deny\n")
        answers = set()
        served = 0
        with contextlib.suppress(TimeoutError):
            while True:
                await (await agent.next_call(1.0)).end(0)
                served += 1
        for client in calls:
            answers.add(await outcome(client))
        assert answers == {b"X0", b"R"}
        assert 0 < served < 400


async def test_audit_that_cannot_be_written_stops_calls_until_it_can():
    """A full disk: calls are refused, not lost; afterwards they pass, and nothing is missing."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.kill_broker()
        directory = rig.paths.audit.parent
        mount_small(directory)
        try:
            rig.start_broker()
            await rig.ready()
            agent = await rig.agent("vault")
            ballast = directory / "ballast"
            with contextlib.suppress(OSError):
                ballast.write_bytes(b"x" * 1_000_000)
            answers = []
            for _ in range(60):
                client = await rig.call("work", "dom0", "my.Service")
                answers.append((await outcome(client))[:1])
            assert answers[-1] == b"R"
            ballast.unlink()
            client = await rig.call("work", "vault", "my.Service")
            await (await agent.next_call()).end(0)
            assert await outcome(client) == b"X0"
            assert len(rig.audit()) == 61
            rig.process.terminate()
            rig.process.wait()
        finally:
            unmount(directory)


# The process.


async def test_broker_holds_no_privilege():
    """No capability, no group, no way to new privileges, no core, no debugger."""
    async with broker_rig("") as rig:
        process = Path(f"/proc/{rig.process.pid}")
        status = dict(
            line.split(":\t", 1) for line in (process / "status").read_text().splitlines()
        )
        account = broker_account()
        assert status["Uid"].split() == [str(account.pw_uid)] * 4
        assert status["Gid"].split() == [str(account.pw_gid)] * 4
        assert status["Groups"].strip() == ""
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"
        assert (process / "environ").stat().st_uid == 0, "it is dumpable"
        limits = (process / "limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core")]
        assert core.split()[4:6] == ["0", "0"]


def test_broker_names_a_missing_user(tmp_path: Path):
    """One clear error with a hint, and an exit code."""
    result = subprocess.run(
        [sys.executable, "-m", "caisson.daemons.broker", "--root", tmp_path, "--user", "nosuch"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "error: the broker's user `nosuch` does not exist\nhint: " in result.stderr
