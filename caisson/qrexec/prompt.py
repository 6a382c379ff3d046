"""Asking a person: the protocol of prompt agents (sheet `qrexec`, section 4.3), client side.

An agent is a program of the person: terminal, web console, or one that speaks the same protocol.
Several may listen: at the well-known socket, and beside it at `policy-agent-*.sock`. All of them
are asked at once, and the first answer counts; who may put a socket there is decided by the
rights of the directory, who may answer by the group `qubes`.

An answer is bounded in size and time; whatever is not `allow:TARGET` is a refusal, and
`deny:for-now` besides asks not to be asked for this qube, or for the disposables of its creator,
for a while (others read it as `deny`).
An agent that goes away without a word has not answered.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from caisson.errors import CaissonError, PermissionDeniedError
from caisson.qrexec.directories import qubes_group
from caisson.qrexec.link import address, peer_of, plain_name

ASK = b"policy.Ask dom0 name dom0\0"
NOTIFY = b"policy.Notify dom0 name dom0\0"
DENY_FOR_NOW = b"deny:for-now"
LONGEST_ANSWER = 65_536
ANSWER_TIMEOUT = 120.0
APPEAR_TIMEOUT = 2.0
NOTICE_TIMEOUT = 5.0
MOST_AGENTS = 8
_MOST_ENTRIES = 1024
_RETRY = 0.05


class Question(msgspec.Struct, frozen=True):
    """What a prompt agent is asked; the fields after `icons` are ours, others ignore them.

    Args:
        source: the calling qube.
        service: the service's name.
        argument: `+` and the argument.
        targets: what the person may pick from.
        default_target: what the *policy* preselects; never the caller's wish; may be empty.
        icons: the icon of each qube involved, and of each target `@dispvm:NAME`.
        labels: the colour of each qube involved, as `0xRRGGBB`.
        isolation: the class of isolation of each qube involved, where known.
        origin: `source`, or the qube that it is a disposable of; `deny:for-now` is about `source`
            or all disposables of `origin`.
        waiting: how many questions of the same asker wait behind this one.
    """

    source: str
    service: str
    argument: str
    targets: list[str]
    default_target: str = ""
    icons: dict[str, str] = {}
    labels: dict[str, str] = {}
    isolation: dict[str, str] = {}
    origin: str = ""
    waiting: int = 0


class Notice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a prompt agent is told: `resolution` is `allow`, `deny` or `fail`.

    `muted`: for how many seconds the source is still denied without a question; ours.
    """

    resolution: str
    service: str
    argument: str
    source: str
    target: str
    muted: int = 0


class Answer(msgspec.Struct, frozen=True):
    """A person's answer.

    Args:
        target: None for a refusal.
        by: the agent's user, or the GUI qube.
        for_now: the person does not want to be asked by this asker for a while.
        reason: why it is a refusal, where the person was not asked now.
    """

    target: str | None
    by: str
    for_now: bool = False
    reason: str = ""


class PromptError(CaissonError):
    """Nobody could be asked, or nobody answered in time."""


class NobodyError(PromptError):
    """Nobody was there to see the question."""


def body(message: Question | Notice) -> bytes:
    """A question or notice as it is sent."""
    return msgspec.json.encode(message, enc_hook=plain_name)


async def ask(path: Path, question: Question, patience: float = ANSWER_TIMEOUT) -> Answer:
    """Ask all agents of the person; the first answer, or cancelling, takes the question back.

    Args:
        path: the well-known socket.
        question: what is asked.
        patience: seconds in which somebody must answer.

    Raises:
        NobodyError: no agent is there.
        PromptError: all went away, or none answered in time.
        PermissionDeniedError: the last one runs as a user who may not answer.
    """
    with ExitStack() as open_sockets:
        reached = await _reach(path, open_sockets)
        try:
            async with asyncio.timeout(patience):
                outcome = await _first_of(reached, ASK + body(question))
        except TimeoutError:
            raise PromptError(f"nobody answered within {patience:.0f} s") from None
    if isinstance(outcome, CaissonError):
        raise outcome
    return outcome


async def _first_of(reached: list[socket.socket], message: bytes) -> Answer | CaissonError:
    """The first answer; if there is none, what the last agent failed of."""
    outcome: Answer | CaissonError = PromptError("no prompt agent answered")
    # No task group: one that is cancelled is a cycle, which would keep the call in memory.
    asked = {asyncio.ensure_future(_outcome(sock, message)) for sock in reached}
    try:
        while asked and isinstance(outcome, CaissonError):
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            outcomes = [task.result() for task in done]
            answers = [o for o in outcomes if isinstance(o, Answer)]
            # Of two that came together a refusal counts.
            answers.sort(key=lambda a: a.target is not None)
            outcome = [*answers, *outcomes][0]
    finally:
        for task in asked:
            task.cancel()
        if asked:
            await asyncio.wait(asked)
    return outcome


