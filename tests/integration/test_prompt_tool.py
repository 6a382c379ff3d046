"""`caisson prompt` in a real terminal, asked through the real protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from broker_rig import broker_rig, until
from patience import PATIENCE

from caisson.paths import Paths
from caisson.qrexec import prompt
from caisson.qrexec.prompt import Question

pytestmark = pytest.mark.root

QUESTION = Question(
    source="work",
    service="my.Service",
    argument="+arg",
    targets=["other", "vault"],
    labels={"work": "0xcc0000"},
    isolation={"work": "container"},
)
T = TypeVar("T")
RUN = "import sys; from caisson.tools import umbrella; sys.exit(umbrella.main())"


class Terminal:
    """A prompt agent in a terminal of its own."""

    def __init__(self, root: Path, *options: str, run: str = RUN, **env: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", run, "--root", str(root), "prompt", *options],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color"} | env,
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    @property
    def restored(self) -> bool:
        """Whether the terminal is as before."""
        return termios.tcgetattr(self.master) == self.before

    async def ends(self) -> int:
        """Wait for the end of the program, with all that it prints; its exit code."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(OSError):
                while chunk := await asyncio.to_thread(os.read, self.master, 4096):
                    self.seen += chunk
        return await asyncio.to_thread(self.process.wait, PATIENCE)

    async def shows(self, text: bytes) -> None:
        """Wait until this was printed."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.seen:
                self.seen += await asyncio.to_thread(os.read, self.master, 4096)

    async def reads(self, patience: float) -> None:
        """Take what is printed within so many seconds, if anything is."""
        if (await asyncio.to_thread(select.select, [self.master], [], [], patience))[0]:
            self.seen += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    async def type_until(self, done: asyncio.Task[T], keys: bytes) -> T:
        """Press keys now and then until they count, after a second without any."""
        while not done.done():
            self.type(keys)
            await asyncio.wait({done}, timeout=1.2)
        return done.result()

    async def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        await self.ends()
        os.close(self.master)


@asynccontextmanager
async def terminal(*options: str) -> AsyncIterator[tuple[Terminal, Path]]:
    """A prompt agent, and where it listens."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        paths = Paths(Path(directory))
        paths.prompt_agent.parent.mkdir(parents=True)
        agent = Terminal(paths.root, *options)
        try:
            yield agent, paths.prompt_agent
        finally:
            await agent.close()


async def answered(path: Path, question: Question = QUESTION) -> str | None:
    """What the agent answers; it may still be starting."""
    await until(path.exists)
    return (await prompt.ask(path, question)).target


async def listening(agent: Terminal) -> None:
    """Wait until keys count: a digit is shown then, and taken back."""
    invitation = b"Escape to deny: "
    await agent.shows(invitation)
    tries = 0
    while not agent.seen.rpartition(invitation)[2].count(b"9"):
        agent.type(b"9")
        tries += 1
        await agent.reads(1.2)  # keys count after a second without any
    agent.type(b"\x7f" * tries)
    while (said := agent.seen.rpartition(invitation)[2]).count(b"\b \b") < said.count(b"9"):
        await agent.reads(PATIENCE)


async def test_question_shows_who_wants_what_and_a_number_allows():
    """Source with isolation class, service, argument, numbered targets; nothing preselected."""
    async with terminal("--plain") as (agent, path):
        asking = asyncio.create_task(answered(path))
        await listening(agent)
        agent.type(b"2\r")
        assert await asking == "vault"
        for text in (
            b"work",
            b"container",
            b"my.",
            b"Service",
            b"+arg",
            b"1  ",
            b"other",
            b"vault",
        ):
            assert text in agent.seen


@pytest.mark.parametrize("keys", [b"\x1b", b"\x04", b"\x1b[A1\r"])
async def test_escape_and_end_of_input_deny(keys: bytes):
    """Also a key that begins with the escape character, and what follows it."""
    async with terminal("--plain") as (agent, path):
        asking = asyncio.create_task(answered(path))
        await listening(agent)
        agent.type(keys)
        assert await asking is None


async def test_enter_alone_does_nothing():
    """An absent-minded Enter neither allows nor denies; a wrong number is asked again."""
    async with terminal("--plain") as (agent, path):
        asking = asyncio.create_task(answered(path))
        await listening(agent)
        agent.type(b"\r\r7\r")
        await agent.shows(b"There is no target `7`")
        assert not asking.done()
        agent.type(b"9\x7f1\r")
        assert await asking == "other"


