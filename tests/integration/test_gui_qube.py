"""A person who sits in a GUI qube: the broker asks and tells through the qube's services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from broker_rig import PATIENCE, Agent, Rig, Service, broker_rig, outcome, prompt_agent
from grounds.whole import Whole

pytestmark = pytest.mark.root

POLICY = "my.Service * work @anyvm ask\n"


async def read_all(descriptor: int) -> bytes:
    """What a service gets on its stdin, to the end."""

    def read() -> bytes:
        received = b""
        while chunk := os.read(descriptor, 65_536):
            received += chunk
        return received

    return await asyncio.to_thread(read)


@asynccontextmanager
async def gui_rig(guivm: str = "sys-gui") -> AsyncIterator[tuple[Rig, Agent, Agent]]:
    """`work`, whose person sits in `sys-gui`, and `vault`; gives the agents of the last two."""
    async with broker_rig(POLICY) as rig:
        gui = await rig.run("sys-gui")
        await rig.run("work", guivm=guivm)
        yield rig, gui, await rig.run("vault")


async def asked(gui: Agent, reply: Callable[[Service], None]) -> dict[str, Any]:
    """Serve one question; what it was."""
    service = await gui.next_call()
    assert (service.descriptor, service.source) == ("policy.Ask", "dom0")
    question: dict[str, Any] = json.loads(await read_all(service.stdin))
    with contextlib.suppress(BrokenPipeError):
        reply(service)
    await service.end(0)
    return question


def writes(answer: bytes) -> Callable[[Service], None]:
    """A service that answers like this."""
    return lambda service: os.write(service.stdout, answer) and None


async def test_gui_qube_is_asked_and_its_answer_counts():
    """The question goes to `policy.Ask` there; the audit log says where the answer came from."""
    async with gui_rig() as (rig, gui, vault):
        client = await rig.call("work", "vault", "my.Service+a")
        question = await asked(gui, writes(b"allow:vault"))
        assert (question["source"], question["argument"]) == ("work", "+a")
        assert question["targets"] == ["sys-gui", "vault"]
        await (await vault.next_call()).end(0)
        assert await outcome(client) == b"X0"
        record = await rig.audited(service="my.Service")
        assert (record["target"], record["answered_by"]) == ("vault", "qube sys-gui")
        call = await rig.audited(service="policy.Ask")
        assert (call["source"], call["target"]) == ("dom0", "sys-gui")


@pytest.mark.parametrize(
    "answer", [b"deny", b"", b"allow:dom0", b"allow:nosuch", b"\xff", b"a" * 100_000]
)
async def test_whatever_else_a_gui_qube_says_is_a_refusal(answer: bytes):
    """A GUI qube may pick of what the policy offers, no more; an endless answer is cut off."""
    async with gui_rig() as (rig, gui, _):
        client = await rig.call("work", "vault", "my.Service")
        await asked(gui, lambda service: write_much(service.stdout, answer))
        assert await outcome(client) == b"R"
        assert (await rig.audited(service="my.Service"))["ended"] == "denied"


def write_much(descriptor: int, data: bytes) -> None:
    """Write as much as the pipe takes; the broker reads no more than it wants."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        os.write(descriptor, data)


async def test_gui_qube_that_is_not_running_denies():
    """It is not started for a question, and the admin qube's agents are not asked instead."""
    async with broker_rig(POLICY) as rig:
        await rig.add("sys-gui", state="Halted")
        await rig.run("work", guivm="sys-gui")
        await rig.run("vault")
        assert await outcome(await rig.call("work", "vault", "my.Service")) == b"R"
        reason = (await rig.audited(service="my.Service"))["reason"]
        assert reason.startswith("GUI qube `sys-gui` cannot be asked")
        assert rig.requests == []


