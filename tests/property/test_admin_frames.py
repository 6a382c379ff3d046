"""Requests and replies survive the wire, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caisson.admin import wire
from caisson.errors import CaissonError, PolicyTokenError, ProtocolError, QubeNotFoundError

WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="+"))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
KEYS = TEXT.filter(bool)


@given(method=WORDS, argument=st.text("ab+._-"), name=WORDS, payload=st.binary(max_size=2000))
def test_request_survives_the_wire(method: str, argument: str, name: str, payload: bytes) -> None:
    """What a client sends is what the daemon reads, with NULs and `+` where they are allowed."""
    request = wire.parse_request(wire.build_request(method, argument, name, payload))
    assert request == wire.Request(method, argument, "dom0", name, payload)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_framing_error(data: bytes) -> None:
    """No input raises anything else, and what is accepted has exactly the four fields."""
    try:
        request = wire.parse_request(data)
    except wire.FramingError:
        return
    header = data.split(b"\0", 1)[0].decode("ascii")
    assert header.count(" ") >= 3
    assert request.untrusted_payload == data.split(b"\0", 1)[1]


@given(text=TEXT, hint=st.none() | TEXT.filter(bool))
def test_refusal_survives_the_wire(text: str, hint: str | None) -> None:
    """Message and hint arrive as they were, `%` signs too."""
    frame = wire.exception(QubeNotFoundError(text, hint))
    assert frame.endswith(b"\0")
    assert frame.count(b"\0") == 4
    with pytest.raises(QubeNotFoundError) as caught:
        wire.parse_reply(frame)
    assert str(caught.value) == str(QubeNotFoundError(text, hint))


@given(text=TEXT)
def test_refusal_can_be_formatted_by_an_unmodified_client(text: str) -> None:
    """Trap 1: such a client applies `%` with no fields to the text, and must not crash."""
    body = wire.exception(CaissonError(text)).split(b"\0")[3].decode()
    assert body % () == text


EVENTS = st.lists(st.tuples(TEXT, KEYS, st.dictionaries(KEYS, TEXT, max_size=4)), max_size=5)


@given(events=EVENTS, size=st.integers(1, 50))
def test_events_survive_any_cutting_of_the_stream(
    events: list[tuple[str, str, dict[str, str]]], size: int
) -> None:
    """However the stream is cut into pieces, the same events come out."""
    stream = b"".join(wire.event(*event) for event in events)
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    found = [(e.subject, e.name, e.arguments) for e in wire.parse_events(chunks)]
    assert found == events


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_are_events_or_an_error(chunks: list[bytes]) -> None:
    """A hostile or broken stream ends in an error that a command can show."""
    try:
        list(wire.parse_events(chunks))
    except CaissonError:
        return


@pytest.mark.parametrize("word", ["a b", "a\0b", "ä"])
def test_a_word_cannot_reach_into_another_field(word: str) -> None:
    """A qube name with a space would otherwise shift the fields of the header."""
    for fields in ((word, "", "dom0"), ("m", word, "dom0"), ("m", "", word)):
        with pytest.raises(ProtocolError):
            wire.build_request(*fields)


KINDS = st.sampled_from([PolicyTokenError, ProtocolError, CaissonError])


@given(kind=KINDS, text=TEXT, hint=st.none() | KEYS)
def test_complaint_of_a_service_survives_standard_error(
    kind: type[CaissonError], text: str, hint: str | None
) -> None:
    """Class, message and hint come back as they were told (sheet `qrexec`, section 4.4)."""
    error = wire.parse_complaint(wire.complaint(kind(text, hint)))
    assert error is not None
    assert (error.wire_name, str(error)) == (kind.wire_name, str(kind(text, hint)))


@given(st.binary())
def test_any_standard_error_is_a_complaint_or_none(data: bytes) -> None:
    """What else a program says there is no refusal of the service."""
    error = wire.parse_complaint(data)
    assert error is None or data.startswith(error.wire_name.encode())
