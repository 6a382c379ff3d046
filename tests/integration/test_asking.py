"""The broker's side of questions: real sockets and agents, and a clock of the test's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from broker_rig import PATIENCE, info, until

from caisson.errors import CaissonError
from caisson.paths import Paths
from caisson.policy import Ask, Request, parse_policy
from caisson.qrexec import prompt
from caisson.qrexec.asking import (
    MOST_NOTICES,
    NOTICES_AT_ONCE,
    QUESTIONS_AT_ONCE,
    SECONDS_A_QUESTION,
    Asker,
    Person,
    counted_for,
    seen_as,
)
from caisson.qrexec.calls import Call
from caisson.qrexec.known import Known
from caisson.qrexec.link import address
from caisson.qrexec.patience import MUTED_FOR
from caisson.qrexec.turns import MOST_WAITING

pytestmark = pytest.mark.root

Reply = Callable[[dict[str, Any]], bytes | None]


class Desk:
    """A person of the broker's, and what exists."""

    def __init__(self, directory: Path) -> None:
        self.now = 1000.0
        self.paths = Paths(directory)
        self.paths.prompt_agent.parent.mkdir(parents=True)
        self.known = Known()
        self.exists(dom0={}, work={}, play={}, vault={})
        self.tasks: set[asyncio.Task[None]] = set()
        self.person = Person(self.paths, self.known, self._background, lambda: self.now)

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def exists(self, **qubes: dict[str, Any]) -> None:
        """These qubes exist, too."""
        self.known.take({name: info(name, **more) for name, more in qubes.items()})

    def call(self, source: str) -> Call:
        """A call of this qube."""
        call = Call(source, None)
        call.service, call.argument, call.requested = "my.Service", "x", "vault"
        return call

    async def ask(self, source: str = "work", rule: str = "@anyvm ask") -> prompt.Answer:
        """Ask about a call of this qube."""
        policy = parse_policy({"30-user.policy": f"* * @anyvm {rule}\n"})
        request = Request("my.Service", "+x", source, "vault")
        ask = policy.decide(request, self.known.system)
        assert isinstance(ask, Ask)
        return await self.person.ask(self.call(source), ask, "dom0")

    @asynccontextmanager
    async def agent(self, reply: Reply, mark: str = "") -> AsyncIterator[list[dict[str, Any]]]:
        """An agent that replies like this (None: never); gives what it was asked and told."""
        place = self.paths.prompt_agent
        place = place.with_name(f"{place.stem}{mark}{place.suffix}")
        heard: list[dict[str, Any]] = []
        sessions: set[asyncio.Task[None] | None] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sessions.add(asyncio.current_task())
            descriptor, _, message = (await reader.read()).partition(b"\0")
            heard.append(json.loads(message))
            answer = reply(heard[-1]) if descriptor.startswith(b"policy.Ask") else b""
            with contextlib.suppress(ConnectionError):
                if answer is None:
                    # The end of the connection, as a write finds it out.
                    while True:
                        await asyncio.sleep(0.005)
                        writer.write(b" ")
                        await writer.drain()
                writer.write(answer)
                writer.close()
                await writer.wait_closed()
            heard.append({"gone": True})

        server = await asyncio.start_unix_server(serve, str(place))
        try:
            yield heard
        finally:
            server.close()
            place.unlink(missing_ok=True)
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*filter(None, sessions))


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Nobody sits there yet; in a directory that other users can pass through."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Desk(Path(directory))


def deny(_: dict[str, Any]) -> bytes:
    """An agent's answer."""
    return b"deny"


def never(_: dict[str, Any]) -> None:
    """An agent that does not answer."""


# Several agents.


async def test_all_agents_are_asked_and_the_first_answer_takes_it_back_from_the_others(desk: Desk):
    """The well-known socket, and those beside it."""
    async with (
        desk.agent(never) as first,
        desk.agent(lambda _: b"allow:vault", "-1") as second,
        desk.agent(never, "-2") as third,
    ):
        answer = await desk.ask()
        assert (answer.target, answer.by) == ("vault", f"uid {os.geteuid()}")
        await until(lambda: all(len(heard) == 2 for heard in (first, second, third)))
        assert first[0] == second[0] == third[0]
        assert first[1] == third[1] == {"gone": True}


async def test_agent_that_goes_away_has_not_answered(desk: Desk):
    """The others are waited for; when the last one is gone, nobody answered."""
    async with desk.agent(lambda _: b""), desk.agent(lambda _: b"allow:vault", "-1"):
        assert (await desk.ask()).target == "vault"
    async with desk.agent(lambda _: b""), desk.agent(lambda _: b"", "-1"):
        with pytest.raises(CaissonError, match="went away"):
            await desk.ask()


