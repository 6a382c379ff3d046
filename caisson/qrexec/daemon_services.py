"""The broker's half of calls for the admin qube: hands them over to qubesd."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from caisson.errors import ProtocolError
from caisson.qrexec import wire
from caisson.qrexec.admin_messages import Handover, Shares, encode, read_done, split_target
from caisson.qrexec.calls import Call, CallError
from caisson.qrexec.channel import Channel
from caisson.qrexec.link import address, peer_of

_log = structlog.get_logger("broker")


class DaemonServices:
    """Services that qubesd itself is the server of; one connection to it for each call.

    A connection outlives its call: it ends when qubesd hangs up, and counts until then, so that
    callers that come and leave cannot make more work than those that stay.

    Args:
        path: qubesd's socket.
        uid: qubesd's user.
        most: how many connections there may be.
    """

    def __init__(self, path: Path, uid: int, most: int) -> None:
        self._path = path
        self._uid = uid
        self._shares = Shares(most)
        self._channels: dict[int, Channel] = {}

    def hand_over(
        self,
        call: Call,
        requested: str,
        descriptors: Sequence[int],
        on_end: Callable[[int | None], None],
    ) -> None:
        """Give a call to qubesd.

        Args:
            call: the call.
            requested: the target that the caller asked for, as the policy takes it.
            descriptors: the service's ends of the pipes; they stay the caller's to close.
            on_end: called once, later, with the exit code; None if qubesd ended without one.

        Raises:
            CallError: qubesd does not take it.
        """
        if not self._shares.take(call.source):
            raise CallError("the qube has too many calls to the admin qube in flight")
        try:
            channel = self._connect(call, on_end)
        except OSError as e:
            self._shares.give_back(call.source)
            raise CallError(f"qubesd takes no calls: {e.strerror}") from None
        kind, text = split_target(requested)
        argument, just_start = f"+{call.argument}", wire.JUST_START in call.flags
        message = Handover(
            call.id, call.service, argument, call.told_source, kind, text, just_start
        )
        if not channel.send(encode(message), descriptors):
            channel.close()
            self._shares.give_back(call.source)
            raise CallError("qubesd does not take the call")
        self._channels[call.id] = channel
        # In a turn of its own: the call may end by it.
        asyncio.get_running_loop().call_soon(channel.start)

    def _connect(self, call: Call, on_end: Callable[[int | None], None]) -> Channel:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(address(self._path))
            self._check(sock)
            channel = Channel(sock, 0, _ignore, _ignore)
        except BaseException:
            sock.close()
            raise

        def ended(code: int | None) -> None:
            channel.close()
            del self._channels[call.id]
            self._shares.give_back(call.source)
            on_end(code)

        def answered(message: bytes) -> None:
            try:
                code = read_done(message).code
            except ProtocolError as e:
                _log.error("qubesd broke the protocol of calls", error=e.message)
                ended(None)
            else:
                ended(code)

        channel.handle(answered, lambda _: ended(None), 0)
        return channel

    def _check(self, sock: socket.socket) -> None:
        if peer_of(sock)[1] != self._uid:
            raise PermissionError(errno.EPERM, "it is not qubesd that listens")

    def leave(self, call: Call) -> None:
        """The call ended on this side: tell qubesd, if it serves it."""
        if (channel := self._channels.get(call.id)) is not None:
            channel.leave()


def _ignore(_: object) -> None:
    return