async def test_keys_from_before_the_question_do_not_answer_it():
    """QSB-104: what was typed for something else, or repeats, is dropped."""
    async with terminal("--plain") as (agent, path):
        agent.type(b"1\r1\r")
        asking = asyncio.create_task(answered(path))
        await agent.shows(b"Escape to deny: ")
        agent.type(b"1\r1\r")
        assert await agent.type_until(asking, b"2\r") == "vault"


async def test_scripted_answer_goes_through_the_same_protocol():
    """`--answer` allows what is offered, and denies the rest."""
    async with terminal("--answer", "vault") as (_, path):
        assert await answered(path) == "vault"
        assert await answered(path, Question("a", "s", "+", ["other"])) is None


async def test_deny_denies_and_once_ends():
    """`--deny --once`: one refusal, then the program is gone, and its socket with it."""
    async with terminal("--deny", "--once") as (agent, path):
        assert await answered(path) is None
        assert await asyncio.to_thread(agent.process.wait, PATIENCE) == 0
        assert not path.exists()


async def test_escape_sequences_in_a_question_are_not_shown_raw():
    """Even a broker that was taken over cannot write to the person's terminal."""
    evil = Question("wo\x1b[2Jrk", "my.\x07\x9b1mS", "+\x1b]0;x\x07", ["va\nult", "[bold]x"])
    async with terminal("--deny") as (agent, path):
        assert await answered(path, evil) is None
        await agent.shows(b"denied")
        assert b"\x1b[2J" not in agent.seen
        assert b"\x1b]0" not in agent.seen
        assert b"\x07" not in agent.seen
        assert b"va\\nult" in agent.seen
        assert b"[bold]x" in agent.seen


async def test_question_that_is_taken_back_is_said_so():
    """The caller went: the next question can be shown."""
    async with terminal("--plain") as (agent, path):
        asking = asyncio.create_task(answered(path))
        await agent.shows(b"Escape to deny: ")
        asking.cancel()
        await agent.shows(b"taken back")
        agent.seen = b""
        asking = asyncio.create_task(answered(path))
        await listening(agent)
        agent.type(b"1\r")
        assert await asking == "other"


async def test_exclamation_mark_denies_what_follows_too():
    """Deny all from this qube for now; other implementations read the answer as `deny`."""
    async with terminal("--plain") as (agent, path):
        asking = asyncio.create_task(prompt.ask(path, QUESTION))
        await listening(agent)
        agent.type(b"!\r")
        answer = await asking
        assert (answer.target, answer.for_now) == (None, True)
        assert b"! to deny all from work for 10 min" in agent.seen
        await agent.shows(b"denied, and all from work for 10 min")


async def test_second_agent_is_asked_too_and_the_first_answer_counts():
    """The question on the other screen is taken back; whoever is left is asked alone."""
    async with terminal("--plain") as (first, path):
        await until(path.exists)
        second = Terminal(path.parents[3], "--plain")
        try:
            await until(lambda: len(prompt.beside(path)) == 1)
            asking = asyncio.create_task(prompt.ask(path, QUESTION))
            await first.shows(b"Escape to deny: ")
            await listening(second)
            second.type(b"2\r")
            assert (await asking).target == "vault"
            await first.shows(b"answered elsewhere")
        finally:
            await second.close()
        assert prompt.beside(path) == []
        asking = asyncio.create_task(prompt.ask(path, QUESTION))
        first.seen = b""
        await listening(first)
        first.type(b"1\r")
        assert (await asking).target == "other"


# On the whole screen.

CRASH = """
from caisson.tools.prompting import dialogue
def compose(self):
    raise ZeroDivisionError("a bug")
dialogue.Dialogue.compose = compose
"""
LEFT = b"\x1b[?1049l"


async def test_whole_screen_asks_for_a_real_broker():
    """From the call of a qube to keys in a terminal, and on to the target."""
    async with broker_rig("my.Service * work @anyvm ask\n") as rig:
        await rig.run("work", isolation="container")
        vault = await rig.run("vault")
        agent = Terminal(rig.paths.root)
        try:
            await until(rig.paths.prompt_agent.exists)
            client = await rig.call("work", "vault", "my.Service+a")
            await agent.shows(b"keys count in a second")
            for text in (b"work", b"container", b"Service", b"vault", b"nothing chosen"):
                await agent.shows(text)
            service = await agent.type_until(asyncio.create_task(vault.next_call()), b"\x1b[B\r")
            await service.end(0)
            assert (await client.receive())[0] == b"A"
            assert (await client.receive())[0] == b"X0"
            record = await rig.audited(service="my.Service")
            assert (record["target"], record["answered_by"]) == ("vault", "uid 0")
        finally:
            await agent.close()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_terminal_is_restored_when_a_signal_ends_the_prompt(sign: signal.Signals):
    """In the middle of a question; the broker sees that nobody answers."""
    async with terminal() as (agent, path):
        await until(path.exists)
        asking = asyncio.create_task(prompt.ask(path, QUESTION))
        await agent.shows(b"keys count in a second")
        assert not agent.restored
        agent.process.send_signal(sign)
        assert await agent.ends() == 128 + sign
        assert agent.restored
        assert LEFT in agent.seen
        assert b"\x1b[?25h" in agent.seen.rpartition(LEFT)[2]
        with pytest.raises(prompt.PromptError, match="went away"):
            await asking
        assert not path.exists()