async def test_whatever_else_an_agent_says_is_a_refusal_for_all(desk: Desk):
    """An answer that is not understood counts as `deny`, as in the protocol."""
    async with desk.agent(lambda _: b"what?"), desk.agent(never, "-1"):
        assert (await desk.ask()).target is None


STRANGER = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
os.setresuid(4242, 4242, 4242)
s.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
s.listen()
print("up", flush=True)
c, _ = s.accept()
received = b""
try:
    c.sendall(b"allow:vault")
    c.shutdown(socket.SHUT_WR)
    while chunk := c.recv(65536):
        received += chunk
except OSError:
    pass
print(len(received), flush=True)
"""


async def test_stranger_beside_the_agents_is_neither_heard_nor_told(desk: Desk):
    """Who may answer: root, and members of the group `qubes`."""
    directory = desk.paths.prompt_agent.parent
    directory.chmod(0o777)
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STRANGER, str(directory / "policy-agent-0.sock"),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert stranger.stdout is not None
    assert await stranger.stdout.readline() == b"up\n"
    async with desk.agent(deny, "-1") as heard:
        assert (await desk.ask()).target is None
        assert heard[0]["source"] == "work"
    assert await stranger.stdout.readline() == b"0\n"
    await stranger.wait()


async def test_question_that_nobody_answers_is_over_in_time(desk: Desk):
    """And is taken back from every agent."""
    question = prompt.Question("work", "a.B", "+", ["vault"])
    async with desk.agent(never) as first, desk.agent(never, "-1") as second:
        with pytest.raises(prompt.PromptError, match="nobody answered"):
            await prompt.ask(desk.paths.prompt_agent, question, patience=1.0)
        await until(lambda: len(first) == len(second) == 2)


async def test_agents_beside_the_well_known_socket_suffice(desk: Desk):
    """Nobody has to have the well-known name."""
    async with desk.agent(deny, "-abc"):
        assert (await desk.ask()).target is None


async def test_sockets_that_nobody_listens_at_hide_no_agent(desk: Desk):
    """More leftovers than are ever asked, all before the living one."""
    for number in range(3 * prompt.MOST_AGENTS):
        async with desk.agent(deny, f"-{number:03}"):
            stale = prompt.beside(desk.paths.prompt_agent)[-1]
            stale.rename(stale.with_name("kept"))
        stale.with_name("kept").rename(stale)
    async with desk.agent(lambda _: b"allow:vault", "-zzz"):
        assert (await desk.ask()).target == "vault"


async def test_broker_asks_a_bounded_number_of_agents(desk: Desk):
    """Those after the eighth hear nothing."""
    async with contextlib.AsyncExitStack() as stack:
        agents = [
            await stack.enter_async_context(desk.agent(never, f"-{n:03}"))
            for n in range(prompt.MOST_AGENTS + 2)
        ]
        asking = asyncio.create_task(desk.ask())
        await until(lambda: sum(map(bool, agents)) >= prompt.MOST_AGENTS)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: sum(len(heard) == 2 for heard in agents) == prompt.MOST_AGENTS)
        assert [bool(heard) for heard in agents[-2:]] == [False, False]


async def test_links_beside_the_socket_are_not_followed(desk: Desk):
    """A member of the group cannot have the broker speak to a socket elsewhere."""
    elsewhere = desk.paths.run / "elsewhere-1.sock"
    async with desk.agent(deny):
        desk.paths.prompt_agent.rename(elsewhere)
        desk.paths.prompt_agent.with_name("policy-agent-1.sock").symlink_to(elsewhere)
        assert prompt.beside(desk.paths.prompt_agent) == []


# Fairness and rate.


async def test_qube_that_asks_too_often_is_denied_without_a_question(desk: Desk):
    """Unwanted questions run out, and come back with time; another qube has its own."""
    async with desk.agent(deny) as heard:
        for _ in range(QUESTIONS_AT_ONCE):
            assert (await desk.ask()).target is None
        asked = len(heard)
        with pytest.raises(CaissonError, match="`work` asks too often"):
            await desk.ask()
        assert len(heard) == asked
        assert (await desk.ask("play")).target is None
        desk.now += SECONDS_A_QUESTION
        assert (await desk.ask()).target is None
        with pytest.raises(CaissonError, match="too often"):
            await desk.ask()


async def test_questions_that_are_allowed_do_not_run_out(desk: Desk):
    """What the person wants may come as often as it likes."""
    async with desk.agent(lambda _: b"allow:vault"):
        for _ in range(3 * QUESTIONS_AT_ONCE):
            assert (await desk.ask()).target == "vault"


async def test_questions_that_are_taken_back_run_out(desk: Desk):
    """A caller that hangs up and calls again makes no dialogue flash for ever."""
    async with desk.agent(never) as heard:
        for number in range(QUESTIONS_AT_ONCE):
            asking = asyncio.create_task(desk.ask())
            await until(lambda n=number: len(heard) > 2 * n)
            asking.cancel()
            await until(lambda n=number: len(heard) == 2 * n + 2)
        with pytest.raises(CaissonError, match="too often"):
            await desk.ask()


def made_by(name: str) -> dict[str, Any]:
    """A disposable's tags."""
    return {"type": "DispVM", "tags": (f"created-by-{name}", f"disp-created-by-{name}")}


