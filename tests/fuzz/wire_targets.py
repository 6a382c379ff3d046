"""The wire protocol: what agents, programs of the admin qube and the policy may say."""

from __future__ import annotations

import zlib

from wire_session import heard

from caisson.errors import ProtocolError
from caisson.qrexec.policy_messages import encode_query, parse_query
from caisson.qrexec.vchan import frames
from caisson.qrexec.vchan.broker_side import exit_code, parse_work
from caisson.qrexec.vchan.deciding import parse_answer
from caisson.qrexec.vchan.frames import Kind, MalformedError, Splitter
from caisson.qrexec.vchan.local import parse_command
from caisson.qrexec.vchan.untrusted import Requested, Unacceptable


def session(data: bytes) -> None:
    """A stream of an agent: the same in one piece and in two, and clean or refused."""
    whole = heard([data])
    at = zlib.crc32(data) % (len(data) + 1)
    assert heard([data[:at], data[at:]]) == whole, f"cut at {at} it means something else"
    events, error = whole
    assert error.isprintable(), "the error is no text for a log"
    for event in events:
        if isinstance(event, Requested):
            _check(event)
        elif isinstance(event, Unacceptable):
            assert event.reason.isprintable(), "the reason is no text for a log"
            frames.refused(event.untrusted_ident)


def command(data: bytes) -> None:
    """Frames of a program of the admin qube: what is taken is what was sent."""
    splitter = Splitter()
    splitter.feed(data)

    def admit(_kind: Kind, length: int) -> None:
        if not frames.PARAMS_SIZE < length <= frames.LONGEST_COMMAND_BODY:
            raise MalformedError(f"{length} bytes")

    try:
        while found := splitter.next(admit):
            wanted = parse_command(*found)
            if wanted.kind is Kind.SERVICE_CONNECT:
                again = frames.connect(wanted.domain, wanted.port, wanted.text)
                assert found[1].ljust(40, b"\0") == again[8:], "another request is connected"
            else:
                again = frames.execute(found[0], wanted.domain, wanted.port, wanted.text)
                assert found[1] == again[8:], "another command is run"
    except MalformedError as e:
        _harmless(e)


def answer(data: bytes) -> None:
    """An answer of the policy, and a message of the broker: taken, or refused with a reason."""
    exit_code(data)
    for parse in (parse_answer, parse_work):
        try:
            parse(data)
        except ProtocolError as e:
            _harmless(e)


def _harmless(error: ProtocolError) -> None:
    assert error.message.isprintable(), "the error is no text for a log"


def _check(request: Requested) -> None:
    """The policy is told what the service is told (QSB-038)."""
    query = parse_query(encode_query(request.query("work")))
    assert f"{query.service}+{query.argument}" == request.descriptor, "the policy sees another"
    assert (query.target, query.requested_source) == (request.target, request.source)
    frames.connect(0, 513, request.ident)
    frames.execute(Kind.EXEC_CMDLINE, 0, 0, f"user:QUBESRPC {request.descriptor} x".encode())
