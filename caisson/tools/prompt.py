"""`caisson prompt`: asks in the terminal what calls between qubes need a person for.

It listens where the broker asks (sheet `qrexec`, section 4.3). Nothing is preselected, and
what was typed before a question was there is not its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from caisson.errors import CaissonError
from caisson.paths import Paths
from caisson.qrexec.link import address
from caisson.qrexec.prompt import ASK, NOTIFY, Notice, Question
from caisson.tools import command
from caisson.tools.terminal import harmless

LONGEST_QUESTION = 16 * 1024 * 1024
QUESTION_TIMEOUT = 10.0
DEAF = 1.0
"""Seconds for which input is dropped after a question appears (key repeat, a blind Enter)."""

_LONGEST_SHOWN = 400
_LONGEST_TYPED = 64
_INVITATION = "Number of the target, or Escape to deny: "
_ESCAPE, _END, _GONE = "\x1b", "\x04", ""
_ERASE = frozenset({"\x7f", "\b"})
_ENTER = frozenset({"\r", "\n"})


def main(argv: Sequence[str] | None = None) -> int:
    """Answer questions until interrupted."""
    parser = command.parser(
        "caisson prompt",
        "Answer the questions that calls between qubes raise.",
        "Type the number of a target and Enter to allow; Escape or Ctrl-D denies.",
    )
    parser.add_argument("--once", action="store_true", help="end after one question")
    scripted = parser.add_mutually_exclusive_group()
    scripted.add_argument(
        "--answer", metavar="TARGET", help="allow each call that may go to TARGET, deny the others"
    )
    scripted.add_argument("--deny", action="store_true", help="deny every call")
    options = parser.parse_args(argv)
    paths = Paths(Path(options.root).absolute()) if options.root else Paths.of_environment()
    console = Console(highlight=False, no_color=True if os.environ.get("NO_COLOR") else None)
    person: _Scripted | _Person
    if options.answer or options.deny:
        person = _Scripted(console, options.answer)
    else:
        person = _Person(console, sys.stdin.fileno())
    agent = Agent(paths.prompt_agent, console, person, once=options.once)
    try:
        asyncio.run(agent.run())
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    return 0


class Agent:
    """The server side of the prompt protocol.

    Args:
        path: where the broker asks.
        console: where questions are shown.
        person: who answers.
        once: end after one question.
    """

    def __init__(
        self, path: Path, console: Console, person: _Scripted | _Person, *, once: bool
    ) -> None:
        self._path = path
        self._console = console
        self._person = person
        self._once = once
        self._one_at_a_time = asyncio.Lock()
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop, or after one question."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is not None:
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
        sock = _listen(self._path)
        server = await asyncio.start_unix_server(self._serve, sock=sock, limit=LONGEST_QUESTION)
        try:
            await self._done.wait()
        finally:
            server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT):
                received = await _read(reader)
            if received.startswith(ASK):
                question = msgspec.json.decode(received.removeprefix(ASK), type=Question)
                await self._answer(question, writer)
            elif received.startswith(NOTIFY):
                self._show_notice(msgspec.json.decode(received.removeprefix(NOTIFY), type=Notice))
        except (OSError, TimeoutError, msgspec.DecodeError):
            # Not a question: no answer is a refusal.
            return
        finally:
            writer.close()

    async def _answer(self, question: Question, writer: asyncio.StreamWriter) -> None:
        async with self._one_at_a_time:
            if self._done.is_set():
                return
            with _hang_up_of(writer) as hung_up:
                asking = asyncio.ensure_future(self._person.ask(question))
                waiting: set[asyncio.Future[Any]] = {asking, hung_up}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    asking.cancel()
                    await asyncio.wait({asking})
                    self._console.print("The call was taken back.", style="dim")
                    return
            target = asking.result()
            writer.write(b"deny" if target is None else f"allow:{target}".encode())
            await writer.drain()
            if self._once:
                self._done.set()

    def _show_notice(self, notice: Notice) -> None:
        word = {"allow": "allowed", "deny": "denied"}.get(notice.resolution, "failed")
        text = Text("• ")
        text.append(_plain(f"{notice.source} → {notice.target or '@default'}: "))
        text.append_text(_service(notice.service, notice.argument))
        text.append(f" was {word}")
        self._console.print(text)


class _Scripted:
    """Answers without a person; shows the question all the same."""

    def __init__(self, console: Console, answer: str | None) -> None:
        self._console = console
        self._target = answer

    async def ask(self, question: Question) -> str | None:
        """Allow if the wished target is among those to pick from."""
        _show(self._console, question)
        chosen = self._target if self._target in question.targets else None
        verdict = f"allowed to {chosen}" if chosen else "denied"
        self._console.print(f"[bold]{escape(_plain(verdict))}[/] (scripted answer)")
        return chosen


class _Person:
    """Asks in the terminal."""

    def __init__(self, console: Console, descriptor: int) -> None:
        self._console = console
        self._descriptor = descriptor

    async def ask(self, question: Question) -> str | None:
        """The target that the person picked; None: denied."""
        with _unbuffered(self._descriptor):
            _show(self._console, question)
            self._write(_INVITATION)
            return await self._pick(question.targets)

    async def _pick(self, targets: list[str]) -> str | None:
        loop = asyncio.get_running_loop()
        deaf_until = loop.time() + DEAF
        typed = ""
        async with _keys_of(self._descriptor) as keys:
            while True:
                key = await keys.get()
                if key and loop.time() < deaf_until:
                    continue
                if key in {_GONE, _ESCAPE, _END}:
                    self._write("\ndenied\n")
                    return None
                if key in _ERASE:
                    self._write("\b \b" if typed else "")
                    typed = typed[:-1]
                elif key in _ENTER:
                    if (chosen := _chosen(typed, targets)) is not None:
                        self._write(f"\nallowed to {harmless(chosen)}\n")
                        return chosen
                    # Enter alone does nothing.
                    if typed:
                        self._write(f"\nThere is no target `{typed}`. {_INVITATION}")
                    typed = ""
                elif key.isascii() and key.isprintable() and len(typed) < _LONGEST_TYPED:
                    typed += key
                    self._write(key)

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)


def _chosen(typed: str, targets: list[str]) -> str | None:
    """What the typed number or name stands for."""
    if typed in targets:
        return typed
    if typed.isdecimal() and 1 <= int(typed) <= len(targets):
        return targets[int(typed) - 1]
    return None


def _show(console: Console, question: Question) -> None:
    console.print()
    line = Text()
    line.append_text(_qube(question.source, question))
    line.append(" wants to call ")
    line.append_text(_service(question.service, question.argument))
    console.print(line)
    console.print("Which qube may serve it?")
    for number, target in enumerate(question.targets, 1):
        line = Text(f"  {number}  ")
        line.append_text(_qube(target, question))
        if target == question.default_target:
            line.append("  (the policy suggests it)", style="dim")
        console.print(line)


def _qube(name: str, question: Question) -> Text:
    """The qube's name in its label's colour, and how well its walls isolate."""
    base = name.removeprefix("@dispvm:")
    colour = _colour(question.labels.get(base, ""))
    text = Text()
    text.append("■ ", style=colour or "dim")
    text.append(_plain(f"new disposable of {base}" if base != name else name), style="bold")
    if (kind := question.isolation.get(base)) is not None:
        text.append(f" [{_plain(kind)}]", style="dim")
    return text


def _service(service: str, argument: str) -> Text:
    text = Text(_plain(service), style="bold")
    if argument not in {"", "+"}:
        text.append(_plain(argument), style="not bold")
    return text


def _colour(label: str) -> str | None:
    """A label's colour `0xRRGGBB` as the terminal's style."""
    try:
        number = int(label, 16)
    except ValueError:
        return None
    return f"#{number & 0xFFFFFF:06x}"


def _plain(untrusted: str) -> str:
    """Printable ASCII only, and not endless: nothing can move the cursor or look like another."""
    cut = untrusted if len(untrusted) <= _LONGEST_SHOWN else untrusted[:_LONGEST_SHOWN] + "…"
    return "".join(
        c if " " <= c <= "~" or c == "…" else c.encode("unicode_escape").decode() for c in cut
    )


def _listen(path: Path) -> socket.socket:
    """The agent's socket; only who may enter its directory reaches it.

    Raises:
        CaissonError: another agent listens already, or the directory is missing.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(address(path))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except PermissionError:
            raise CaissonError(
                "this user may not answer for qubes", hint="add the user to the group `qubes`"
            ) from None
        else:
            raise CaissonError("another prompt agent is running", hint="stop it first")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Made elsewhere and moved: the broker never meets a socket that it may not open yet.
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        # Born with its rights: who shares the directory could put a link in its place meanwhile.
        umask = os.umask(0o111)
        try:
            sock.bind(address(fresh))
        finally:
            os.umask(umask)
        sock.listen(16)
        fresh.rename(path)
    except OSError as e:
        sock.close()
        raise CaissonError(
            f"cannot listen at `{path}`: {e.strerror}", hint="start the daemons: caisson up"
        ) from None
    return sock


