"""One qube as the broker sees it: its listening socket, its agent, its clients, its calls.

Bounds hold per qube, so that what a qube does to them it does to itself alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from pathlib import Path
from typing import Protocol

from caisson.errors import CaissonError, ProtocolError
from caisson.names import QubeName
from caisson.qrexec import sparing
from caisson.qrexec.calls import Call
from caisson.qrexec.channel import Channel
from caisson.qrexec.link import address
from caisson.qrexec.wire import (
    ADMITTED,
    AdminCall,
    ClientCall,
    Exited,
    Hello,
    SetUpEnded,
    not_admitted,
    parse_admin,
    parse_agent,
    parse_client,
)

BACKLOG = 1024
ACCEPTS_A_TURN = 8
MOST_CONNECTIONS = 4096
MOST_CALLS = 2048
MOST_SILENT = 64
MOST_UNDECIDED = 16
MOST_APPLICANTS = 16
FIRST_MESSAGE_TIMEOUT = 10.0
MOST_WAITING = 4096
# A client that does not read two short messages is closed; calls wait for an agent elsewhere.
AGENT_QUEUE = 8
CLIENT_QUEUE = 0


class Waiting:
    """Calls for an agent that is behind; callers take turns, so that none waits for a flood.

    They hold no pipes yet: descriptors in an unread queue count against the whole broker.
    """

    def __init__(self) -> None:
        self._by_source: dict[str, deque[tuple[float, Call]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, deadline: float, call: Call) -> None:
        """Let a call wait."""
        self._by_source.setdefault(call.source, deque()).append((deadline, call))
        self._count += 1

    def next(self) -> Call:
        """The call whose turn it is; there must be one."""
        source = next(iter(self._by_source))
        calls = self._by_source.pop(source)
        _, call = calls.popleft()
        if calls:
            self._by_source[source] = calls
        self._count -= 1
        return call

    def expired(self, now: float) -> list[Call]:
        """Take out the calls that waited too long."""
        found: list[Call] = []
        for source, calls in tuple(self._by_source.items()):
            while calls and calls[0][0] <= now:
                found.append(calls.popleft()[1])
            if not calls:
                del self._by_source[source]
        self._count -= len(found)
        return found

    def take_all(self) -> list[Call]:
        """Take out all calls."""
        return self.expired(float("inf"))


class Owner(Protocol):
    """What an endpoint asks of the broker."""

    def allowance(self) -> int:
        """How many connections a qube may hold now."""

    def request(
        self, endpoint: Endpoint, channel: Channel, message: ClientCall | AdminCall
    ) -> None:
        """A client's call."""

    def malformed(self, endpoint: Endpoint, channel: Channel, error: CaissonError) -> None:
        """A message that is none."""

    def examine(self, endpoint: Endpoint, applicant: Channel, hello: Hello) -> None:
        """Have qubesd look at a process that claims to be the agent."""

    def exited(self, endpoint: Endpoint, message: Exited) -> None:
        """The agent says that a service ended."""

    def set_up(self, endpoint: Endpoint, pid: int, message: SetUpEnded) -> None:
        """The agent says that the set-up of its qube is over."""

    def agent_gone(self, endpoint: Endpoint) -> None:
        """The admitted agent's session ended."""

    def silent(self, endpoint: Endpoint) -> None:
        """A new connection: call `expire` until none is silent."""

    def connections_changed(self, by: int) -> None:
        """The number of open connections changed."""

    def paused(self, endpoint: Endpoint) -> None:
        """The endpoint accepts nothing until `resume`."""


