"""From a request to its reply, whichever way the request came."""

from __future__ import annotations

from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    nullcontext,
)
from typing import NamedTuple, Protocol

import structlog

from caisson.admin import bounds, wire
from caisson.admin.discretion import Discretion
from caisson.admin.methods import METHODS
from caisson.admin.registry import (
    Access,
    Answer,
    Answers,
    Call,
    Door,
    Method,
    Scope,
    Stream,
    Streams,
)
from caisson.admin.services import Services
from caisson.errors import CaissonError, InternalError, ProtocolError
from caisson.ext import Extensions, Question
from caisson.model import Qube, System
from caisson.qrexec import sparing

_log = structlog.get_logger()


class Caller(Protocol):
    """Who waits for a reply."""

    @property
    def uid(self) -> int | None:
        """The user of the machine, by the kernel's word; None where a qube calls."""
        ...

    async def send(self, frame: bytes) -> None:
        """Hand over one whole frame.

        Raises:
            OSError: the caller is gone.
            TimeoutError: the caller does not read.
        """
        ...

    def attended(self) -> AbstractContextManager[None]:
        """Cancel the current task as soon as the caller is gone for good."""
        ...


class Content(NamedTuple):
    """An answer without a frame, and what a person should be told beside it."""

    content: bytes
    warnings: list[str]


class Responder:
    """Answers requests.

    Args:
        extensions: asked about every call before it runs.
        services: what methods need beside the life of qubes.
        words: how often a qube may say something of itself.
    """

    def __init__(
        self,
        extensions: Extensions,
        services: Services,
        words: bounds.Budget | None = None,
    ) -> None:
        self._extensions = extensions
        self._services = services
        self._turns = bounds.Turns()
        self._streams = bounds.Streams()
        self._words = bounds.Budget() if words is None else words

    async def answer(self, request: wire.Request, door: Door, caller: Caller) -> None:
        """Do what a request asks for, and send what comes of it.

        Raises:
            OSError: the caller is gone. What it asked for was done.
            TimeoutError: the caller does not read.
        """
        try:
            method = METHODS.find(request, door)
            match method.kind:
                case Answers(run):
                    done = await self._content(method, run, request, door, caller.uid)
                    reply = wire.ok(done.content)
                case Streams(run):
                    call = self._call(request, door, caller.uid)
                    with self._streams.of(call.origin.name):
                        await _stream(run, call, caller, self._discretion(request))
                    return
        except CaissonError as error:
            reply = wire.exception(self._discretion(request).error(error))
        await caller.send(reply)

    async def content(self, request: wire.Request, door: Door) -> Content:
        """Do what a request asks for; gives what it comes to without a frame.

        Raises:
            CaissonError: the refusal, as its caller may be told.
        """
        try:
            method = METHODS.find(request, door)
            if not isinstance(method.kind, Answers):
                raise ProtocolError(f"method `{method.name}` has no single answer")
            return await self._content(method, method.kind.run, request, door, None)
        except CaissonError as error:
            raise self._discretion(request).error(error) from None

    def check(self, request: wire.Request, door: Door) -> None:
        """Refuse early what the policy does not allow, before anything is spent on it.

        Raises:
            CaissonError: the refusal, as its caller may be told.
        """
        try:
            method = METHODS.find(request, door)
            system = self._extensions.core.system
            origin = system.qube(request.untrusted_source)
            destination = system.qube(request.untrusted_destination)
            question = Question(origin, method.name, destination, request.untrusted_argument)
            self._extensions.ask(question)
        except CaissonError as error:
            raise self._discretion(request).error(error) from None

    async def _content(
        self, method: Method, run: Answer, request: wire.Request, door: Door, uid: int | None
    ) -> Content:
        if method.scope is Scope.MISC:
            await self._spend_word(request)
        async with self._turn(method, request):
            call = self._call(request, door, uid)
            return Content(await _answer(run, call), call.warnings)

    async def _spend_word(self, request: wire.Request) -> None:
        """Refuse what a qube says of itself all the time, before anything is made of it.

        What would be refused anyway counts too, or it would be the way around the bound.

        Raises:
            CaissonError: it has said too much.
        """
        source = _found(self._extensions.core.system, request.untrusted_source)
        if source is None:
            return  # what follows says so
        try:
            await self._words.spend(source)
        except CaissonError:
            service = request.untrusted_method
            sparing.warning("a qube says too much of itself", qube=source.name, service=service)
            raise

    def _turn(self, method: Method, request: wire.Request) -> AbstractAsyncContextManager[None]:
        if method.access is Access.EXECUTE:
            # It may wait for a qube to start or to stop, which must not keep the others waiting.
            return nullcontext()
        return self._turns.of(request.untrusted_source)

    def _call(self, request: wire.Request, door: Door, uid: int | None) -> Call:
        """The request as a call: judged when its turn has come, not before."""
        return METHODS.call(self._services, self._extensions, request, door, uid)

    def _discretion(self, request: wire.Request) -> Discretion:
        system = self._extensions.core.system
        origin, destination = (
            _found(system, each)
            for each in (request.untrusted_source, request.untrusted_destination)
        )
        untrusted_said = (
            request.untrusted_argument,
            request.untrusted_payload.decode("latin-1"),
            request.untrusted_destination if destination is None else destination.name,
        )
        return Discretion(self._extensions.core, origin, " ".join(untrusted_said))


def _found(system: System, untrusted_reference: str) -> Qube | None:
    try:
        return system.qube(untrusted_reference)
    except CaissonError:
        return None


async def _answer(run: Answer, call: Call) -> bytes:
    try:
        content = await run(call)
    except CaissonError:
        raise
    except Exception as error:
        raise _bug(call, error) from error
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    return content or b""


async def _stream(run: Stream, call: Call, caller: Caller, discretion: Discretion) -> None:
    """Send events until there are no more; a refusal can be told only before the first."""
    begun = False
    with caller.attended():
        async with aclosing(run(call)) as events:
            try:
                async for event in events:
                    told = discretion.arguments(event)
                    frame = wire.event(event.subject or "", event.name, told)
                    await caller.send(frame)
                    begun = True
            except (OSError, TimeoutError):
                raise
            except Exception as error:
                problem = error if isinstance(error, CaissonError) else _bug(call, error)
                if begun:
                    return
                raise problem from error


def _bug(call: Call, error: Exception) -> InternalError:
    _log.error("admin.bug", method=call.method.name, exc_info=error)
    return InternalError(f"{type(error).__name__} in `{call.method.name}`")
