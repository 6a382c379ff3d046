"""The methods of the Admin API: one declaration each, checked the same way for all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from caisson.errors import InternalError, ProtocolError
from caisson.ext import Extensions, Filter, Question, Right, Shown
from caisson.ext.rights import refusal
from caisson.lifecycle import Qubes
from caisson.model import Change, Event, Qube
from caisson.names import DOM0, shown

if TYPE_CHECKING:
    from caisson.admin.services import Services
    from caisson.admin.wire import Request


class To(Enum):
    """Which qubes a method may be called on."""

    ADMIN = "the admin qube only"
    ANY = "any qube"
    NOT_ADMIN = "any qube but the admin qube"


class Text(Enum):
    """Whether a method takes an argument, or a payload."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class Scope(Enum):
    """Which policy file rules a method by default, and which socket serves it.

    `GLOBAL`, `LOCAL` and `MISC` are services that qubes may call where the policy allows it;
    `TRUSTED` and `INTERNAL` methods are for the admin qube alone, whatever the policy says.
    To qubes, `POLICY` services answer without the frame of the Admin API (`piped`).
    """

    GLOBAL = "global"
    LOCAL = "local"
    POLICY = "policy"
    TRUSTED = "trusted"
    INTERNAL = "internal"
    MISC = "misc"

    @property
    def door(self) -> Door:
        """The socket that serves such methods."""
        match self:
            case Scope.INTERNAL:
                return Door.INTERNAL
            case Scope.MISC:
                return Door.MISC
            case _:
                return Door.ADMIN


class Door(Enum):
    """The ways in: three sockets (sheet `admin-api`, section 1.1)."""

    ADMIN = "qubesd.sock"
    INTERNAL = "qubesd.internal.sock"
    MISC = "qubesd.misc.sock"


class Access(Enum):
    """What a method does to the system."""

    READ = "ro"
    WRITE = "w"
    EXECUTE = "x"


