"""What an agent asks for, made into checked types (sheet `qrexec`, section 1.5). Pure.

Characters that names cannot have become `_`, as agents expect. That is done once, here: policy,
log and service are told the very same bytes (QSB-038).
"""

from __future__ import annotations

import re
import string
import struct

import msgspec

from caisson.errors import CaissonError
from caisson.names import ServiceArgument, ServiceName
from caisson.qrexec.policy_messages import Query
from caisson.qrexec.vchan.frames import IDENT_SIZE, LONGEST_SERVICE, Kind
from caisson.qrexec.wire import parse_service, parse_source

# Service, target and ident; target and ident; source, target and ident.
_FIXED = {
    Kind.TRIGGER_SERVICE: struct.Struct("64s32s32s"),
    Kind.TRIGGER_SERVICE3: struct.Struct("64s32s"),
    Kind.TRIGGER_SERVICE4: struct.Struct("64s64s32s"),
}
TRIGGERS = frozenset(_FIXED)
_LETTERS = string.ascii_letters + string.digits


def _only(allowed: str) -> bytes:
    """A table that makes `_` of every other byte."""
    return bytes(code if chr(code) in allowed else ord("_") for code in range(256))


_SERVICE = _only(f"{_LETTERS}_.+-")
_NAME = _only(f"{_LETTERS}_.@:-")
_IDENT = re.compile(rb"([A-Za-z0-9_. -]{0,31})\0+")


class Requested(msgspec.Struct, frozen=True):
    """A program in the qube asks for a service.

    Args:
        ident: the agent's name for the request, without its padding.
        source: the RemoteVM that the qube, its relay, speaks for; empty: none.
        target: checked for its characters only.
        service: the service.
        argument: the text behind the `+`.
    """

    ident: bytes
    source: str
    target: str
    service: ServiceName
    argument: ServiceArgument

    @property
    def descriptor(self) -> str:
        """Service and argument as policy, log and service see them: always with a `+`."""
        return f"{self.service}+{self.argument}"

    def query(self, caller: str) -> Query:
        """The question to the policy."""
        return Query(caller, self.target, self.service, self.argument, self.source)


class Unacceptable(msgspec.Struct, frozen=True):
    """A request that is refused without asking the policy.

    Args:
        untrusted_ident: the 32 bytes that the agent is answered with.
        reason: why, for the log; what it quotes is harmless.
    """

    untrusted_ident: bytes
    reason: str


def bounds(kind: Kind) -> tuple[int, int]:
    """The shortest and the longest body of a trigger."""
    size = _FIXED[kind].size
    return (size, size) if kind is Kind.TRIGGER_SERVICE else (size + 1, size + LONGEST_SERVICE)


def parse_trigger(kind: Kind, untrusted_body: bytes) -> Requested | Unacceptable:
    """What a trigger asks for; the length of its body was checked."""
    fixed = _FIXED[kind].unpack_from(untrusted_body)
    untrusted_ident: bytes = fixed[-1]
    match kind:
        case Kind.TRIGGER_SERVICE:
            untrusted_service, untrusted_target = fixed[0][:-1] + b"\0", fixed[1]
            untrusted_service = untrusted_service[: untrusted_service.index(b"\0") + 1]
            untrusted_source = b""
        case Kind.TRIGGER_SERVICE3:
            untrusted_source, untrusted_target = b"", fixed[0]
            untrusted_service = untrusted_body[_FIXED[kind].size :]
        case _:
            untrusted_source, untrusted_target = fixed[0], fixed[1]
            untrusted_service = untrusted_body[_FIXED[kind].size :]
    ident = parse_ident(untrusted_ident)
    if ident is None:
        return Unacceptable(untrusted_ident, "the ident of the request is not valid")
    if reason := _fault(untrusted_service):
        return Unacceptable(untrusted_ident, reason)
    try:
        service, argument = parse_service(untrusted_service[:-1].translate(_SERVICE).decode())
        source = parse_source(_name(untrusted_source))
    except CaissonError as e:
        return Unacceptable(untrusted_ident, e.message)
    return Requested(ident, source, _name(untrusted_target), service, argument)


def parse_ident(untrusted: bytes) -> bytes | None:
    """The text of an ident that its padding, all zeros, follows; None: it is not valid."""
    found = _IDENT.fullmatch(untrusted) if len(untrusted) == IDENT_SIZE else None
    return found[1] if found else None


def _fault(untrusted_service: bytes) -> str:
    """What is wrong with a service, other than its characters; empty: nothing."""
    if untrusted_service.find(b"\0") != len(untrusted_service) - 1:
        return "the service does not end with its only NUL"
    if untrusted_service == b"\0":
        return "the service is empty"
    if untrusted_service.startswith(b"+"):
        return "the name of the service is empty"
    return ""


def _name(untrusted_array: bytes) -> str:
    """The text of an array, up to its first NUL; its last byte counts as one."""
    return untrusted_array[:-1].partition(b"\0")[0].translate(_NAME).decode()
