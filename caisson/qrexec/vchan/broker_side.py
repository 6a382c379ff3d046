"""A connection to the broker, as a program in a qube has it (`caisson.qrexec.wire`)."""

from __future__ import annotations

import array
import asyncio
import os
import re
import socket
from pathlib import Path

import msgspec

from caisson.errors import CaissonError, DaemonError, ProtocolError
from caisson.names import DOM0, QubeName, UserName, shown
from caisson.qrexec.link import address
from caisson.qrexec.wire import (
    JUST_START,
    LONGEST,
    NO_GUI,
    WITHOUT_SESSION,
    Code,
    parse_service,
)

PIPES = 3
_INT = array.array("i").itemsize
_FLAGS = frozenset({JUST_START, WITHOUT_SESSION})
_CODE = re.compile(rb"X([0-9]{1,3})")


class Work(msgspec.Struct, frozen=True):
    """A call that the qube's agent is to serve.

    Args:
        id: names the call in the answer.
        command: `USER:COMMAND`, as an agent takes it.
        alone: whether nobody waits for its end.
        source: the qube that calls.
    """

    id: int
    command: str
    alone: bool
    source: str


class BrokerSide:
    """One connection.

    Args:
        path: the broker's socket for the qube.

    Raises:
        DaemonError: the broker is not there.
    """

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._sock.connect(address(path))
        except OSError as e:
            self._sock.close()
            raise DaemonError(
                f"the broker's socket cannot be reached: {(e.strerror or str(e)).lower()}",
                hint="start the daemons: caisson up",
            ) from None

    def close(self) -> None:
        """Hang up."""
        # Before another socket has its number: a reader that is left behind would stand for that.
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    async def send(self, message: bytes) -> None:
        """Send one message.

        Raises:
            OSError: the broker is gone.
        """
        await asyncio.get_running_loop().sock_sendall(self._sock, message)

    async def receive(self) -> tuple[bytes, list[int]]:
        """One message and its descriptors, which are the caller's; empty at the end."""
        while True:
            try:
                # `socket.recv_fds` of Python 3.11 drops the flag, and programs would inherit them.
                data, ancillary, _, _ = self._sock.recvmsg(
                    LONGEST, socket.CMSG_SPACE(PIPES * _INT), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._readable()
            except OSError:
                return b"", []
            else:
                descriptors = array.array("i")
                for _, _, rights in ancillary:
                    descriptors.frombytes(rights)
                return data, list(descriptors)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._sock, _done, ready)
        try:
            await ready
        finally:
            if self._sock.fileno() >= 0:
                loop.remove_reader(self._sock)


def close_all(descriptors: list[int]) -> None:
    """Close descriptors that came with a message, once."""
    while descriptors:
        os.close(descriptors.pop())


def exit_code(message: bytes) -> int:
    """The code in the broker's word that a call ended; anything else is a lost call."""
    found = _CODE.fullmatch(message)
    return int(found[1]) if found and int(found[1]) <= Code.LOST else Code.LOST


def parse_work(message: bytes) -> Work:
    """A call to the agent; its source is the broker's word, and checked all the same.

    Raises:
        ProtocolError: it is none.
    """
    try:
        fields = message[1:].decode("ascii").split("\0")
        match message[:1], fields:
            case b"S", [number, user, descriptor, source, flags] if _FLAGS.issuperset(flags):
                parse_service(descriptor)
                before = NO_GUI if WITHOUT_SESSION in flags else ""
                command = f"{before}QUBESRPC {descriptor} {QubeName.parse(source)}"
                return Work(int(number), f"{_user(user)}:{command}", JUST_START in flags, source)
            case b"M", [number, user, command] if command:
                return Work(int(number), f"{_user(user)}:{command}", alone=False, source=DOM0)
    except (CaissonError, ValueError) as e:
        raise ProtocolError(f"a call of the broker is malformed: {shown(str(e))}") from None
    raise ProtocolError(f"unknown message `{shown(message[:1])}` of the broker")


def _user(user: str) -> str:
    return "DEFAULT" if user in {"", "DEFAULT"} else UserName.parse(user)


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
