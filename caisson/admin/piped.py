"""Calls of qubes to the admin qube, which come over pipes that the broker handed over.

`admin.*` and the like are answered with frames of the Admin API. `policy.*` are services of the
older kind: the answer is what comes out, a refusal goes to standard error with an exit code
(specification sheet `qrexec`, section 4.4).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from caisson.admin import bounds, pipes, wire
from caisson.admin.bounds import ANSWER_SECONDS, REQUEST_SECONDS
from caisson.admin.registry import Door
from caisson.admin.responder import Responder
from caisson.errors import (
    CaissonError,
    InternalError,
    PermissionDeniedError,
    PolicyRequestError,
    ProtocolError,
)
from caisson.names import DOM0
from caisson.qrexec import AdminCall
from caisson.qrexec.admin_messages import POLICY_SERVICES

REFUSED = 1
BUG = 2
_PROBLEM = 125


class PipedCalls:
    """Serves calls that the broker let pass.

    The broker's word is not enough: like every request of another qube than the admin qube, the
    call is judged by the policy again, and nobody comes this way in the admin qube's name.

    Args:
        responder: answers.
        request_seconds: how long a caller may take to send its payload.
    """

    def __init__(self, responder: Responder, request_seconds: float = REQUEST_SECONDS) -> None:
        self._responder = responder
        self._request_seconds = request_seconds
        self._turns = bounds.Turns()

    async def serve(self, call: AdminCall) -> int:
        """Serve one call; gives its exit code, in a frame 0 also where the answer is a refusal."""
        try:
            if call.service in POLICY_SERVICES:
                return await self._serve_raw(call)
            await self._serve_framed(call)
        except (OSError, TimeoutError):
            # The caller is gone or does not read. What it asked for was done.
            return _PROBLEM
        return 0

    async def _serve_framed(self, call: AdminCall) -> None:
        caller = _PipedCaller(call)
        try:
            request = _header(call)
            request = await self._with_payload(call, request, wire.LONGEST_REQUEST)
        except CaissonError as error:
            await caller.send(wire.exception(error))
            return
        door = Door.ADMIN if call.service.startswith("admin.") else Door.MISC
        await self._responder.answer(request, door, caller)

    async def _serve_raw(self, call: AdminCall) -> int:
        try:
            # A turn first: a payload may be large, and the broker may name any caller.
            async with self._turns.of(call.source):
                request = _header(call)
                self._responder.check(request, Door.ADMIN)
                request = await self._with_payload(call, request, wire.LONGEST_POLICY_REQUEST)
                content, warnings = await self._responder.content(request, Door.ADMIN)
        except CaissonError as error:
            await _say(call, wire.complaint(_as_policy_error(error)))
            return BUG if isinstance(error, InternalError) else REFUSED
        if warnings:
            await _say(call, "".join(f"warning: {text}\n" for text in warnings).encode())
        await pipes.write_all(call.stdout, content, ANSWER_SECONDS)
        return 0

    async def _with_payload(
        self, call: AdminCall, request: wire.Request, longest: int
    ) -> wire.Request:
        """The call as a request like any other.

        Raises:
            ProtocolError: the payload is too long or slow.
        """
        header = f"{call.service}+{call.argument} {call.source} name "
        most = longest - len(header + request.untrusted_destination) - 1
        payload = await pipes.read_all(call.stdin, most, self._request_seconds)
        return request._replace(untrusted_payload=payload)


def _header(call: AdminCall) -> wire.Request:
    """The call as a request whose payload is not read yet.

    Raises:
        PermissionDeniedError: it is in the admin qube's name.
        ProtocolError: the target is none.
    """
    if call.source == DOM0:
        raise PermissionDeniedError(f"`{DOM0}` does not call itself over qrexec")
    destination = call.requested
    if call.target_type == "keyword":
        if destination != "adminvm":
            raise ProtocolError(f"`{call.target}` is neither a name nor the admin qube")
        destination = DOM0
    return wire.Request(call.service, call.argument, call.source, destination, b"")


def _as_policy_error(error: CaissonError) -> CaissonError:
    """The refusal in the class that clients of the policy services know."""
    if isinstance(error, ProtocolError):
        return PolicyRequestError(error.message, error.hint)
    return error


async def _say(call: AdminCall, text: bytes) -> None:
    await pipes.write_all(call.stderr, text, ANSWER_SECONDS)


@dataclass(frozen=True, slots=True)
class _PipedCaller:
    """The caller at the other end of the pipes."""

    call: AdminCall

    @property
    def uid(self) -> None:
        """No user of the machine: a qube calls."""
        return

    async def send(self, frame: bytes) -> None:
        """Hand over one frame; the caller has a while to read it."""
        await pipes.write_all(self.call.stdout, frame, ANSWER_SECONDS)

    def attended(self) -> AbstractContextManager[None]:
        """Cancel the current task when the caller leaves."""
        return pipes.cancelling(self.call.gone)