async def _outcome(sock: socket.socket, message: bytes) -> Answer | CaissonError:
    try:
        return await _ask_one(sock, message)
    except CaissonError as e:
        return e
    except OSError as e:
        return PromptError(f"the prompt agent failed: {e.strerror}")


async def _ask_one(sock: socket.socket, message: bytes) -> Answer:
    _, uid, _ = peer_of(sock)
    await _check(uid)
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LONGEST_ANSWER)
    try:
        writer.write(message)
        await writer.drain()
        writer.write_eof()
        untrusted = await _read_answer(reader)
    finally:
        writer.transport.abort()
    if not untrusted:
        raise PromptError("the prompt agent went away without an answer")
    return parse_answer(untrusted, f"uid {uid}")


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the end; of an endless answer, too much."""
    untrusted = await reader.read(LONGEST_ANSWER)
    while len(untrusted) <= LONGEST_ANSWER and (chunk := await reader.read(LONGEST_ANSWER)):
        untrusted += chunk
    return untrusted


def parse_answer(untrusted: bytes, by: str) -> Answer:
    """The target of `allow:TARGET`; everything else is a refusal."""
    if len(untrusted) > LONGEST_ANSWER:
        return Answer(None, by)
    line = untrusted.removesuffix(b"\n")
    if line == DENY_FOR_NOW:
        return Answer(None, by, for_now=True)
    if not line.startswith(b"allow:"):
        return Answer(None, by)
    return Answer(line.removeprefix(b"allow:").decode("ascii", "replace") or None, by)


async def notify(path: Path, notice: Notice) -> None:
    """Tell the person, wherever an agent listens; never fails."""
    with ExitStack() as open_sockets, suppress(CaissonError, OSError):
        reached = _reach_all(path, open_sockets)
        async with asyncio.TaskGroup() as group:
            for sock in reached:
                group.create_task(_tell(sock, NOTIFY + body(notice)))


async def _tell(sock: socket.socket, message: bytes) -> None:
    with suppress(OSError, TimeoutError, CaissonError):
        async with asyncio.timeout(NOTICE_TIMEOUT):
            await _check(peer_of(sock)[1])
            _, writer = await asyncio.open_unix_connection(sock=sock)
            try:
                writer.write(message)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            finally:
                writer.transport.abort()


async def _reach(path: Path, open_sockets: ExitStack) -> list[socket.socket]:
    """Connections to the agents that listen; one that is about to start is waited for."""
    try:
        async with asyncio.timeout(APPEAR_TIMEOUT):
            while True:
                if reached := _reach_all(path, open_sockets):
                    return reached
                await asyncio.sleep(_RETRY)
    except TimeoutError:
        raise NobodyError("no prompt agent is running", hint="start one: caisson prompt") from None


def _reach_all(path: Path, open_sockets: ExitStack) -> list[socket.socket]:
    reached: list[socket.socket] = []
    problem: OSError | None = None
    for place in (path, *beside(path)):
        if len(reached) == MOST_AGENTS:
            break
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(address(place))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            sock.close()
        except OSError as e:
            sock.close()
            problem = e
        else:
            reached.append(open_sockets.enter_context(sock))
    if problem is not None and not reached:
        raise NobodyError(f"the prompt agent cannot be reached: {problem.strerror}")
    return reached


def listening(path: Path) -> int:
    """How many prompt agents can be asked.

    Args:
        path: the well-known socket.
    """
    with ExitStack() as open_sockets, suppress(NobodyError):
        return len(_reach_all(path, open_sockets))
    return 0


def beside(path: Path) -> list[Path]:
    """The sockets of further agents; whether somebody listens there is not known."""
    try:
        with os.scandir(path.parent) as entries:
            names = [e.name for e in _further(path, itertools.islice(entries, _MOST_ENTRIES))]
    except OSError:
        return []
    return [path.with_name(name) for name in sorted(names)]


def _further(path: Path, entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    for entry in entries:
        if not (entry.name.startswith(f"{path.stem}-") and entry.name.endswith(path.suffix)):
            continue
        with suppress(FileNotFoundError):
            # Not a link, which could lead out of the directory.
            if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                yield entry


async def _check(uid: int) -> None:
    """The answerer is root, or a member of the group `qubes`."""
    # In a thread: a directory service may take its time.
    if uid != 0 and not await asyncio.to_thread(_is_member, uid):
        raise PermissionDeniedError(
            f"the prompt agent runs as user {uid}, who may not answer",
            hint="add the user to the group `qubes`",
        )


def _is_member(uid: int) -> bool:
    group = qubes_group()
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return False
    return group != 0 and group in os.getgrouplist(account.pw_name, account.pw_gid)