async def test_terminal_is_restored_when_the_prompt_crashes():
    """A bug of ours denies, says so, and leaves a terminal that can be used."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Paths(Path(directory)).prompt_agent
        path.parent.mkdir(parents=True)
        agent = Terminal(Path(directory), run=CRASH + RUN)
        ending = asyncio.create_task(agent.ends())
        await until(path.exists)
        with pytest.raises(prompt.PromptError, match="went away"):
            await prompt.ask(path, QUESTION)
        assert await ending == 1
        assert not path.exists()
        os.close(agent.master)
        assert b"ZeroDivisionError" in agent.seen.rpartition(LEFT)[2]


async def test_prompt_ends_when_its_terminal_is_gone():
    """No signal comes where it is no controlling terminal; nothing goes on in the background."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Paths(Path(directory)).prompt_agent
        path.parent.mkdir(parents=True)
        agent = Terminal(Path(directory))
        await until(path.exists)
        os.close(agent.master)
        await asyncio.to_thread(agent.process.wait, PATIENCE)
        assert not path.exists()


async def test_once_ends_the_whole_screen_after_one_question():
    """The answer is sent first."""
    async with terminal("--once") as (agent, path):
        await until(path.exists)
        asking = asyncio.create_task(prompt.ask(path, QUESTION))
        await agent.shows(b"keys count in a second")
        answer = await agent.type_until(asking, b"\x18")
        assert (answer.target, answer.for_now) == (None, True)
        assert await agent.ends() == 0
        assert agent.restored


async def test_what_is_wrong_is_said_on_the_screen_that_stays(tmp_path: Path):
    """No daemon made the directory: exit code 1, and the remedy is there to read."""
    agent = Terminal(tmp_path)
    assert await agent.ends() == 1
    assert agent.restored
    os.close(agent.master)
    assert b"hint:" in agent.seen.rpartition(LEFT)[2]


async def test_no_color_is_respected(tmp_path: Path):
    """The block, the names and what is chosen can be told apart without."""
    path = Paths(tmp_path).prompt_agent
    path.parent.mkdir(parents=True)
    agent = Terminal(tmp_path, NO_COLOR="1")
    await until(path.exists)
    asking = asyncio.create_task(prompt.ask(path, QUESTION))
    for text in ("■ ".encode(), b"work", b"container", b"keys count in a second"):
        await agent.shows(text)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await agent.close()
    codes = {int(code) for sequence in re.findall(rb"\x1b\[([0-9;]*)m", agent.seen)
             for code in sequence.split(b";") if code}  # fmt: skip
    assert codes
    assert not {c for c in codes if c // 10 in {3, 4, 9, 10} and c not in {39, 49}}


async def test_without_a_screen_it_asks_line_by_line(tmp_path: Path):
    """A pipe has no screen; where `--plain` says that somebody is there, its end denies."""
    path = Paths(tmp_path).prompt_agent
    path.parent.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, "--root", str(tmp_path), "prompt", "--once", "--plain",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    await until(path.exists)
    assert (await prompt.ask(path, QUESTION)).target is None
    shown, _ = await process.communicate()
    assert b"work [container] wants to call my.Service+arg" in shown
    assert b"\x1b" not in shown


def test_help_needs_no_screen_library():
    """`caisson prompt --help` stays quick."""
    code = (
        "import sys\nfrom caisson.tools import umbrella\n"
        "sys.argv = ['caisson', 'prompt', '--help']\n"
        "try: umbrella.main()\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('textual', 'rich', 'asyncio')) and 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0


def test_without_a_terminal_nobody_is_asked(tmp_path: Path):
    """The end of its input is no person's refusal: it would win against those who are there."""
    (tmp_path / "run/qubes/prompt").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN, "--root", str(tmp_path), "prompt"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "there is no terminal to ask a person in" in done.stderr
    assert list((tmp_path / "run/qubes/prompt").iterdir()) == []