async def _read(reader: asyncio.StreamReader) -> bytes:
    received = bytearray()
    while chunk := await reader.read(65_536):
        received += chunk
        if len(received) > LONGEST_QUESTION:
            raise OSError(0, "endless question")
    return bytes(received)


@contextmanager
def _hang_up_of(writer: asyncio.StreamWriter) -> Iterator[asyncio.Future[None]]:
    """A future for the moment when the broker hangs up; that it half-closed does not count."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def gone() -> None:
        if not future.done():
            future.set_result(None)

    with contextlib.closing(select.epoll()) as epoll:
        # No events asked for: epoll then tells of a full hang-up only.
        epoll.register(writer.get_extra_info("socket").fileno(), 0)
        loop.add_reader(epoll.fileno(), gone)
        try:
            yield future
        finally:
            loop.remove_reader(epoll.fileno())
            future.cancel()


@contextmanager
def _unbuffered(descriptor: int) -> Iterator[None]:
    """Single keys, no echo; what was typed before is dropped."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSAFLUSH)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


@asynccontextmanager
async def _keys_of(descriptor: int) -> AsyncIterator[asyncio.Queue[str]]:
    """Keys as they are typed; an empty one is the end of the input."""
    loop = asyncio.get_running_loop()
    keys: asyncio.Queue[str] = asyncio.Queue()

    def readable() -> None:
        try:
            chunk = os.read(descriptor, 1024)
        except OSError:
            chunk = b""
        if not chunk:
            loop.remove_reader(descriptor)
            keys.put_nowait(_GONE)
        elif chunk.startswith(b"\x1b"):
            # Escape, or a key that begins with it: what follows is not typing.
            keys.put_nowait(_ESCAPE)
        else:
            for key in chunk.decode("ascii", "replace"):
                keys.put_nowait(key)

    try:
        loop.add_reader(descriptor, readable)
    except PermissionError:
        # A file, or /dev/null: nobody types there.
        keys.put_nowait(_GONE)
    try:
        yield keys
    finally:
        with contextlib.suppress(OSError):
            loop.remove_reader(descriptor)
