"""Questions of the broker to a person, and what counts as an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from typing import Any

import pytest
from broker_rig import PATIENCE, broker_rig, listening, outcome, prompt_agent, until

pytestmark = pytest.mark.root


def python(code: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """Another process, which talks over its stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE
    )


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
    """A qube that is removed and made anew under its name is another one."""
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
