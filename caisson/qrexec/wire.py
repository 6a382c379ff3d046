"""The datagrams between the broker and the programs in a qube.

AF_UNIX SOCK_SEQPACKET; one datagram is one message: a type byte, then fields separated by NUL,
of which the last runs to the end. Everything that arrives here is untrusted: parsing gives
checked types, or refuses.

A client says `C` target, service[+argument], flags, and a relay, as fourth, for which RemoteVM it
calls; in the admin qube `D` (or `J`: start it and wait for nothing) qube, user, command or
`QUBESRPC service[+argument] source`; `nogui:` before either starts it without the user's session.
An agent says `H` version, report (JSON), `X` id, exit code, and once `U` failures: the set-up of
its qube has ended.
The broker tells a client `A` with pipes (stdin, stdout, stderr), then `X` code; or `R`: refused;
or `E` code, message. It tells an agent `W`: admitted; `N` reason; `S` id, user, service+argument,
source, flags, with pipes; `M` id, user, command, perhaps with `nogui:` before it, with pipes.
"""

from __future__ import annotations

import re

import msgspec

from caisson.errors import ProtocolError
from caisson.names import QubeName, ServiceArgument, ServiceName, UserName, shown
from caisson.qrexec.link import MOST_FAILURES, Report

LONGEST = 66_000

_TARGET = re.compile(r"[A-Za-z0-9_.@:-]{0,63}")
_SOURCE = re.compile(r"[A-Za-z0-9_.:-]{0,63}")
JUST_START = "e"
"""The flag that nobody waits for the end; from the admin qube, `J` in place of `D`."""
WITHOUT_SESSION = "n"
"""The flag that a service waits for no session of its user; qubes cannot give it."""
NO_GUI = "nogui:"
"""How the admin qube's programs, and a command line on its way, spell that flag."""
_FLAGS = frozenset({"", JUST_START})
_ADMIN = {b"D": "", b"J": JUST_START}
_NUMBER = re.compile(rb"[0-9]{1,18}")
_RPC = "QUBESRPC"

_report: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


class Code:
    """Exit codes that the broker itself gives (sheet `qrexec`, section 1.1)."""

    PROBLEM = 125
    REFUSED = 126
    NOT_FOUND = 127
    LOST = 255


class Hello(msgspec.Struct, frozen=True):
    """A process says that it is the qube's agent."""

    version: int
    report: Report


class ClientCall(msgspec.Struct, frozen=True):
    """A call by a program in a qube. `target` is checked for its characters only.

    `requested_source` is the RemoteVM that the qube says to be the relay of; empty: none.
    Whether it is, the policy finds out.
    """

    target: str
    service: ServiceName
    argument: ServiceArgument
    flags: str
    requested_source: str = ""


class AdminCall(msgspec.Struct, frozen=True):
    """A call by the admin qube: a service or, with an empty `service`, a shell command."""

    qube: QubeName
    user: str
    service: str
    source: str
    command: str
    flags: str = ""


class Exited(msgspec.Struct, frozen=True):
    """A service ended."""

    id: int
    code: int


class SetUpEnded(msgspec.Struct, frozen=True):
    """What a qube does once when it begins is over; so many things failed."""

    failures: int


def parse_service(untrusted_descriptor: str) -> tuple[ServiceName, ServiceArgument]:
    """Service and argument of `service[+argument]`.

    Nothing is replaced: the policy judges the very bytes that the service will see (QSB-038).
    """
    name, _, argument = untrusted_descriptor.partition("+")
    return ServiceName.parse(name), ServiceArgument.parse(argument)


def parse_target(untrusted: str) -> str:
    """What a call is for, checked for its characters only: the policy judges the rest.

    Raises:
        ProtocolError: it has other characters, or too many.
    """
    if not _TARGET.fullmatch(untrusted):
        raise ProtocolError(
            f"target `{shown(untrusted)}` is not valid",
            hint="give the name of a qube, or a keyword such as `@default`",
        )
    return untrusted


def parse_source(untrusted: str) -> str:
    """A name, or a `uuid:` form: whether there is such a qube is for the policy to say.

    Raises:
        ProtocolError: it has other characters, or too many.
    """
    if _SOURCE.fullmatch(untrusted) is None:
        raise ProtocolError(
            f"source `{shown(untrusted)}` is not valid", hint="give the name of a qube"
        )
    return untrusted


