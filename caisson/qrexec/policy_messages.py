"""What programs ask the policy socket, and its answers (sheet `qrexec`, section 4.1).

A request is lines of `key=value` that an empty line ends; the answer is lines, too, up to the
end of the stream. Whoever asks connects the two qubes itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from caisson.errors import ProtocolError
from caisson.names import DOM0, ServiceArgument, ServiceName, shown
from caisson.policy import Allow, SystemInfo
from caisson.qrexec.wire import LONGEST, parse_service, parse_source, parse_target

LONGEST_QUERY = LONGEST
LONGEST_ANSWER = 4095
"""What the programs that ask have room for."""
DENIED = b"result=deny\n"

_END = b"\n\n"
_REQUIRED = frozenset({"source", "intended_target", "service_and_arg"})
_SWITCHES = frozenset({"assume_yes_for_ask", "just_evaluate"})
_KNOWN = _REQUIRED | _SWITCHES | {"requested_source"}
_BOOLEANS = {"yes": True, "no": False}


class Query(msgspec.Struct, frozen=True):
    """A question about one call.

    Args:
        source: the calling qube.
        target: what it asks for; empty is `@default`.
        service: the service.
        argument: the text behind the `+`; empty for none.
        requested_source: the RemoteVM that the caller, its relay, speaks for; empty: none.
        assume_yes: where the policy asks a person, nobody is asked, and a yes is assumed.
        just_evaluate: nobody makes the call: nobody is asked or told anything.
    """

    source: str
    target: str
    service: ServiceName
    argument: ServiceArgument
    requested_source: str = ""
    assume_yes: bool = False
    just_evaluate: bool = False

    @property
    def descriptor(self) -> str:
        """Service and argument in one word; a bare `+` is left out."""
        return f"{self.service}+{self.argument}" if self.argument else self.service


def is_whole(untrusted: bytes | bytearray, fresh: int) -> bool:
    """Whether the empty line that ends a request is among the last `fresh` bytes of it."""
    return untrusted.startswith(b"\n") or _END in untrusted[-fresh - 1 :]


def parse_query(untrusted: bytes) -> Query:
    """The question that a request asks.

    Raises:
        CaissonError: it is malformed.
    """
    if not untrusted.endswith(_END):
        raise ProtocolError("no empty line ends the request")
    values = _values(untrusted.removesuffix(_END))
    service, argument = parse_service(values["service_and_arg"])
    return Query(
        source=parse_source(values["source"]),
        target=parse_target(values["intended_target"]),
        service=service,
        argument=argument,
        requested_source=parse_source(values.get("requested_source", "")),
        assume_yes=_switch(values, "assume_yes_for_ask"),
        just_evaluate=_switch(values, "just_evaluate"),
    )


def _values(untrusted: bytes) -> dict[str, str]:
    try:
        lines = untrusted.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise ProtocolError("the request holds bytes that are not ASCII") from None
    values: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise ProtocolError(f"`{shown(line)}` is not of the form `key=value`")
        if key not in _KNOWN:
            raise ProtocolError(f"unknown key `{shown(key)}`")
        if key in values:
            raise ProtocolError(f"key `{key}` is given twice")
        values[key] = value
    if missing := sorted(_REQUIRED - values.keys()):
        raise ProtocolError(f"key `{missing[0]}` is missing")
    return values


def _switch(values: dict[str, str], key: str) -> bool:
    value = values.get(key, "no")
    if value not in _BOOLEANS:
        raise ProtocolError(f"`{key}={shown(value)}` is neither yes nor no")
    return _BOOLEANS[value]


def encode_query(query: Query) -> bytes:
    """A question as it goes to the socket."""
    pairs = [
        ("source", query.source),
        ("intended_target", query.target),
        ("service_and_arg", f"{query.service}+{query.argument}"),
    ]
    if query.requested_source:
        pairs.append(("requested_source", query.requested_source))
    if query.assume_yes:
        pairs.append(("assume_yes_for_ask", "yes"))
    if query.just_evaluate:
        pairs.append(("just_evaluate", "yes"))
    return _lines(pairs) + b"\n"


def allowed(allow: Allow, query: Query, system: SystemInfo) -> bytes:
    """The answer that a call may be made; of a call to another machine, its first leg.

    Raises:
        ProtocolError: it does not fit into an answer.
    """
    target = allow.relay or allow.target
    pairs = [
        ("user", "DEFAULT" if allow.relay or not allow.user else allow.user),
        ("result", "allow"),
        ("target", target),
    ]
    if uuid := _uuid(target, system):
        pairs.append(("target_uuid", uuid))
    pairs += [
        ("autostart", str(allow.autostart)),
        ("requested_target", allow.requested_target),
    ]
    if allow.relay:
        pairs.append(("service", allow.service))
    if query.requested_source:
        pairs.append(("policy_source", allow.source))
    answer = _lines(pairs)
    if len(answer) > LONGEST_ANSWER:
        raise ProtocolError(f"the answer would be longer than {LONGEST_ANSWER} bytes")
    return answer


def _uuid(target: str, system: SystemInfo) -> str:
    base = target.removeprefix("@dispvm:")
    qube = system.find(base)
    if qube is None or qube.name == DOM0 or not qube.uuid:
        return ""
    return f"{'@dispvm:' if base != target else ''}uuid:{qube.uuid}"


def _lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{key}={value}\n" for key, value in pairs).encode()