async def test_disposables_of_a_qube_count_together_and_beside_it(desk: Desk):
    """Also those that disposables make; a loop of tags ends; the admin qube's stand alone."""
    desk.exists(
        disp1=made_by("work"), disp2=made_by("disp1"), disp3=made_by("gone"),
        disp4=made_by("dom0"), app=info("app", tags=("created-by-work",)),
        x=made_by("y"), y=made_by("x"),
    )  # fmt: skip
    names = ("work", "disp1", "disp2", "disp3", "disp4", "app", "x", "unknown")
    askers = [str(counted_for(desk.known.system, name, "dom0")) for name in names]
    disposables = "disposables of `work`"
    assert askers[:4] == ["`work`", disposables, disposables, "disposables of `gone`"]
    assert askers[4:] == ["`disp4`", "`app`", "disposables of `y`", "`unknown`"]


async def test_creator_that_asks_elsewhere_is_not_told_of(desk: Desk):
    """The line of creators ends where another person answers; all of it counts together."""
    there = {"guivm": "sys-gui"}
    desk.exists(
        disp1=made_by("work") | there, disp2=made_by("disp1") | there,
        disp3=made_by("disp2"), disp4=made_by("gone"),
    )  # fmt: skip
    asking_at = {"disp1": "sys-gui", "disp2": "sys-gui", "disp3": "dom0", "disp4": "dom0"}
    seen = {name: seen_as(desk.known.system, name, gui) for name, gui in asking_at.items()}
    assert seen == {
        "disp1": Asker("sys-gui", "disp1"),
        "disp2": Asker("sys-gui", "disp1", disposables=True),
        "disp3": Asker("dom0", "disp3"),
        "disp4": Asker("dom0", "disp4"),
    }
    counted = {counted_for(desk.known.system, name, "sys-gui") for name in ("disp1", "disp2")}
    assert counted == {Asker("sys-gui", "work", disposables=True)}


async def test_any_number_of_disposables_ask_no_more_than_one_qube(desk: Desk):
    """One dialogue for all of them, and one allowance."""
    desk.exists(**{f"disp{n}": made_by("work") for n in range(QUESTIONS_AT_ONCE + 1)})
    async with desk.agent(never) as heard:
        asking = [asyncio.create_task(desk.ask(f"disp{n}")) for n in range(3)]
        await until(lambda: bool(heard))
        assert (heard[0]["source"], heard[0]["origin"]) == ("disp0", "work")
        other = asyncio.create_task(desk.ask("play"))
        await until(lambda: len(heard) == 2)
        assert heard[1]["source"] == "play"
        for task in (*asking, other):
            task.cancel()
        await asyncio.gather(*asking, other, return_exceptions=True)
    async with desk.agent(deny):
        # One was taken back, those behind it were never shown.
        for number in range(QUESTIONS_AT_ONCE - 1):
            assert (await desk.ask(f"disp{number}")).target is None
        with pytest.raises(CaissonError, match="disposables of `work` ask too often"):
            await desk.ask(f"disp{QUESTIONS_AT_ONCE}")


async def test_disposable_that_asks_too_often_does_not_silence_its_creator(desk: Desk):
    """A hostile page in a disposable browser: the qube that opened it still asks."""
    desk.exists(disp1=made_by("work"))
    async with desk.agent(deny):
        for _ in range(QUESTIONS_AT_ONCE):
            await desk.ask("disp1")
    async with desk.agent(lambda _: b"allow:vault"):
        assert (await desk.ask("work")).target == "vault"


async def test_questions_of_a_disposable_that_wait_leave_room_for_its_creator(desk: Desk):
    """As many as may wait, and one more is refused; the creator's is shown beside the first."""
    desk.exists(disp1=made_by("work"))
    async with desk.agent(never) as heard:
        asking = [asyncio.create_task(desk.ask("disp1")) for _ in range(MOST_WAITING + 1)]
        await until(lambda: bool(heard))
        with pytest.raises(CaissonError, match="too many questions of disposables of `work` wait"):
            await desk.ask("disp1")
        asking.append(asyncio.create_task(desk.ask("work")))
        await until(lambda: len(heard) == 2)
        assert [question["source"] for question in heard] == ["disp1", "work"]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_question_tells_how_many_wait_behind_it(desk: Desk):
    """Of the same qube; an agent counts those of others itself."""
    async with desk.agent(deny) as heard:
        asking = [asyncio.create_task(desk.ask()) for _ in range(3)]
        await asyncio.gather(*asking)
        assert [q["waiting"] for q in heard if "waiting" in q] == [0, 1, 0]


