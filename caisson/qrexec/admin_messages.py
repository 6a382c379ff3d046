"""The datagrams that hand a call for the admin qube over to qubesd, and the bounds of both sides.

AF_UNIX SOCK_SEQPACKET, one connection a call. The broker sends one `Handover` in JSON with the
service's ends of three pipes (stdin, stdout, stderr); qubesd answers with one `Done` when the call
has ended. Either side hangs up to say that it is gone: the caller left, or the call failed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from caisson.errors import ProtocolError
from caisson.names import QubeName, ServiceArgument, ServiceName, shown
from caisson.qrexec.link import plain_name

LONGEST = 67_000
PIPES = 3
MOST_CALLS = 512
"""Calls in flight in all, event streams among them."""
MOST_OF_ONE = 64
"""Calls of one qube in flight."""

_PREFIX = "admin."
_OTHERS = frozenset({"qubes.FeaturesRequest", "qubes.NotifyTools", "qubes.NotifyUpdates"})
POLICY_SERVICES = frozenset(
    {
        "policy.EvalGUI",
        "policy.EvalSimple",
        "policy.Get",
        "policy.GetFiles",
        "policy.List",
        "policy.RegisterArgument",
        "policy.Remove",
        "policy.Replace",
        "policy.include.Get",
        "policy.include.List",
        "policy.include.Remove",
        "policy.include.Replace",
    }
)
"""Services that answer with bytes of their own, not with frames of the Admin API."""

TargetType = Literal["name", "keyword"]
Target = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:@-]{1,63}\Z")]


class Handover(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that the policy allows.

    `argument` has its `+`. `requested` is what the caller asked for, a keyword without its `@`.
    `just_start`: the caller waits for no input, output or end.
    """

    id: int
    service: str
    argument: str
    source: str
    target_type: TargetType
    requested: Target
    just_start: bool = False


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The call ended."""

    code: Annotated[int, msgspec.Meta(ge=0, le=255)]


_encoder = msgspec.json.Encoder(enc_hook=plain_name)
_handover: msgspec.json.Decoder[Handover] = msgspec.json.Decoder(Handover)
_done: msgspec.json.Decoder[Done] = msgspec.json.Decoder(Done)


def encode(message: Handover | Done) -> bytes:
    """A datagram."""
    return _encoder.encode(message)


def read_handover(untrusted: bytes | memoryview) -> Handover:
    """What the broker hands over, of which no name is checked yet.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return _handover.decode(untrusted)
    except (msgspec.DecodeError, RecursionError) as e:
        raise ProtocolError(f"the message is malformed: {shown(str(e))}") from None


def read_done(message: bytes) -> Done:
    """The answer of qubesd.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return _done.decode(message)
    except msgspec.DecodeError as e:
        raise ProtocolError(f"the message is malformed: {shown(str(e))}") from None


def of_qubesd(service: str) -> bool:
    """Whether qubesd answers by itself; a program in the admin qube serves any other."""
    return service.startswith(_PREFIX) or service in _OTHERS or service in POLICY_SERVICES


def checked(handover: Handover) -> tuple[QubeName, ServiceName, ServiceArgument]:
    """Source, service and argument.

    Raises:
        CaissonError: one is malformed, or the call is never handed over.
    """
    source = QubeName.parse(handover.source)
    service = ServiceName.parse(handover.service)
    if source == "dom0":
        raise ProtocolError("nobody calls in the name of the admin qube here")
    if handover.argument[:1] != "+":
        raise ProtocolError("the argument does not start with `+`")
    return source, service, ServiceArgument.parse(handover.argument[1:])


def split_target(requested: str) -> tuple[TargetType, str]:
    """A target as the service is told of it: its kind, and the text without `@`."""
    if requested.startswith("@"):
        return "keyword", requested[1:]
    return "name", requested


class Shares:
    """How many calls each qube has in flight.

    A qube may have as many as others leave free, up to a bound of its own: there is always room
    for another qube.

    Args:
        most: in all.
        of_one: of one qube.
    """

    def __init__(self, most: int = MOST_CALLS, of_one: int = MOST_OF_ONE) -> None:
        self._most = most
        self._of_one = of_one
        self._all = 0
        self._used: dict[str, int] = {}

    def take(self, source: str) -> bool:
        """Count a call; False: there is no room for it."""
        used = self._used.get(source, 0)
        if used >= min(self._of_one, self._most - self._all):
            return False
        self._used[source] = used + 1
        self._all += 1
        return True

    def give_back(self, source: str) -> None:
        """A call that was counted ended."""
        self._all -= 1
        self._used[source] -= 1
        if not self._used[source]:
            del self._used[source]