class Endpoint:
    """The broker's side of one qube.

    Args:
        owner: the broker.
        name: the qube.
        path: its listening socket.
        mode: the socket's mode.
    """

    def __init__(self, owner: Owner, name: QubeName, path: Path, mode: int) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._mode = mode
        self._listener: socket.socket | None = None
        self._accepting = False
        self._sessions: set[Channel] = set()
        # Until when each must have spoken.
        self._silent: dict[Channel, float] = {}
        self._applicants: deque[tuple[Channel, Hello]] = deque()
        self._applicant: tuple[Channel, Hello] | None = None
        self._agent_hello: Hello | None = None
        self._set_up = False
        self.name = name
        self.agent: Channel | None = None
        self.calls: set[Call] = set()
        self.serving: dict[int, Call] = {}
        self.undecided: deque[Call] = deque()
        self.waiting = Waiting()
        self.served = False

    @property
    def is_admin(self) -> bool:
        """Whether this is the admin qube, whose calls are not policed."""
        return self.name == "dom0"

    @property
    def fresh(self) -> bool:
        """Whether the agent knows of no call that it was not given in this session."""
        return self._agent_hello is not None and self._agent_hello.report.fresh

    @property
    def reachable(self) -> bool:
        """Whether the socket is still where the qube looks for it."""
        return self._path.is_socket()

    def listen(self) -> None:
        """Bind the socket, in place of an earlier broker's.

        Raises:
            OSError: the directory is missing or not ours.
        """
        if self._listener is not None:
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.bind(address(self._path))
            self._path.chmod(self._mode)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        self._listener = sock
        self.resume()

    def close(self) -> None:
        """Close the socket and every session."""
        if self._listener is None:
            return
        self._pause()
        self._listener.close()
        self._listener = None
        with contextlib.suppress(OSError):
            self._path.unlink()
        for channel in tuple(self._sessions):
            self.end_session(channel)
        self._applicants.clear()
        self._applicant = None
        self.agent = None

    # Connections.

    def resume(self) -> None:
        """Accept again, if there is room."""
        if self._listener is not None and not self._accepting and not self._full():
            self._accepting = True
            self._loop.add_reader(self._listener, self._acceptable)

    def _pause(self) -> None:
        if self._accepting and self._listener is not None:
            self._accepting = False
            self._loop.remove_reader(self._listener)

    def _full(self) -> bool:
        return (
            len(self._silent) >= MOST_SILENT
            or len(self.undecided) >= MOST_UNDECIDED
            or len(self._sessions) >= min(MOST_CONNECTIONS, self._owner.allowance())
        )

    def _acceptable(self) -> None:
        # A flood comes in one by one.
        for _ in range(1 if self.undecided else ACCEPTS_A_TURN):
            if self._listener is None:
                return
            if self._full():
                self._pause()
                self._owner.paused(self)
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as e:
                # Out of descriptors: wait until some are free.
                sparing.warning("cannot accept", qube=self.name, error=e.strerror)
                self._pause()
                self._owner.paused(self)
                return
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            channel = Channel(sock, CLIENT_QUEUE, _ignore, _ignore)
        except OSError:
            sock.close()
            return
        channel.handle(
            lambda message: self._first(channel, message),
            lambda reason: self._left(channel, reason),
            CLIENT_QUEUE,
        )
        self._sessions.add(channel)
        self._silent[channel] = self._loop.time() + FIRST_MESSAGE_TIMEOUT
        self._owner.connections_changed(1)
        self._owner.silent(self)
        channel.start()

    def end_session(self, channel: Channel) -> None:
        """Close a session now."""
        channel.close()
        self.forget(channel)

    def forget(self, channel: Channel) -> None:
        """The session is closed, or will be when its last words are sent."""
        if channel in self._sessions:
            self._sessions.discard(channel)
            self._silent.pop(channel, None)
            self._owner.connections_changed(-1)
            self.resume()

    def expire(self, now: float) -> bool:
        """Close the sessions that should have spoken by now; whether others are silent."""
        for channel in [c for c, deadline in self._silent.items() if deadline <= now]:
            sparing.info("a silent connection is closed", qube=self.name, pid=channel.pid)
            self.end_session(channel)
        return bool(self._silent)

    def _left(self, channel: Channel, reason: str) -> None:
        if reason:
            self._complain(channel, reason)
        self.forget(channel)

    def _complain(self, channel: Channel, reason: str) -> None:
        sparing.warning("a session is closed", qube=self.name, pid=channel.pid, reason=reason)

    def _first(self, channel: Channel, untrusted: bytes) -> None:
        """The first message tells the role."""
        self._silent.pop(channel, None)
        try:
            message = parse_admin(untrusted) if self.is_admin else parse_client(untrusted)
        except CaissonError as e:
            self._owner.malformed(self, channel, e)
        else:
            if isinstance(message, Hello):
                self._apply(channel, message)
            else:
                self._owner.request(self, channel, message)
        self.resume()

    # The agent.

    def _apply(self, channel: Channel, hello: Hello) -> None:
        if len(self._applicants) >= MOST_APPLICANTS:
            self.end_session(channel)
            return
        channel.handle(
            lambda _: self._refuse_applicant(channel, "wait to be admitted"),
            lambda reason: self._applicant_left(channel, reason),
            AGENT_QUEUE,
        )
        self._applicants.append((channel, hello))
        self._examine_next()

    def _examine_next(self) -> None:
        """One at a time, so that a crowd of impostors does not become a crowd of questions."""
        while self._applicant is None and self._applicants:
            self._applicant = self._applicants.popleft()
            if self._applicant[0].open:
                self._owner.examine(self, *self._applicant)
            else:
                self._applicant = None

    def examine_again(self) -> None:
        """Let a new qubesd hear of the agent, and of who claims to be it."""
        if self.agent is not None and self._agent_hello is not None:
            self._owner.examine(self, self.agent, self._agent_hello)
        if self._applicant is not None:
            self._owner.examine(self, *self._applicant)

    def admit(self, pid: int) -> bool:
        """The process of this id is the agent; whether one is admitted by this."""
        if self._applicant is None or self._applicant[0].pid != pid:
            return False
        channel, hello = self._applicant
        self._applicant = None
        former, self.agent = self.agent, channel
        self._agent_hello = hello
        self._set_up = False
        if former is not None:
            self.end_session(former)
        channel.handle(
            lambda message: self._agent_said(channel, message),
            lambda reason: self._agent_left(channel, reason),
            AGENT_QUEUE,
        )
        channel.send(ADMITTED)
        self._examine_next()
        return True

    def reject(self, pid: int, reason: str) -> None:
        """The process of this id is not served."""
        if self._applicant is not None and self._applicant[0].pid == pid:
            self._refuse_applicant(self._applicant[0], reason)
        elif self.agent is not None and self.agent.pid == pid:
            agent, self.agent = self.agent, None
            agent.send(not_admitted(reason))
            self.end_session(agent)
            self._owner.agent_gone(self)

    def _refuse_applicant(self, channel: Channel, reason: str) -> None:
        sparing.warning("not the agent", qube=self.name, pid=channel.pid, reason=reason)
        channel.send(not_admitted(reason))
        channel.finish()
        self.forget(channel)
        self._applicant_done(channel)

    def _applicant_left(self, channel: Channel, reason: str) -> None:
        self._left(channel, reason)
        self._applicant_done(channel)

    def _applicant_done(self, channel: Channel) -> None:
        if self._applicant is not None and self._applicant[0] is channel:
            self._applicant = None
            self._examine_next()

    def _agent_said(self, channel: Channel, untrusted: bytes) -> None:
        try:
            message = parse_agent(untrusted)
            if isinstance(message, SetUpEnded) and self._set_up:
                raise ProtocolError("the set-up has ended twice")
        except CaissonError as e:
            self._complain(channel, str(e))
            self.end_session(channel)
            self._agent_left(channel, "")
            return
        if isinstance(message, SetUpEnded):
            self._set_up = True
            self._owner.set_up(self, channel.pid, message)
        else:
            self._owner.exited(self, message)

    def _agent_left(self, channel: Channel, reason: str) -> None:
        self._left(channel, reason)
        if self.agent is channel:
            self.agent = None
            self._owner.agent_gone(self)


def _ignore(_: object) -> None:
    return
