"""Between the agent, the programs of the admin qube and whoever decides: requests and ports.

A request of the qube is pending until it is connected or refused; a connection holds its port
until the agent says that it ended (sheet `qrexec`, section 1.4).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Protocol

from caisson.errors import ProtocolError
from caisson.names import shown
from caisson.qrexec import sparing
from caisson.qrexec.vchan import frames
from caisson.qrexec.vchan.control import Event, Greeted, Terminated
from caisson.qrexec.vchan.frames import Kind
from caisson.qrexec.vchan.local import Client, Command
from caisson.qrexec.vchan.ports import Ports
from caisson.qrexec.vchan.untrusted import Requested, Unacceptable

MOST_PENDING = 256
MOST_UNSENT = 1024 * 1024
"""Bytes that may wait for an agent that does not read; beyond that no command is taken."""
CONTROL_RING = 4096
"""An upstream agent on unix sockets waits for ever for the rest of a longer body."""

Transmit = Callable[[bytes], int]
"""Sends to an agent; tells how many bytes it has not taken yet."""

_DEFAULT_USER = b"DEFAULT:"


class Pending:
    """A request that is neither connected nor refused yet.

    Args:
        request: what the qube asks for.
    """

    __slots__ = ("answer", "connected", "over", "request", "task")

    def __init__(self, request: Requested) -> None:
        self.request = request
        self.answer = b""
        """The name by which a program of the admin qube connects it; empty: none may."""
        self.connected = self.over = False
        self.task: asyncio.Task[None] | None = None


class Decider(Protocol):
    """Who decides requests."""

    def begin(self, pending: Pending) -> None:
        """Decide; later call the switchboard's `connect` or `refuse`."""

    def terminated(self, domain: int, port: int) -> bool:
        """A connection with this qube ended; whether the port is free by that, if it is ours."""

    def close(self) -> None:
        """The agent is gone."""


class Switchboard:
    """What a daemon knows of its qube while it runs.

    Args:
        name: the qube.
        domain: its id.
        default_user: who runs commands for `DEFAULT`.
        longest_body: bytes of the longest body that the agent takes.
    """

    def __init__(self, name: str, domain: int, default_user: str, longest_body: int) -> None:
        self.name = name
        self.domain = domain
        self.ports = Ports(domain)
        self._default_user = default_user.encode()
        self._longest = longest_body
        self._transmit: Transmit | None = None
        self._decider: Decider | None = None
        self._pending: dict[bytes, Pending] = {}
        self._answers: dict[bytes, Pending] = {}
        self._numbers = itertools.count(1)
        self._clients: dict[int, Client] = {}

    def begin(self, transmit: Transmit, decider: Decider) -> None:
        """The agent is there.

        Args:
            transmit: sends to it.
            decider: decides what it asks for.
        """
        self._transmit = transmit
        self._decider = decider

    def end(self) -> None:
        """The agent is gone: requests are forgotten, ports are not."""
        self._transmit = None
        if self._decider is not None:
            self._decider.close()
            self._decider = None
        for pending in tuple(self._pending.values()):
            self._forget(pending)
        self._clients.clear()

    # From the agent.

    def handle(self, event: Event) -> None:
        """What the agent says."""
        match event:
            case Requested():
                self._requested(event)
            case Unacceptable():
                self._tell(event.untrusted_ident, event.reason)
                self._send(frames.refused(event.untrusted_ident))
            case Terminated(domain, port):
                self._terminated(domain, port)
            case Greeted():
                pass

    def _requested(self, request: Requested) -> None:
        if former := self._pending.get(request.ident):
            # The agent closed the earlier one and used its name again: its answer must not
            # reach the new one.
            self._forget(former)
        if len(self._pending) >= MOST_PENDING or self._decider is None:
            self._tell(request.ident, "too many requests are pending")
            self._send(frames.refused(frames.padded(request.ident, frames.IDENT_SIZE)))
            return
        pending = Pending(request)
        self._pending[request.ident] = pending
        self._decider.begin(pending)

    def _terminated(self, domain: int, port: int) -> None:
        free = self._decider is None or self._decider.terminated(domain, port)
        if self.ports.peer_of(port) != domain:
            return
        if client := self._clients.pop(port, None):
            client.port = None
            client.close()
        if free:
            self.ports.release(domain, port)

    def _tell(self, ident: bytes, reason: str) -> None:
        sparing.warning("a request is refused", qube=self.name, ident=shown(ident), reason=reason)

    # From whoever decides.

    def offer(self, pending: Pending) -> bytes:
        """Let a program of the admin qube connect an allowed request.

        Returns:
            Its name for that program, which no other request ever has: an agent may use an ident
            again, while a program that was started for the earlier request is still on its way.
        """
        pending.answer = b"REQUEST%d" % next(self._numbers)
        self._answers[pending.answer] = pending
        return pending.answer

    def connect(self, pending: Pending, domain: int, port: int) -> None:
        """Have the caller wait for its service there."""
        pending.connected = not pending.over
        if self._forget(pending):
            self._send(frames.connect(domain, port, pending.request.ident))

    def refuse(self, pending: Pending) -> None:
        """Tell the caller no."""
        if self._forget(pending):
            ident = frames.padded(pending.request.ident, frames.IDENT_SIZE)
            self._send(frames.refused(ident))

    def _forget(self, pending: Pending) -> bool:
        """A request is not pending any more; whether it was."""
        if pending.over:
            return False
        pending.over = True
        del self._pending[pending.request.ident]
        self._answers.pop(pending.answer, None)
        task, pending.task = pending.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        return True

    # From programs of the admin qube.

    def command(self, client: Client, command: Command) -> None:
        """Do what a client wants.

        Raises:
            ProtocolError: it cannot be done; the client is to be dropped.
        """
        if self._transmit is None or self._transmit(b"") > MOST_UNSENT:
            raise ProtocolError(f"the agent of `{self.name}` does not take commands")
        if command.kind is Kind.SERVICE_CONNECT:
            self._connect(client, command)
        else:
            self._execute(client, command)

    def ended(self, client: Client) -> None:
        """A client is gone; its connection goes on."""
        if client.port is not None:
            self._clients.pop(client.port, None)

    def _execute(self, client: Client, command: Command) -> None:
        text = command.text
        if text.startswith(_DEFAULT_USER):
            text = self._default_user + text[len(_DEFAULT_USER) - 1 :]
        if frames.PARAMS_SIZE + len(text) + 1 > self._longest:
            raise ProtocolError(f"the command is longer than the {self._longest} bytes of an agent")
        port = command.port or self._port_for(client, command)
        self._send(frames.execute(command.kind, command.domain, port, text))

    def _connect(self, client: Client, command: Command) -> None:
        pending = self._answers.get(command.text)
        if pending is None:
            raise ProtocolError(f"no request `{shown(command.text)}` waits to be connected")
        port = command.port or self._port_for(client, command)
        self.connect(pending, command.domain, port)

    def _port_for(self, client: Client, command: Command) -> int:
        port = self.ports.allocate(command.domain)
        if port is None:
            raise ProtocolError(f"no port is left for a connection with domain {command.domain}")
        client.port = port
        self._clients[port] = client
        client.reply(command.kind, self.domain, port)
        return port

    def _send(self, frame: bytes) -> None:
        if self._transmit is not None:
            self._transmit(frame)