def parse_client(untrusted: bytes) -> ClientCall | Hello:
    """The first message of a program in a qube.

    Raises:
        CaissonError: it is malformed.
    """
    match untrusted[:1]:
        case b"C":
            target, descriptor, flags, *sources = _fields(untrusted, 3, 4)
            parse_target(target)
            if flags not in _FLAGS:
                raise ProtocolError(f"flags `{shown(flags)}` are not valid")
            service, argument = parse_service(descriptor)
            if sources == [""]:
                raise ProtocolError("the source is empty", hint="leave the field out")
            source = parse_source(sources[0]) if sources else ""
            return ClientCall(target, service, argument, flags, source)
        case b"H":
            version, _, report = untrusted[1:].partition(b"\0")
            return Hello(_number(version), _parse_report(report))
    raise ProtocolError(f"unknown message `{shown(untrusted[:1])}`")


def parse_admin(untrusted: bytes) -> AdminCall:
    """The message of a program in the admin qube; it is checked all the same.

    Raises:
        CaissonError: it is malformed.
    """
    if untrusted[:1] not in _ADMIN:
        raise ProtocolError(f"unknown message `{shown(untrusted[:1])}`")
    try:
        qube, user, command = untrusted[1:].decode().split("\0", 2)
    except ValueError:
        raise ProtocolError("expected qube, user and command") from None
    name = QubeName.parse(qube)
    account = "" if user in {"", "DEFAULT"} else UserName.parse(user)
    flags = _ADMIN[untrusted[:1]]
    if command.startswith(NO_GUI):
        command = command.removeprefix(NO_GUI)
        flags += WITHOUT_SESSION
    if not command or "\0" in command:
        raise ProtocolError("the command is empty or contains a NUL")
    if not command.startswith(f"{_RPC} "):
        return AdminCall(name, account, "", "dom0", command, flags)
    words = command.split(" ")
    if len(words) != 3:  # noqa: PLR2004
        raise ProtocolError(f"expected `{_RPC} SERVICE SOURCE`")
    service, argument = parse_service(words[1])
    plus = "+" if "+" in words[1] else ""
    descriptor = f"{service}{plus}{argument}"
    return AdminCall(name, account, descriptor, QubeName.parse(words[2]), "", flags)


def parse_agent(untrusted: bytes) -> Exited | SetUpEnded:
    """A message of an admitted agent.

    Raises:
        ProtocolError: it is malformed.
    """
    if untrusted[:1] == b"U":
        failures = _number(untrusted[1:])
        if failures > MOST_FAILURES:
            raise ProtocolError(f"{failures} failures are above {MOST_FAILURES}")
        return SetUpEnded(failures)
    if untrusted[:1] != b"X":
        raise ProtocolError(f"unknown message `{shown(untrusted[:1])}`")
    number, _, code = untrusted[1:].partition(b"\0")
    value = _number(code)
    if value > Code.LOST:
        raise ProtocolError(f"exit code {value} is above 255")
    return Exited(_number(number), value)


def exited(code: int) -> bytes:
    """To a client: the exit code."""
    return b"X%d" % code


def problem(code: int, message: str) -> bytes:
    """To a client: the broker's own exit code, and why."""
    return b"E%d\0%s" % (code, message.encode())


def start_service(number: int, user: str, descriptor: str, source: str, flags: str) -> bytes:
    """To an agent: run a service."""
    return f"S{number}\0{user}\0{descriptor}\0{source}\0{flags}".encode()


def start_command(number: int, user: str, command: str, flags: str) -> bytes:
    """To an agent: run a shell command."""
    before = NO_GUI if WITHOUT_SESSION in flags else ""
    return f"M{number}\0{user}\0{before}{command}".encode()


ACCEPTED = b"A"
REFUSED = b"R"
ADMITTED = b"W"


def not_admitted(reason: str) -> bytes:
    """To a process that claimed to be the agent."""
    return b"N" + reason.encode()


def _fields(untrusted: bytes, *counts: int) -> list[str]:
    try:
        fields = untrusted[1:].decode("ascii").split("\0")
    except UnicodeDecodeError:
        raise ProtocolError("the message holds bytes that are not ASCII") from None
    if len(fields) not in counts:
        wanted = " or ".join(map(str, counts))
        raise ProtocolError(f"expected {wanted} fields, got {len(fields)}")
    return fields


def _number(untrusted: bytes) -> int:
    if not _NUMBER.fullmatch(untrusted):
        raise ProtocolError(f"`{shown(untrusted)}` is not a number")
    return int(untrusted)


def _parse_report(untrusted: bytes) -> Report:
    try:
        return _report.decode(untrusted)
    except (msgspec.DecodeError, RecursionError) as e:
        raise ProtocolError(f"the barrier report is malformed: {shown(str(e))}") from None
