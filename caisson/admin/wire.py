"""Requests and replies of the Admin API as bytes (specification sheet `admin-api`, section 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from caisson.errors import CaissonError, ProtocolError
from caisson.names import shown

LONGEST_REQUEST = 65_536
LONGEST_POLICY_REQUEST = 1_049_600
"""A policy file of 1 MiB (`caisson.store.policy_store.LARGEST`), its token and the header."""

_POLICY = b"policy."
_OK = b"0\0"
_EVENT = b"1\0"
_EXCEPTION = b"2\0"


class FramingError(ProtocolError):
    """Bytes that are not a request at all: the connection is dropped without a reply."""


class Request(NamedTuple):
    """One request, split into its fields, of which none has been checked yet."""

    untrusted_method: str
    untrusted_argument: str
    untrusted_source: str
    untrusted_destination: str
    untrusted_payload: bytes


def longest_request(untrusted: bytes | bytearray) -> int:
    """How many bytes a request may have that begins like this."""
    return LONGEST_POLICY_REQUEST if untrusted.startswith(_POLICY) else LONGEST_REQUEST


def parse_request(untrusted: bytes) -> Request:
    """Split the bytes of one complete request.

    Raises:
        FramingError: the header is not one, or the request is too long.
    """
    if len(untrusted) > (longest := longest_request(untrusted)):
        raise FramingError(f"request is longer than {longest} bytes")
    untrusted_header, nul, untrusted_payload = untrusted.partition(b"\0")
    if not nul:
        raise FramingError("request header does not end in a NUL byte")
    if not untrusted_header.isascii():
        raise FramingError("request header is not ASCII")
    fields = untrusted_header.decode("ascii").split(" ", 3)
    if len(fields) != 4:  # noqa: PLR2004 - the four fields of the header
        raise FramingError("request header does not have four fields")
    service, source, destination_type, destination = fields
    if destination_type == "keyword" and destination == "adminvm":
        destination = "dom0"
    elif destination_type != "name":
        raise FramingError("request destination is neither a name nor the admin qube")
    method, _, argument = service.partition("+")
    return Request(method, argument, source, destination, untrusted_payload)


def build_request(
    method: str,
    argument: str = "",
    destination: str = "dom0",
    payload: bytes = b"",
    source: str = "dom0",
) -> bytes:
    """Return the bytes of a request; by default the admin qube makes it.

    Raises:
        ProtocolError: a word would end up in another field.
    """
    for word in (method, argument, source, destination):
        if not word.isascii() or " " in word or "\0" in word:
            raise ProtocolError(f"`{shown(word)}` cannot be part of a request")
    return f"{method}+{argument} {source} name {destination}".encode() + b"\0" + payload


def ok(content: bytes = b"") -> bytes:
    """Return the frame of a success."""
    return _OK + content


def event(subject: str, name: str, arguments: Mapping[str, str]) -> bytes:
    """Return the frame of one event; an empty subject means the system as a whole."""
    words = [subject, name]
    for key, value in arguments.items():
        words += (key, value)
    return _EVENT + b"".join(_token(word) for word in words) + b"\0"


def exception(error: CaissonError) -> bytes:
    """Return the frame of a refusal.

    Clients apply `%` to the text even when there are no fields, so each `%` is doubled.
    """
    text = str(error).replace("%", "%%")
    return _EXCEPTION + _token(error.wire_name) + _token("") + _token(text)


def _token(text: str) -> bytes:
    """One NUL-terminated word; a NUL inside would shift every word after it."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace") + b"\0"


class Occurrence(NamedTuple):
    """An event as a client receives it; the subject is empty for the system as a whole."""

    subject: str
    name: str
    arguments: dict[str, str]


def parse_reply(reply: bytes) -> bytes:
    """Return the content of a complete reply.

    Raises:
        CaissonError: the daemon's refusal, as its own class where it is known here.
        ProtocolError: the reply is neither a success nor a refusal.
    """
    if reply.startswith(_OK):
        return reply[len(_OK) :]
    if reply.startswith(_EXCEPTION):
        raise parse_exception(reply[len(_EXCEPTION) :])
    raise ProtocolError("the daemon's reply is not in the format of the Admin API")


def parse_exception(body: bytes) -> CaissonError:
    """Return the error that the body of an exception frame describes."""
    words = body.decode("utf-8", "backslashreplace").split("\0")
    if len(words) < 4:  # noqa: PLR2004 - type, traceback, text and what follows its terminator
        return ProtocolError("the daemon's reply is cut short")
    name, _, text, *fields = words
    text = _filled(text, tuple(fields[:-1]))
    message, _, hint = text.partition("\nhint: ")
    return _error_class(name)(message, hint or None)


def complaint(error: CaissonError) -> bytes:
    """Return what a service without a frame says about a refusal: `CLASS MESSAGE`."""
    return f"{error.wire_name} {error}\n".encode("utf-8", "backslashreplace")


def parse_complaint(stderr: bytes) -> CaissonError | None:
    """Return the error that a service without a frame told; None where it is none that we know."""
    said = stderr.decode("utf-8", "backslashreplace").removesuffix("\n")
    name, _, text = said.partition(" ")
    found = _known_error(name)
    message, _, hint = text.partition("\nhint: ")
    return None if found is None else found(message, hint or None)


def _filled(text: str, fields: tuple[str, ...]) -> str:
    try:
        return text % tuple(int(f) if f.isdigit() else f for f in fields)
    except (TypeError, ValueError):
        return text


def _error_class(name: str) -> type[CaissonError]:
    return _known_error(name) or _named(name)


def _known_error(name: str) -> type[CaissonError] | None:
    def below(klass: type[CaissonError]) -> Iterator[type[CaissonError]]:
        yield klass
        for sub in klass.__subclasses__():
            yield from below(sub)

    return next((k for k in below(CaissonError) if k.__dict__.get("wire_name") == name), None)


def _named(name: str) -> type[CaissonError]:
    """A class for a wire name that has none here: it keeps the name for whoever asks."""
    return type("RemoteError", (CaissonError,), {"wire_name": name})


def parse_events(chunks: Iterable[bytes]) -> Iterator[Occurrence]:
    """Yield the events of a stream as they arrive.

    Raises:
        CaissonError: the stream was refused instead.
        ProtocolError: a frame is not an event.
    """
    buffer = b""
    first = True
    for chunk in chunks:
        buffer += chunk
        while True:
            if first and buffer.startswith(_EXCEPTION):
                break
            end = _event_end(buffer)
            if end is None:
                break
            yield _occurrence(buffer[len(_EVENT) : end])
            buffer = buffer[end:]
            first = False
    if buffer and first:
        parse_reply(buffer)
    if buffer:
        raise ProtocolError("the daemon's event stream is cut short")


def _event_end(buffer: bytes) -> int | None:
    """Where the first event of the buffer ends; None when it is not complete."""
    if len(buffer) < len(_EVENT):
        return None
    if not buffer.startswith(_EVENT):
        raise ProtocolError("the daemon's event stream holds something else than events")
    position = len(_EVENT)
    word = 0
    while True:
        end = buffer.find(b"\0", position)
        if end < 0:
            return None
        # The subject may be empty; an empty key ends the event.
        if end == position and word >= 2 and word % 2 == 0:  # noqa: PLR2004
            return end + 1
        position = end + 1
        word += 1


def _occurrence(body: bytes) -> Occurrence:
    words = body[:-1].decode("utf-8", "backslashreplace").split("\0")
    subject, name, *rest = words
    return Occurrence(subject, name, dict(zip(rest[::2], rest[1::2], strict=False)))
