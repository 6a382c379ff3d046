"""What a daemon makes of an agent's words, without an agent."""

from __future__ import annotations

from collections.abc import Iterable

from caisson.qrexec.vchan.control import Event, Session
from caisson.qrexec.vchan.frames import MalformedError


def heard(pieces: Iterable[bytes]) -> tuple[list[Event], str]:
    """What a session makes of the pieces of a stream, and the error that ends it."""
    session, events = Session(), []
    try:
        for piece in pieces:
            for event in session.receive(piece):
                events.append(event)  # noqa: PERF402 - the error comes in between
        session.end()
    except MalformedError as e:
        return events, e.message
    return events, ""
