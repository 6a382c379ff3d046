"""The Admin API for calls of qubes, which come over pipes that the broker handed over."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from caisson.admin import pipes, wire
from caisson.admin.bounds import ANSWER_SECONDS, REQUEST_SECONDS
from caisson.admin.registry import Door
from caisson.admin.responder import Responder
from caisson.errors import CaissonError, PermissionDeniedError, ProtocolError
from caisson.names import DOM0
from caisson.qrexec import AdminCall

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

    async def serve(self, call: AdminCall) -> int:
        """Serve one call; gives its exit code, 0 also where the answer is a refusal."""
        caller = _PipedCaller(call)
        try:
            try:
                request = await self._called(call)
            except CaissonError as error:
                await caller.send(wire.exception(error))
                return 0
            door = Door.ADMIN if call.service.startswith("admin.") else Door.MISC
            await self._responder.answer(request, door, caller)
        except (OSError, TimeoutError):
            # The caller is gone or does not read. What it asked for was done.
            return _PROBLEM
        return 0

    async def _called(self, call: AdminCall) -> wire.Request:
        """The call as a request like any other.

        Raises:
            ProtocolError: the payload is too long or slow, or the target is none.
        """
        if call.source == DOM0:
            raise PermissionDeniedError(f"`{DOM0}` does not call itself over qrexec")
        destination = call.requested
        if call.target_type == "keyword":
            if destination != "adminvm":
                raise ProtocolError(f"`{call.target}` is neither a name nor the admin qube")
            destination = DOM0
        header = len(f"{call.service}+{call.argument} {call.source} name {destination}") + 1
        payload = await pipes.read_all(
            call.stdin, wire.LONGEST_REQUEST - header, self._request_seconds
        )
        return wire.Request(call.service, call.argument, call.source, destination, payload)


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