@dataclass(frozen=True, slots=True)
class Call:
    """One request whose method, source and destination are known to exist.

    The argument and the payload fit the method's declaration in being there or not;
    what is in them is for the method to check.

    Attributes:
        shows: what of a list, of a stream of events, or of several values the caller may see; None
            for all.
        uid: the user of the machine who calls; None where a qube does.
        warnings: what a person should be told beside the answer.
    """

    qubes: Qubes
    services: Services
    extensions: Extensions
    method: Method
    origin: Qube
    destination: Qube
    untrusted_argument: str
    untrusted_payload: bytes
    shows: Filter | None
    uid: int | None = None
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Tell a person something beside the answer, where the way of the call has room for it."""
        self.warnings.append(text)

    async def commit(self, change: Change) -> None:
        """Make a planned change real, if the caller has the right to bring it about.

        Plan and commit with nothing awaited in between.
        """
        await self.qubes.commit(change, self.origin.name)

    def require(self, argument: str) -> None:
        """Make sure that the caller might have called with this argument instead.

        Raises:
            PermissionDeniedError: it might not.
        """
        self.extensions.ask(Question(self.origin, self.method.name, self.destination, argument))

    def look(self) -> Shown:
        """What the caller may see now, for as long as nothing is awaited."""
        return _everything if self.shows is None else self.shows()

    def require_right(self, right: Right, what: str) -> None:
        """Refuse the caller what another method tells that it may not call.

        Raises:
            PermissionDeniedError: it may not; `what` says what in words.
        """
        if not self.look()(right):
            raise refusal(self.origin.name, what, (right,))

    @property
    def untrusted_text(self) -> str:
        """The payload as text.

        Raises:
            ProtocolError: it is not ASCII.
        """
        try:
            return self.untrusted_payload.decode("ascii")
        except UnicodeDecodeError:
            raise ProtocolError(f"the payload of `{self.method.name}` is not ASCII") from None


def _everything(_item: object) -> bool:
    return True


Answer = Callable[[Call], Awaitable[bytes | str | None]]
Stream = Callable[[Call], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class Answers:
    """A method that gives one answer."""

    run: Answer


@dataclass(frozen=True, slots=True)
class Streams:
    """A method that answers with events until it is done or the client leaves."""

    run: Stream


@dataclass(frozen=True, slots=True)
class Method:
    """The declaration of a method."""

    name: str
    to: To
    argument: Text
    payload: Text
    scope: Scope
    access: Access
    help: str
    kind: Answers | Streams


@dataclass(frozen=True, slots=True)
class Registry:
    """Methods by their full names."""

    methods: dict[str, Method] = field(default_factory=dict)

    def add(self, method: Method) -> None:
        """Take a method in.

        Raises:
            InternalError: there is one of that name.
        """
        if method.name in self.methods:
            raise InternalError(f"method `{method.name}` is declared twice")
        self.methods[method.name] = method

    def find(self, request: Request, door: Door) -> Method:
        """The method that a request names.

        Raises:
            ProtocolError: there is none behind this door.
        """
        method = self.methods.get(request.untrusted_method)
        if method is None or method.scope.door is not door:
            raise ProtocolError(f"method `{shown(request.untrusted_method)}` does not exist here")
        return method

    def call(
        self,
        services: Services,
        extensions: Extensions,
        request: Request,
        door: Door,
        uid: int | None = None,
    ) -> Call:
        """Turn a request into a call that its caller may make.

        Args:
            services: what else methods use.
            extensions: asked whether the caller may make the call.
            request: the request as it came.
            door: the way it came.
            uid: the user of the machine who sent it; None where a qube did.

        Raises:
            ProtocolError: there is no such method, or it is not called like that.
            QubeNotFoundError: the source or the destination does not exist.
            PermissionDeniedError: the caller may not make the call.
        """
        qubes = extensions.core.qubes
        method = self.find(request, door)
        origin = qubes.system.qube(request.untrusted_source)
        destination = qubes.system.qube(request.untrusted_destination)
        _check_destination(method, destination)
        _check_presence(method, "argument", method.argument, bool(request.untrusted_argument))
        _check_presence(method, "payload", method.payload, bool(request.untrusted_payload))
        return Call(
            qubes,
            services,
            extensions,
            method,
            origin,
            destination,
            request.untrusted_argument,
            request.untrusted_payload,
            _permitted(extensions, method, origin, destination, request.untrusted_argument),
            uid,
        )


def _permitted(
    extensions: Extensions, method: Method, origin: Qube, destination: Qube, untrusted: str
) -> Filter | None:
    if method.scope in {Scope.TRUSTED, Scope.INTERNAL} and origin.name != DOM0:
        raise ProtocolError(f"method `{method.name}` does not exist for other qubes than `{DOM0}`")
    return extensions.ask(Question(origin, method.name, destination, untrusted))


def _check_destination(method: Method, destination: Qube) -> None:
    is_admin = destination.name == DOM0
    if method.to is To.ADMIN and not is_admin:
        raise ProtocolError(
            f"method `{method.name}` cannot be called on `{destination.name}`",
            hint=f"call it on `{DOM0}`",
        )
    if method.to is To.NOT_ADMIN and is_admin:
        raise ProtocolError(f"method `{method.name}` cannot be called on `{DOM0}`")


def _check_presence(method: Method, what: str, rule: Text, present: bool) -> None:
    if rule is Text.REQUIRED and not present:
        raise ProtocolError(f"method `{method.name}` was called without its {what}")
    if rule is Text.NONE and present:
        raise ProtocolError(f"method `{method.name}` takes no {what}")


METHODS = Registry()


def method(
    name: str,
    *,
    to: To = To.ANY,
    argument: Text = Text.NONE,
    payload: Text = Text.NONE,
    scope: Scope = Scope.LOCAL,
    access: Access = Access.READ,
    help: str,  # noqa: A002 - the word that readers of the reference look for
) -> Callable[[Answer], Answer]:
    """Declare a method that gives one answer."""

    def declare(answer: Answer) -> Answer:
        METHODS.add(Method(name, to, argument, payload, scope, access, help, Answers(answer)))
        return answer

    return declare


def stream_method(
    name: str,
    *,
    to: To = To.ANY,
    argument: Text = Text.NONE,
    payload: Text = Text.NONE,
    scope: Scope = Scope.GLOBAL,
    access: Access = Access.READ,
    help: str,  # noqa: A002 - as above
) -> Callable[[Stream], Stream]:
    """Declare a method that answers with events until it is done or the client leaves."""

    def declare(stream: Stream) -> Stream:
        METHODS.add(Method(name, to, argument, payload, scope, access, help, Streams(stream)))
        return stream

    return declare
