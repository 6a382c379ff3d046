"""Requests that this daemon decides by asking the policy, and takes to the target's daemon.

The control of a call stays in this process; only a service of the admin qube is a program.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from caisson.errors import CaissonError, DaemonError, NotHaltedError
from caisson.names import DOM0
from caisson.qrexec import sparing
from caisson.qrexec.link import address
from caisson.qrexec.vchan import frames, ports
from caisson.qrexec.vchan.deciding import Policy, Verdict
from caisson.qrexec.vchan.frames import Kind, MalformedError, Params, Splitter
from caisson.qrexec.vchan.programs import Program
from caisson.qrexec.vchan.switchboard import Pending, Switchboard
from caisson.qrexec.wire import parse_target

MOST_QUESTIONS = 16
"""Questions to the policy at once; a person is asked about fewer of one qube."""
MOST_DISPOSABLES = 64
"""Disposables of one qube that are being made, or live; others are refused."""
MOST_STARTS = 8
"""Starts of targets, for one qube, that qubesd is asked for at once; others wait for their turn."""
PEER_PATIENCE = 10.0
"""Seconds for the daemon of a target that runs."""

_DISPOSABLE = "@dispvm:"
_NIL = "uuid:00000000-0000-0000-0000-000000000000"
_ADMIN_QUBE = frozenset({DOM0, "@adminvm", _NIL})
_READ = 4096

Admin = Callable[[str, str, bytes], Awaitable[bytes]]
"""Calls qubesd: method, destination, payload; its errors are raised."""


class Peers:
    """Decides for one qube.

    Args:
        board: the requests of the qube.
        uuid: its own, with `uuid:` before it.
        directory: where the daemons have their sockets.
        policy: is asked.
        admin: starts qubes and makes disposables.
        client: gives the program that serves a request in the admin qube, started; it connects
            the request by the name that it is given.
        spawn: begins a task.
    """

    def __init__(
        self,
        board: Switchboard,
        uuid: str,
        directory: Path,
        policy: Policy,
        admin: Admin,
        client: Callable[[bytes, str], Program],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._board = board
        self._own = frozenset({board.name, uuid})
        self._near = address(directory)
        self._policy = policy
        self._admin = admin
        self._client = client
        self._spawn = spawn
        self._turn = asyncio.Semaphore(MOST_QUESTIONS)
        self._starts = asyncio.Semaphore(MOST_STARTS)
        self._disposables = 0
        self._lefts: dict[Params, asyncio.Event] = {}

    def begin(self, pending: Pending) -> None:
        """Decide, in a task of its own."""
        pending.task = self._spawn(self._guarded(pending))

    def terminated(self, domain: int, port: int) -> bool:
        """The caller left a call to a disposable, which may not say so itself; no port is ours."""
        left = self._lefts.get(Params(domain, port))
        if left is not None:
            left.set()
        return True

    def close(self) -> None:
        """Requests end with the switchboard's."""

    async def _guarded(self, pending: Pending) -> None:
        """Whatever fails is a refusal, and takes nothing else with it."""
        try:
            await self._decide(pending)
        except CaissonError as e:
            self._note(pending, "refuse", "", e.message)
        except TimeoutError:
            self._note(pending, "refuse", "", "it took too long")
        except OSError as e:
            self._note(pending, "refuse", "", (e.strerror or str(e)).lower())
        finally:
            self._board.refuse(pending)  # if nothing else became of it

    async def _decide(self, pending: Pending) -> None:
        async with self._turn:
            verdict = await self._policy.decide(pending.request.query(self._board.name))
        if verdict is None:
            self._note(pending, "deny", "", "the policy denies it")
            return
        if self._own & {verdict.target, verdict.target_uuid}:
            self._note(pending, "deny", verdict.target, "a qube cannot call itself")
            return
        self._note(pending, "allow", verdict.target, "the policy allows it")
        if verdict.target in _ADMIN_QUBE:
            await self._in_admin_qube(pending, verdict)
        elif verdict.target.startswith(_DISPOSABLE):
            await self._in_disposable(pending, verdict)
        else:
            await self._in_qube(pending, verdict)

    def _note(self, pending: Pending, decision: str, target: str, reason: str) -> None:
        request = pending.request
        more = {"requested_source": request.source} if request.source else {}
        sparing.info(
            "decided for a qube",
            qube=self._board.name,
            service=request.descriptor,
            requested=request.target,
            target=target,
            decision=decision,
            reason=reason,
            **more,
        )

    # The three kinds of targets.

    async def _in_admin_qube(self, pending: Pending, verdict: Verdict) -> None:
        """A program of the admin qube connects the request, and is the service."""
        request = pending.request
        wanted = verdict.requested_target or "@default"
        keyword = wanted.startswith("@")
        command = " ".join(
            (
                "QUBESRPC",
                verdict.descriptor or request.descriptor,
                verdict.source or self._board.name,
                "keyword" if keyword else "name",
                wanted.removeprefix("@"),
            )
        )
        program = self._client(self._board.offer(pending), command)
        try:
            code = await program.wait()
        except asyncio.CancelledError:
            if not pending.connected:
                program.stop()
            raise
        if not pending.over:
            raise DaemonError(f"the service's program ended before it was connected, with {code}")

    async def _in_qube(self, pending: Pending, verdict: Verdict) -> None:
        target = verdict.target_uuid or verdict.target
        command = self._command(pending, verdict)
        try:
            peer, sock = await self._execute(target, command)
        except (FileNotFoundError, ConnectionRefusedError):
            if not verdict.autostart:
                raise DaemonError(
                    "the target does not run, and the rule says `autostart=no`"
                ) from None
            await self._start(target)
            peer, sock = await self._execute(target, command)
        sock.close()
        self._board.connect(pending, *peer)

    async def _in_disposable(self, pending: Pending, verdict: Verdict) -> None:
        """Run the call in a disposable of its own, which ends with the call."""
        if not verdict.autostart:
            raise DaemonError("a disposable is always started, and the rule says `autostart=no`")
        if self._disposables >= MOST_DISPOSABLES:
            raise DaemonError("too many disposables of this qube run")
        base = (verdict.target_uuid or verdict.target).removeprefix(_DISPOSABLE)
        payload = b"uuid" if verdict.target_uuid else b""
        # They outlive their request, whose ident the agent may use again at once.
        self._disposables += 1
        # If the caller leaves meanwhile, the answer is still awaited: somebody must discard it.
        making = self._spawn(self._discarded(pending, verdict, base, payload))
        making.add_done_callback(self._one_less)
        await asyncio.shield(making)

    def _one_less(self, _: asyncio.Task[None]) -> None:
        self._disposables -= 1

    async def _discarded(
        self, pending: Pending, verdict: Verdict, base: str, payload: bytes
    ) -> None:
        making = asyncio.ensure_future(self._admin("admin.vm.CreateDisposable", base, payload))
        try:
            name = _made(await asyncio.shield(making))
        except asyncio.CancelledError:
            self._spawn(self._killed_when_made(making))
            raise
        try:
            if pending.over:
                return
            await self._start(name)
            if pending.over:
                return
            peer, sock = await self._execute(name, self._command(pending, verdict))
            with contextlib.closing(sock):
                if pending.over:
                    return
                self._board.connect(pending, *peer)
                await self._ended(peer, sock)
        finally:
            self._board.refuse(pending)
            self._spawn(self._killed(name))

    async def _ended(self, peer: Params, sock: socket.socket) -> None:
        """Wait for the end of a call: that of this connection, or of the caller."""
        left = self._lefts[peer] = asyncio.Event()
        waits = [asyncio.ensure_future(wait) for wait in (left.wait(), _closed(sock))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._lefts[peer]
            for wait in waits:
                wait.cancel()
            # Before the socket is closed, nothing may look at it any more.
            await asyncio.gather(*waits, return_exceptions=True)

    async def _killed_when_made(self, making: asyncio.Future[bytes]) -> None:
        await self._killed(_made(await making))

    async def _killed(self, name: str) -> None:
        try:
            await self._admin("admin.vm.Kill", name, b"")
        except CaissonError as e:
            sparing.warning("a disposable stays", qube=name, reason=e.message)

    def _command(self, pending: Pending, verdict: Verdict) -> bytes:
        user = verdict.user or "DEFAULT"
        descriptor = verdict.descriptor or pending.request.descriptor
        return f"{user}:QUBESRPC {descriptor} {verdict.source or self._board.name}".encode()

    async def _start(self, target: str) -> None:
        async with self._starts:
            with contextlib.suppress(NotHaltedError):
                await self._admin("admin.vm.Start", target, b"")

    async def _execute(self, target: str, command: bytes) -> tuple[Params, socket.socket]:
        """Have the target's daemon run a command.

        Returns:
            Where its connection is, and the socket whose end is the connection's end.

        Raises:
            OSError: the daemon is not there.
            CaissonError: it refuses, or breaks the protocol.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(f"{self._near}/qrexec.{target}")
            # The daemon says hello by itself: ours need not wait for it.
            request = frames.hello(frames.LOCAL_VERSION) + frames.execute(
                Kind.EXEC_CMDLINE, self._board.domain, 0, command
            )
            async with asyncio.timeout(PEER_PATIENCE):
                await asyncio.get_running_loop().sock_sendall(sock, request)
                return await _answered(sock), sock
        except BaseException:
            sock.close()
            raise


async def _closed(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(sock, _READ):
            pass


def _made(reply: bytes) -> str:
    """The name of a new disposable, or its uuid."""
    return parse_target(reply.decode("ascii", "replace"))


async def _answered(sock: socket.socket) -> Params:
    """What a daemon says to a command."""
    loop = asyncio.get_running_loop()
    splitter = Splitter()
    greeted = False

    def admit(kind: Kind, length: int) -> None:
        wanted = (
            (Kind.EXEC_CMDLINE, frames.PARAMS_SIZE) if greeted else (Kind.HELLO, frames.HELLO_SIZE)
        )
        if (kind, length) != wanted:
            raise MalformedError(f"the target's daemon says {kind.name} of {length} bytes")

    while chunk := await loop.sock_recv(sock, _READ):
        splitter.feed(chunk)
        while found := splitter.next(admit):
            if greeted:
                params = frames.parse_params(found[1])
                if not ports.valid(params.port):
                    raise MalformedError(f"the target's daemon gives port {params.port}")
                return params
            if frames.parse_hello(found[1]) < frames.LOCAL_VERSION:
                raise MalformedError("the target's daemon speaks a version that is too old")
            greeted = True
    raise DaemonError("the target does not take the call")