async def test_caller_that_leaves_takes_its_question_back():
    """The service in the GUI qube sees that nobody reads its answer."""
    async with gui_rig() as (rig, gui, _):
        client = await rig.call("work", "vault", "my.Service")
        service = await gui.next_call()
        await read_all(service.stdin)
        client.close()
        await rig.audited(service="my.Service", ended="caller-gone")
        await rig.audited(service="policy.Ask", ended="caller-gone")
        with pytest.raises(BrokenPipeError):
            os.write(service.stdout, b"allow:vault")
        service.close()


async def test_deny_for_now_works_from_a_gui_qube_too():
    """The next call is denied without a question, by the same qube's word."""
    async with gui_rig() as (rig, gui, _):
        client = await rig.call("work", "vault", "my.Service+1")
        await asked(gui, writes(b"deny:for-now"))
        assert await outcome(client) == b"R"
        assert await outcome(await rig.call("work", "vault", "my.Service+2")) == b"R"
        record = await rig.audited(service="my.Service", argument="+2")
        assert record["answered_by"] == "qube sys-gui"
        assert record["reason"].startswith("`work` is denied for now")
        assert record["rule"] == "30-user.policy:1"


async def test_gui_qube_mutes_and_learns_of_no_qube_but_its_own():
    """A disposable asks there, its creator elsewhere: the creator is heard, and not named."""
    policy = "my.Service * @tag:asks vault ask\n"
    async with broker_rig(policy) as rig:
        gui = await rig.run("sys-gui")
        await rig.run("victim", tags=("asks",))
        made = ("asks", "created-by-victim", "disp-created-by-victim")
        await rig.run("disp1", type="DispVM", tags=made, guivm="sys-gui")
        await rig.run("vault")
        client = await rig.call("disp1", "vault", "my.Service+1")
        question = await asked(gui, writes(b"deny:for-now"))
        assert await outcome(client) == b"R"
        assert question["origin"] == "disp1"
        assert "victim" not in json.dumps(question)
        assert await outcome(await rig.call("disp1", "vault", "my.Service+2")) == b"R"
        record = await rig.audited(service="my.Service", argument="+2")
        assert record["reason"].startswith("`disp1` is denied for now")
        async with prompt_agent(rig, lambda _: b"deny") as questions:
            assert await outcome(await rig.call("victim", "vault", "my.Service+3")) == b"R"
        assert [q["source"] for q in questions] == ["victim"]


async def test_denial_is_told_in_the_gui_qube():
    """`policy.Notify` there, not at the agents of the admin qube."""
    async with gui_rig() as (rig, gui, _):
        assert await outcome(await rig.call("work", "vault", "other.Service")) == b"R"
        async with asyncio.timeout(PATIENCE):
            service = await gui.next_call()
        assert service.descriptor == "policy.Notify"
        notice = json.loads(await read_all(service.stdin))
        assert (notice["resolution"], notice["service"]) == ("deny", "other.Service")
        await service.end(0)


def test_script_in_a_real_gui_qube_answers(whole: Whole):
    """An executable that the admin laid there, as `policy.Ask`; its user is the qube's own."""
    script = "cat >/tmp/question; printf allow:gui-target\n"
    names = ("gui-sys", "gui-caller", "gui-target")
    try:
        for name in names:
            whole.app(name, start=True)
        whole.call("admin.vm.property.Set+guivm", "gui-caller", b"gui-sys")
        whole.service("gui-sys", "policy.Ask", script)
        whole.service("gui-target", "my.Gui", "echo served\n")
        whole.policy("my.Gui * gui-caller @anyvm ask\n")
        assert whole.said("gui-caller", "qrexec-client-vm @default my.Gui") == "served"
        question = json.loads(whole.said("gui-sys", "cat /tmp/question"))
        assert question["source"] == "gui-caller"
        record = whole.audited(service="my.Gui")
        assert (record["target"], record["answered_by"]) == ("gui-target", "qube gui-sys")
    finally:
        for name in names:
            whole.discard(name)
