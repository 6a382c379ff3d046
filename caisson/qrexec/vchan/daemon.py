"""One qube's daemon: waits for the agent, serves it, waits for it again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from caisson.errors import CaissonError
from caisson.names import QubeName, UserName
from caisson.paths import Paths
from caisson.qrexec import sparing
from caisson.qrexec.saying import Saying
from caisson.qrexec.vchan import frames, streams
from caisson.qrexec.vchan.broker_side import Work
from caisson.qrexec.vchan.control import Event, Greeted, Session
from caisson.qrexec.vchan.deciding import Policy, PolicyProgram, PolicySocket
from caisson.qrexec.vchan.frames import MalformedError
from caisson.qrexec.vchan.gateway import Gateway
from caisson.qrexec.vchan.local import Clients
from caisson.qrexec.vchan.peers import Admin, Peers
from caisson.qrexec.vchan.programs import Program
from caisson.qrexec.vchan.streams import Places, Stream
from caisson.qrexec.vchan.switchboard import CONTROL_RING, Decider, Switchboard, Transmit

HELLO_PATIENCE = 60.0
"""Seconds that an agent has for its hello when its stream is there."""
SERVICE_PATIENCE = 5
"""Seconds that the caller of a service of the admin qube has for its side of the link."""
LAST_PATIENCE = 10.0
"""Seconds for what still has to be told to qubesd when the daemon ends."""
_SOCKET = "qrexec"
_PAUSE = 0.05
_MUCH_UNSENT = 262_144
"""Bytes that an agent does not take before nothing more is read of it."""

_log = structlog.get_logger("broker")


class Settings(msgspec.Struct, frozen=True):
    """What one daemon is about.

    Args:
        paths: the instance.
        directory: where the daemons have their sockets.
        domain: the qube's id.
        name: the qube.
        uuid: its uuid, with `uuid:` before it.
        default_user: who runs commands for `DEFAULT`.
        policy_program: asked in place of the policy socket; None: the socket.
        places: where the streams are.
        service_user: who runs services of the admin qube; empty: whoever runs the daemon.
    """

    paths: Paths
    directory: Path
    domain: int
    name: QubeName
    uuid: str
    default_user: UserName
    policy_program: Path | None
    places: Places
    service_user: str = ""


class _Line:
    """The stream to an agent, and the session on it.

    Args:
        descriptor: of the stream.
        again: whether another agent may follow on it.
        begin: called with the hello, and with what sends to the agent.
        handle: called with all that the agent says then.
    """

    def __init__(
        self,
        descriptor: int,
        again: bool,
        begin: Callable[[Transmit, Greeted], None],
        handle: Callable[[Event], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        """The agent's end; or the error that it made."""
        self._begin = begin
        self._handle = handle
        self._session = Session(again=again)
        self._stream = Stream(descriptor, self._said, self._gone)
        self._patience = loop.call_later(HELLO_PATIENCE, self._too_slow)

    def close(self) -> None:
        """Hang up."""
        self._patience.cancel()
        self._stream.close()

    def _transmit(self, data: bytes) -> int:
        self._stream.send(data)
        if self._stream.unsent > _MUCH_UNSENT:
            self._stream.pause_until_sent()
        return self._stream.unsent

    def _said(self, untrusted: bytes) -> None:
        try:
            for event in _of_the_last_agent(tuple(self._session.receive(untrusted))):
                if isinstance(event, Greeted):
                    self._greeted(event)
                else:
                    self._handle(event)
        except Exception as e:  # noqa: BLE001 - what cannot be handled ends the daemon
            self._end(e)

    def _greeted(self, event: Greeted) -> None:
        if self._patience.cancelled():
            # Another agent. One that says hello all the time is not to keep us busy.
            self._stream.rest(_PAUSE)
        self._patience.cancel()
        self._begin(self._transmit, event)

    def _gone(self) -> None:
        try:
            self._session.end()
        except MalformedError as e:
            self._end(e)
        self._end(None)

    def _too_slow(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        self.close()
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def _of_the_last_agent(events: tuple[Event, ...]) -> tuple[Event, ...]:
    """What counts of what came at once: nothing that is followed by another agent's hello."""
    for at in range(len(events) - 1, 0, -1):
        if isinstance(events[at], Greeted):
            return events[at:]
    return events


class Daemon:
    """Serves one qube.

    Args:
        settings: what it is about.
        admin: calls qubesd.
        connected: called when the agent is there for the first time, and can be called.
    """

    def __init__(self, settings: Settings, admin: Admin, connected: Callable[[], None]) -> None:
        self._settings = settings
        self._admin = admin
        self._connected = connected
        self._tasks: set[asyncio.Task[None]] = set()
        self._stream: Stream | None = None
        upstream_may_be_there = settings.places.prefix is None
        self._board = Switchboard(
            settings.name,
            settings.domain,
            settings.default_user,
            CONTROL_RING if upstream_may_be_there else frames.LONGEST_COMMAND_BODY,
        )
        self._clients = Clients(
            settings.directory,
            settings.domain,
            (settings.name, settings.uuid),
            self._board.command,
            self._board.ended,
        )
        # Once for all: that the broker is away is no reason to let others decide.
        self._door = _door(settings.paths.socket_dir(settings.name))
        self._by_broker = self._door is not None
        # One for all sessions: the disposables of an agent that left count for the next one.
        self._by_policy = self._peers()

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            MalformedError: the agent broke the protocol.
            CaissonError: the stream or the socket cannot be had.
        """
        place = self._settings.places.of(self._settings.domain, 0, frames.CONTROL_PORT)
        try:
            while True:
                await self._serve(await streams.connect(place))
                await asyncio.sleep(_PAUSE)  # somebody may accept and hang up, all the time
        finally:
            await self._finish()

    async def _finish(self) -> None:
        """End all tasks; what they begin at their end, such as to kill a disposable, is done."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=LAST_PATIENCE)
        if self._door is not None:
            os.close(self._door)
            self._door = None

    async def _serve(self, descriptor: int) -> None:
        """One session with an agent, from its hello to its end."""
        again = self._settings.places.prefix is not None
        line = _Line(descriptor, again, self._begin, self._board.handle)
        try:
            await line.ended
            sparing.warning("the agent is gone; waiting for it", qube=self._settings.name)
        finally:
            self._end_session()
            line.close()

    def _begin(self, transmit: Transmit, greeted: Greeted) -> None:
        """The agent said hello: from now on its qube can call, and be called."""
        self._end_session()  # where the former agent's end could not be seen
        transmit(frames.hello(greeted.version))
        decider: Decider = self._gateway() if self._by_broker else self._by_policy
        self._board.begin(transmit, decider)
        self._clients.open()
        sparing.info(
            "the agent is there",
            qube=self._settings.name,
            version=greeted.version,
            decides="broker" if self._by_broker else "policy",
        )
        self._connected()

    def _end_session(self) -> None:
        self._clients.close()
        self._board.end()

    def _peers(self) -> Peers:
        settings = self._settings
        policy: Policy = (
            PolicySocket(settings.paths.policy_socket)
            if settings.policy_program is None
            else PolicyProgram(settings.policy_program)
        )
        return Peers(
            self._board,
            settings.uuid,
            settings.directory,
            policy,
            self._admin,
            self._service_of_admin_qube,
            self._spawn,
        )

    def _gateway(self) -> Gateway:
        socket = Path(f"/proc/self/fd/{self._door}/{_SOCKET}")
        return Gateway(self._board, socket, self._link, self._client, self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, CaissonError):
            sparing.warning("something failed", qube=self._settings.name, reason=error.message)
        else:
            _log.error("this is a bug in Caisson, report it", exc_info=error)

    # The programs that carry data.

    def _environment(self) -> dict[str, str]:
        """What they are told of the instance."""
        settings = self._settings
        more = {
            "CAISSON_ROOT": str(settings.paths.root),
            "VCHAN_SOCKET_DIR": str(settings.places.directory),
            "VCHAN_DOMAIN": "0",
        }
        return os.environ | more

    def _service_of_admin_qube(self, ident: bytes, command: str) -> Program:
        settings = self._settings
        if settings.service_user:
            command = f"{settings.service_user}:{command}"
        answers = f"{ident.decode()},{settings.name},{settings.domain}"
        arguments = ("-d", "dom0", "-w", str(SERVICE_PATIENCE), "-c", answers, command)
        about = {"qube": settings.name, "service": command.split(" ")[1]}
        saying = Saying(
            lambda line: sparing.info("a service says", text=line, **about),
            lambda count: sparing.info("lines of a service were left out", count=count, **about),
        )
        try:
            program = self._qrexec_client(arguments, {2: saying.writer})
        except BaseException:
            saying.close()
            raise
        saying.begun()
        self._spawn(_heard(saying, program))
        return program

    def _client(self, work: Work, descriptors: Mapping[int, int]) -> Program:
        alone = ("-e",) if work.alone else ()
        arguments = ("-d", self._settings.name, *alone, work.command)
        return self._qrexec_client(arguments, descriptors)

    def _qrexec_client(self, arguments: tuple[str, ...], descriptors: Mapping[int, int]) -> Program:
        name = ("qrexec-client", f"--socket-dir={self._settings.directory}")
        return Program((*name, *arguments), self._environment(), descriptors)

    def _link(self, port: int, descriptors: Mapping[int, int]) -> Program:
        arguments = ("qrexec-link", str(self._settings.domain), str(port))
        return Program(arguments, self._environment(), descriptors, quiet=True)


async def _heard(saying: Saying, program: Program) -> None:
    """Hear a program to its end."""
    try:
        await program.wait()
    finally:
        saying.close()


def _door(directory: Path) -> int | None:
    """The directory of the broker's socket for a qube; None: there is none for us.

    It is held open: a qube that is removed and made anew under its name has another one, and is not
    spoken for by whoever was connected with the former. The broker's sockets are not for every user
    to come near.
    """
    try:
        if not (directory / _SOCKET).is_socket():
            return None
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (PermissionError, FileNotFoundError):
        return None
