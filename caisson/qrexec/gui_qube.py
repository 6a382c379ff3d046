"""Asking a person who sits in a GUI qube: its services `policy.Ask` and `policy.Notify`.

The broker calls them as the admin qube would (sheet `qrexec`, section 4.3), through its own socket
for calls of the admin qube: so such a call has an audit record and every bound that others have.
The qube's answer is taken for the qubes that it is the GUI qube of, and for no others.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from caisson.names import shown
from caisson.qrexec import wire
from caisson.qrexec.link import address
from caisson.qrexec.prompt import (
    ANSWER_TIMEOUT,
    LONGEST_ANSWER,
    NOTICE_TIMEOUT,
    Answer,
    NobodyError,
    Notice,
    PromptError,
    Question,
    body,
    parse_answer,
)

_LONGEST_MESSAGE = 4096
_PIPES = 3


class _Pipes(NamedTuple):
    stdin: BinaryIO
    stdout: BinaryIO
    stderr: BinaryIO


async def ask(
    path: Path, qube: str, question: Question, patience: float = ANSWER_TIMEOUT
) -> Answer:
    """Ask in a GUI qube; cancelling takes the question back.

    Args:
        path: the socket for calls of the admin qube.
        qube: the GUI qube.
        question: what is asked.
        patience: seconds in which somebody must answer.

    Raises:
        NobodyError: the qube does not run, or has no such service.
        PromptError: nobody answered in time.
    """
    try:
        async with asyncio.timeout(patience), _service(path, qube, "policy.Ask") as pipes:
            untrusted = await _exchange(pipes, body(question))
    except TimeoutError:
        raise PromptError(f"nobody answered within {patience:.0f} s") from None
    except OSError as e:
        raise PromptError(f"GUI qube `{qube}` cannot be asked: {e.strerror}") from None
    if not untrusted:
        raise NobodyError(f"GUI qube `{qube}` gave no answer")
    return parse_answer(untrusted, f"qube {qube}")


async def notify(path: Path, qube: str, notice: Notice) -> None:
    """Tell the person in a GUI qube, if it runs; never fails."""
    with contextlib.suppress(OSError, TimeoutError, PromptError):
        async with (
            asyncio.timeout(NOTICE_TIMEOUT),
            _service(path, qube, "policy.Notify") as pipes,
        ):
            await _exchange(pipes, body(notice))


async def _exchange(pipes: _Pipes, message: bytes) -> bytes:
    """Write the message and the end of the input; read the answer to its end, bounded."""
    for pipe in pipes:
        os.set_blocking(pipe.fileno(), False)
    # A service that does not read it all may answer all the same.
    with contextlib.suppress(BrokenPipeError):
        await _write(pipes.stdin.fileno(), message)
    pipes.stdin.close()
    untrusted = b""
    while len(untrusted) <= LONGEST_ANSWER:
        try:
            chunk = os.read(pipes.stdout.fileno(), LONGEST_ANSWER)
        except BlockingIOError:
            await _readable(pipes.stdout.fileno())
            continue
        if not chunk:
            break
        untrusted += chunk
    return untrusted


async def _write(descriptor: int, message: bytes) -> None:
    loop = asyncio.get_running_loop()
    rest = memoryview(message)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            await _told(loop.add_writer, loop.remove_writer, descriptor)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    await _told(loop.add_reader, loop.remove_reader, descriptor)


async def _told(
    begin: Callable[[int, Callable[[], None]], None], end: Callable[[int], bool], descriptor: int
) -> None:
    """Wait until the loop says that the descriptor is ready."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    begin(descriptor, tell)
    try:
        await ready
    finally:
        end(descriptor)


@asynccontextmanager
async def _service(path: Path, qube: str, service: str) -> AsyncIterator[_Pipes]:
    """Call a service as the admin qube; its pipes, as long as the call lasts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
        sock.connect(address(path))
        sock.send(f"D{qube}\0\0QUBESRPC {service} dom0".encode())
        message, descriptors = await _receive(sock)
        with contextlib.ExitStack() as pipes:
            files = [pipes.enter_context(os.fdopen(d, "rb", 0)) for d in descriptors]
            if message[:1] != wire.ACCEPTED or len(files) != _PIPES:
                reason = shown(message.partition(b"\0")[2]) or "refused"
                raise NobodyError(f"GUI qube `{qube}` cannot be asked: {reason}")
            yield _Pipes(*files)


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message of the broker's, and the descriptors that came with it."""
    await _readable(sock.fileno())
    descriptors = array.array("i")
    room = socket.CMSG_SPACE(_PIPES * descriptors.itemsize)
    message, ancillary, _, _ = sock.recvmsg(_LONGEST_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, raw in ancillary:
        descriptors.frombytes(raw)
    return message, list(descriptors)
