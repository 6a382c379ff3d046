"""Calls of a qube behind another wall, to and from the qubes that the broker connects by pipes.

Towards the broker this is the programs of the qube: a client for each request, and the agent.
The broker decides, and writes down, every call; data goes through a program for each of them
(`qrexec-link`, `qrexec-client`), not through here.

The hello to the broker tells no barriers: those of another wall are not seen from here, and
whoever starts the qube has to vouch for them.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from caisson import __version__
from caisson.errors import CaissonError, DaemonError
from caisson.names import DOM0
from caisson.qrexec import sparing
from caisson.qrexec.link import Report
from caisson.qrexec.vchan.broker_side import (
    PIPES,
    BrokerSide,
    Work,
    close_all,
    exit_code,
    parse_work,
)
from caisson.qrexec.vchan.programs import Program
from caisson.qrexec.vchan.switchboard import Pending, Switchboard
from caisson.qrexec.wire import Code

MOST_SERVED = 256
"""Calls to the qube at once; a calling qube may have as many as it leaves free to others."""
ANSWER_PATIENCE = 600.0
"""Seconds until the broker answers a request: a person may be asked."""
LINGER = 60.0
"""Seconds that a link may still have for what the caller left behind."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_CODE_IN, _STDERR_IN = 3, 4
"""Numbers of a link's descriptors for the exit code and for what the service says on stderr."""


