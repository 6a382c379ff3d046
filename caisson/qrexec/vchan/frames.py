"""The frames of the qrexec wire protocol (sheet `qrexec`, section 1.1). Pure.

A frame is a type and the length of its body, 4 bytes each, then the body; integers are little
endian. What is written here has no byte that was not meant: arrays are padded with zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from caisson.errors import ProtocolError

VERSION = 4
OLDEST = 2
"""The versions of the protocol that an agent may speak."""
LOCAL_VERSION = 3
"""The version on the daemon's own socket."""

CONTROL_PORT = 512
LONGEST_SERVICE = 65_000
"""Bytes of service, argument and the NUL behind them."""
LONGEST_COMMAND_BODY = 65_535
IDENT_SIZE = 32

_header = struct.Struct("<II")
_params = struct.Struct("<II")
_number = struct.Struct("<I")
HEADER_SIZE = _header.size
PARAMS_SIZE = _params.size
HELLO_SIZE = _number.size


class MalformedError(ProtocolError):
    """Bytes that break the protocol: whoever sent them is not listened to any more."""


class Kind(IntEnum):
    """The types of frames."""

    STDIN = 0x190
    STDOUT = 0x191
    STDERR = 0x192
    EXIT_CODE = 0x193
    EXEC_CMDLINE = 0x200
    JUST_EXEC = 0x201
    SERVICE_CONNECT = 0x202
    SERVICE_REFUSED = 0x203
    TRIGGER_SERVICE = 0x210
    TERMINATED = 0x211
    TRIGGER_SERVICE3 = 0x212
    TRIGGER_SERVICE4 = 0x213
    HELLO = 0x300


_KINDS = {int(kind): kind for kind in Kind}

Admit = Callable[[Kind, int], None]
"""Looks at a type and a length before the body is waited for; raises `MalformedError`."""


class Params(NamedTuple):
    """Which qube is to be connected, and by which port; 0: any."""

    domain: int
    port: int


class Splitter:
    """Takes frames out of a stream that comes in any pieces.

    It holds no more than one frame that was admitted, and the piece that came last.
    """

    __slots__ = ("_at", "_buffer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0

    @property
    def held(self) -> int:
        """Bytes that belong to no whole frame yet."""
        return len(self._buffer) - self._at

    def feed(self, untrusted: bytes) -> None:
        """Append what came."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += untrusted

    def next(self, admit: Admit) -> tuple[Kind, bytes] | None:
        """The next whole frame; None until more comes.

        Raises:
            MalformedError: its type is unknown, or `admit` refused it.
        """
        if self.held < HEADER_SIZE:
            return None
        number, length = _header.unpack_from(self._buffer, self._at)
        kind = _KINDS.get(number)
        if kind is None:
            raise MalformedError(f"unknown type 0x{number:x}")
        admit(kind, length)
        begin = self._at + HEADER_SIZE
        if len(self._buffer) - begin < length:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[begin : begin + length])
        self._at = begin + length
        return kind, body


def frame(kind: Kind, body: bytes) -> bytes:
    """A frame."""
    return _header.pack(kind, len(body)) + body


def hello(version: int) -> bytes:
    """The first message of each side."""
    return frame(Kind.HELLO, _number.pack(version))


def parse_hello(untrusted_body: bytes) -> int:
    """The version that a hello names.

    Raises:
        MalformedError: the body has not 4 bytes.
    """
    if len(untrusted_body) != HELLO_SIZE:
        raise MalformedError(f"a hello has {len(untrusted_body)} bytes in place of 4")
    version: int = _number.unpack(untrusted_body)[0]
    return version


def params(kind: Kind, domain: int, port: int, rest: bytes = b"") -> bytes:
    """A frame that begins with domain and port."""
    return _header.pack(kind, PARAMS_SIZE + len(rest)) + _params.pack(domain, port) + rest


def parse_params(untrusted_body: bytes) -> Params:
    """Domain and port at the beginning of a body, whose length was checked."""
    return Params(*_params.unpack_from(untrusted_body))


def padded(text: bytes, size: int) -> bytes:
    """An array of characters: what is not text is zero.

    Raises:
        ValueError: the text and a NUL do not fit.
    """
    if len(text) >= size or b"\0" in text:
        raise ValueError(f"{len(text)} bytes do not fit into an array of {size}")
    return text.ljust(size, b"\0")


def refused(untrusted_ident: bytes) -> bytes:
    """To an agent: the request with these 32 bytes is refused.

    Raises:
        ValueError: they are not 32.
    """
    if len(untrusted_ident) != IDENT_SIZE:
        raise ValueError(f"an ident has {len(untrusted_ident)} bytes")
    return frame(Kind.SERVICE_REFUSED, untrusted_ident)


def connect(domain: int, port: int, ident: bytes) -> bytes:
    """To an agent, and to its daemon: wait for the service of a request there."""
    return params(Kind.SERVICE_CONNECT, domain, port, padded(ident, IDENT_SIZE))


def execute(kind: Kind, domain: int, port: int, command: bytes) -> bytes:
    """To an agent, and to its daemon: run a command, without a NUL.

    Raises:
        ValueError: the command holds a NUL.
    """
    if b"\0" in command:
        raise ValueError("a command holds a NUL")
    return params(kind, domain, port, command + b"\0")
