"""Asking a person: the protocol of prompt agents (sheet `qrexec`, section 4.3), client side.

The agent is a program of the person: terminal, web console, or one that speaks the same protocol.
Its answer is bounded in size and time; whatever is not `allow:TARGET` is a refusal.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from caisson.errors import CaissonError, PermissionDeniedError
from caisson.qrexec.directories import qubes_group
from caisson.qrexec.link import address, peer_of, plain_name

ASK = b"policy.Ask dom0 name dom0\0"
NOTIFY = b"policy.Notify dom0 name dom0\0"
LONGEST_ANSWER = 65_536
ANSWER_TIMEOUT = 120.0
APPEAR_TIMEOUT = 2.0
_RETRY = 0.05


class Question(msgspec.Struct, frozen=True):
    """What a prompt agent is asked; the last two fields are ours, others ignore them.

    Args:
        source: the calling qube.
        service: the service's name.
        argument: `+` and the argument.
        targets: what the person may pick from.
        default_target: what the *policy* preselects; never the caller's wish; may be empty.
        icons: the icon of each qube, and of `@dispvm:NAME`.
        labels: the colour of each qube involved, as `0xRRGGBB`.
        isolation: the class of isolation of each qube involved, where known.
    """

    source: str
    service: str
    argument: str
    targets: list[str]
    default_target: str = ""
    icons: dict[str, str] = {}
    labels: dict[str, str] = {}
    isolation: dict[str, str] = {}


class Notice(msgspec.Struct, frozen=True):
    """What a prompt agent is told: `resolution` is `allow`, `deny` or `fail`."""

    resolution: str
    service: str
    argument: str
    source: str
    target: str


class Answer(msgspec.Struct, frozen=True):
    """A person's answer: `target` is None for a refusal; `by` is the agent's user."""

    target: str | None
    by: str


class PromptError(CaissonError):
    """Nobody could be asked, or nobody answered in time."""


async def ask(path: Path, question: Question, patience: float = ANSWER_TIMEOUT) -> Answer:
    """Ask the person; cancelling takes the question back.

    Raises:
        PromptError: no agent, no answer in time.
        PermissionDeniedError: the agent runs as a user who may not answer.
    """
    try:
        async with asyncio.timeout(APPEAR_TIMEOUT):
            sock = await _connect(path)
    except TimeoutError:
        raise PromptError("no prompt agent is running", hint="start one: caisson prompt") from None
    with _closing(sock) as (_, uid):
        await _check(uid)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LONGEST_ANSWER)
        try:
            async with asyncio.timeout(patience):
                writer.write(ASK + msgspec.json.encode(question, enc_hook=plain_name))
                await writer.drain()
                writer.write_eof()
                untrusted = await reader.read(LONGEST_ANSWER)
                while chunk := await reader.read(LONGEST_ANSWER):
                    untrusted += chunk
                    if len(untrusted) > LONGEST_ANSWER:
                        return Answer(None, f"uid {uid}")
        except TimeoutError:
            raise PromptError(f"nobody answered within {patience:.0f} s") from None
        except OSError as e:
            raise PromptError(f"the prompt agent failed: {e.strerror}") from None
        finally:
            writer.transport.abort()
    return Answer(parse_answer(untrusted), f"uid {uid}")


def parse_answer(untrusted: bytes) -> str | None:
    """The target of `allow:TARGET`; None for everything else."""
    text = untrusted.decode("ascii", "replace")
    text = text.removesuffix("\n")
    if not text.startswith("allow:"):
        return None
    return text.removeprefix("allow:") or None


async def notify(path: Path, notice: Notice) -> None:
    """Tell the person, if somebody listens; never fails."""
    try:
        async with asyncio.timeout(5):
            sock = _try_connect(path)
            with _closing(sock) as (_, uid):
                await _check(uid)
                _, writer = await asyncio.open_unix_connection(sock=sock)
                writer.write(NOTIFY + msgspec.json.encode(notice, enc_hook=plain_name))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError, CaissonError):
        return


async def _connect(path: Path) -> socket.socket:
    while True:
        try:
            return _try_connect(path)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            await asyncio.sleep(_RETRY)
        except OSError as e:
            raise PromptError(f"the prompt agent cannot be reached: {e.strerror}") from None


def _try_connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(address(path))
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _closing(sock: socket.socket) -> Iterator[tuple[int, int]]:
    try:
        pid, uid, _ = peer_of(sock)
        yield pid, uid
    finally:
        sock.close()


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