class _Carried:
    """A connection whose data a link carries: its port is free when both sides have ended."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.terminated = self.ended = False


class Gateway:
    """The broker's clients and agent for one qube.

    Args:
        board: the requests of the qube.
        path: the broker's socket for it.
        link: starts the program that carries the data of a request, by its port.
        client: starts the program that runs a command in the qube.
        spawn: begins a task.
    """

    def __init__(
        self,
        board: Switchboard,
        path: Path,
        link: Callable[[int, Mapping[int, int]], Program],
        client: Callable[[Work, Mapping[int, int]], Program],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._board = board
        self._path = path
        self._link = link
        self._client = client
        self._spawn_task = spawn
        self._tasks: set[asyncio.Task[None]] = set()
        self._carried: dict[int, _Carried] = {}
        self._serving: dict[Program, str] = {}
        self._served: Counter[str] = Counter()
        self._spawn(self._be_agent())

    def begin(self, pending: Pending) -> None:
        """Let the broker decide."""
        pending.task = self._spawn(self._request(pending))

    def terminated(self, domain: int, port: int) -> bool:
        """The caller is gone; its port is free when nothing here waits for it any more."""
        carried = self._carried.get(port)
        if carried is None or domain != 0:
            return True
        if carried.ended:
            del self._carried[port]
            return True
        if not carried.terminated:  # an agent may say so as often as it likes
            carried.terminated = True
            # Another call with this port must not meet the link of this one.
            asyncio.get_running_loop().call_later(LINGER, carried.program.stop)
        return False

    def close(self) -> None:
        """The agent is gone, and with it the other side of every call."""
        for port, carried in tuple(self._carried.items()):
            # The agent that comes next does not know of them, and will not tell their end.
            carried.terminated = True
            carried.program.stop()
            self._free_if_over(port, carried)
        for program in self._serving:
            program.stop()
        for task in tuple(self._tasks):
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._spawn_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Requests of the qube.

    async def _request(self, pending: Pending) -> None:
        reason = ""
        try:
            await self._brokered(pending)
        except CaissonError as e:
            reason = e.message
        except TimeoutError:
            reason = "the broker does not answer"
        except OSError as e:
            reason = e.strerror or str(e)
        finally:
            self._board.refuse(pending)  # if nothing else became of it
        if reason:
            sparing.warning("a request failed", qube=self._board.name, reason=reason)

    async def _brokered(self, pending: Pending) -> None:
        request = pending.request
        broker = BrokerSide(self._path)
        descriptors: list[int] = []
        try:
            source = f"\0{request.source}" if request.source else ""
            await broker.send(f"C{request.target}\0{request.descriptor}\0{source}".encode())
            async with asyncio.timeout(ANSWER_PATIENCE):
                answer, descriptors = await broker.receive()
            if answer == b"A" and len(descriptors) == PIPES:
                await self._carry(pending, broker, descriptors)
        finally:
            close_all(descriptors)
            broker.close()

    async def _carry(self, pending: Pending, broker: BrokerSide, descriptors: list[int]) -> None:
        """Connect the caller, and see the call to its end.

        Args:
            pending: the request, which is not pending any more by this.
            broker: tells the exit code.
            descriptors: the caller's ends of the pipes.
        """
        code_out, code_in = os.pipe2(os.O_CLOEXEC)
        ours = [code_in]
        port = self._board.ports.allocate(0)
        try:
            if port is None:
                raise DaemonError("no port is left")
            to_service, from_service, errors = descriptors
            numbers = {0: from_service, 1: to_service, _CODE_IN: code_out, _STDERR_IN: errors}
            try:
                program = self._link(port, numbers)
            except BaseException:
                self._board.ports.release(0, port)
                raise
            carried = self._carried[port] = _Carried(program)
            self._spawn_task(self._ended(port, carried))
            os.close(code_out)
            code_out = -1
            close_all(descriptors)
            self._board.connect(pending, 0, port)
            await self._pass_code(broker, program, ours)
        finally:
            if code_out >= 0:
                os.close(code_out)
            close_all(ours)

    async def _pass_code(self, broker: BrokerSide, program: Program, ours: list[int]) -> None:
        """Give the link the exit code, unless it ends before."""
        told = asyncio.ensure_future(broker.receive())
        ended = asyncio.ensure_future(program.wait())
        try:
            await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
            if told.done() and not ended.done():
                message, unexpected = told.result()
                close_all(unexpected)
                os.write(ours[0], b"%d" % exit_code(message))
                close_all(ours)
                await ended
        finally:
            told.cancel()
            ended.cancel()

    async def _ended(self, port: int, carried: _Carried) -> None:
        """Have the port freed, at the latest when the agent tells that it does not use it."""
        code = await carried.program.wait()
        if code:
            sparing.info("a link broke", qube=self._board.name, port=port, code=code)
        carried.ended = True
        self._free_if_over(port, carried)

    def _free_if_over(self, port: int, carried: _Carried) -> None:
        if carried.ended and carried.terminated:
            del self._carried[port]
            self._board.ports.release(0, port)

    # Calls to the qube.

    async def _be_agent(self) -> None:
        """Take calls, whenever the broker is there."""
        pause = _FIRST_PAUSE
        while True:
            try:
                broker = BrokerSide(self._path)
                try:
                    if await self._take_calls(broker):
                        pause = _FIRST_PAUSE
                finally:
                    broker.close()
            except (CaissonError, OSError) as e:
                sparing.info("no calls to the qube for now", qube=self._board.name, reason=str(e))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _take_calls(self, broker: BrokerSide) -> bool:
        """Be the qube's agent until the broker hangs up; whether it ever was."""
        version = f"caisson {__version__}, by the wire protocol"
        report = msgspec.json.encode(Report({}, version, fresh=True))
        await broker.send(b"H1\0" + report)
        answer, descriptors = await broker.receive()
        close_all(descriptors)
        if answer != b"W":
            reason = answer[1:].decode("ascii", "replace") if answer[:1] == b"N" else ""
            sparing.warning("not admitted as the agent", qube=self._board.name, reason=reason)
            return False
        sparing.info("admitted as the agent", qube=self._board.name)
        while True:
            message, descriptors = await broker.receive()
            if not message:
                return True
            self._take(broker, message, descriptors)

    def _take(self, broker: BrokerSide, message: bytes, descriptors: list[int]) -> None:
        """One call."""
        try:
            if message == b"Q":
                return
            work = parse_work(message)
            if len(descriptors) != PIPES:
                raise DaemonError("a call of the broker has no pipes")
            program = self._started(work, descriptors)
            self._spawn(self._serve(broker, work, program))
        finally:
            close_all(descriptors)

    def _started(self, work: Work, descriptors: list[int]) -> Program | None:
        free = MOST_SERVED - len(self._serving)
        if not free or (work.source != DOM0 and self._served[work.source] >= free):
            reason = "too many calls of the same qube run"
            sparing.warning(
                "a call to the qube failed",
                qube=self._board.name,
                source=work.source,
                reason=reason if free else "too many calls run",
            )
            return None
        try:
            program = self._client(work, dict(enumerate(descriptors)))
        except (DaemonError, OSError) as e:
            sparing.warning("a call to the qube failed", qube=self._board.name, reason=str(e))
            return None
        self._serving[program] = work.source
        self._served[work.source] += 1
        return program

    def _ended_serving(self, program: Program) -> None:
        source = self._serving.pop(program)
        self._served[source] -= 1
        if not self._served[source]:
            del self._served[source]

    async def _serve(self, broker: BrokerSide, work: Work, program: Program | None) -> None:
        """See a call to its end, and tell its exit code."""
        code = Code.PROBLEM
        if program is not None:
            code = await program.wait()
            self._ended_serving(program)
        try:
            await broker.send(b"X%d\0%d" % (work.id, code))
        except (OSError, ValueError) as e:
            sparing.warning("an exit code is lost", qube=self._board.name, reason=str(e))