async def test_question_names_no_qube_that_is_not_involved(desk: Desk):
    """Icons are of the caller and the targets; others that exist are nobody's business."""
    desk.exists(base={"template_for_dispvms": True}, other={"template_for_dispvms": True})
    async with desk.agent(deny) as heard:
        await desk.ask(rule="vault ask")
        await desk.ask(rule="vault ask target=@dispvm:base")
    first, second = (question["icons"] for question in heard if "icons" in question)
    assert first == dict.fromkeys(("work", "vault"), "appvm-red")
    assert second == dict.fromkeys(("work", "base", "@dispvm:base"), "appvm-red")


# Deny all from this qube for now.


async def test_muted_qube_is_denied_without_a_question_until_the_time_is_over(desk: Desk):
    """By the one who said so; its disposables and the others are heard."""
    desk.exists(disp1=made_by("work"))
    async with desk.agent(lambda _: b"deny:for-now\n") as heard:
        answer = await desk.ask("work")
        assert (answer.target, answer.for_now) == (None, True)
    async with desk.agent(lambda _: b"allow:vault") as heard:
        answer = await desk.ask("work")
        assert (answer.target, answer.by) == (None, f"uid {os.geteuid()}")
        assert answer.reason == "`work` is denied for now, for 10 min 0 s more"
        assert heard == []
        for source in ("disp1", "play"):
            assert (await desk.ask(source)).target == "vault"
        desk.now += MUTED_FOR
        assert (await desk.ask("work")).target == "vault"


async def test_muted_disposable_is_muted_with_its_like_and_without_its_creator(desk: Desk):
    """Making another one does not help it, and it takes nobody with it."""
    desk.exists(disp1=made_by("work"), disp2=made_by("work"), disp3=made_by("disp2"))
    async with desk.agent(lambda _: b"deny:for-now"):
        await desk.ask("disp1")
    async with desk.agent(lambda _: b"allow:vault"):
        for source in ("disp1", "disp2", "disp3"):
            answer = await desk.ask(source)
            assert answer.target is None
            assert answer.reason.startswith("disposables of `work` are denied for now")
        assert (await desk.ask("work")).target == "vault"


async def test_questions_that_waited_are_denied_with_the_one_that_was_shown(desk: Desk):
    """Nobody has to say it twice."""
    async with desk.agent(lambda _: b"deny:for-now") as heard:
        answers = await asyncio.gather(*(desk.ask() for _ in range(4)))
        assert [a.target for a in answers] == [None] * 4
        await until(lambda: len(heard) == 2)


async def test_notices_of_a_muted_qube_tell_how_long_it_stays_so(desk: Desk):
    """And one qube's notices do not go on for ever."""
    async with desk.agent(lambda _: b"deny:for-now") as heard:
        await desk.ask()
        desk.now += 60
        for _ in range(NOTICES_AT_ONCE + 5):
            desk.person.tell(desk.call("work"), "deny", "vault")
            await asyncio.gather(*desk.tasks)
        desk.person.tell(desk.call("play"), "deny", "vault")
        await asyncio.gather(*desk.tasks)
        notices = [n for n in heard if "resolution" in n]
        assert [n.get("muted") for n in notices] == [540] * NOTICES_AT_ONCE + [None]


async def test_notices_go_to_every_agent(desk: Desk):
    """Whoever sits where sees what happened."""
    async with desk.agent(deny) as first, desk.agent(deny, "-1") as second:
        desk.person.tell(desk.call("work"), "allow", "vault")
        await asyncio.gather(*desk.tasks)
        await until(lambda: len(first) == len(second) == 2)
        assert first[0] == second[0]
        assert first[0]["resolution"] == "allow"


async def test_gui_qube_that_does_not_read_loses_only_its_own_notices(desk: Desk):
    """As many as may be under way stay there; the admin qube's person is told all the same."""
    desk.exists(work={"guivm": "sys-gui"})
    desk.paths.dom0_socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(address(desk.paths.dom0_socket))
        silent.listen()
        for _ in range(MOST_NOTICES + 1):
            desk.person.tell(desk.call("work"), "deny", "vault")
        stuck = list(desk.tasks)
        assert len(stuck) == MOST_NOTICES
        async with desk.agent(deny) as heard:
            desk.person.tell(desk.call("play"), "deny", "vault")
            await until(lambda: len(heard) == 2)
            assert heard[0]["source"] == "play"
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
