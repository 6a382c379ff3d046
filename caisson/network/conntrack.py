"""Forgetting connections: the kernel remembers them by address, and addresses are used again.

Without this the answers to an ended disposable would be delivered to the next one that gets its
address, for up to five days.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address

from caisson.errors import NetworkError
from caisson.network.netlink import attributes, messages

_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _ZONE, _ID = 1, 18, 12
_TUPLE_IP, _IP_SRC = 1, 1
_NESTED = 0x8000
_BUFFER = 1 << 16
_PATIENCE = 10.0


def forget(sources: Collection[IPv4Address]) -> int:
    """Drop every connection that one of the addresses opened, in the thread's namespace.

    Returns:
        How many there were.

    Raises:
        NetworkError: the kernel cannot list them.
    """
    if not sources:
        return 0
    wanted = {address.packed for address in sources}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as channel:
        channel.settimeout(_PATIENCE)
        channel.bind((0, 0))
        found = [body for body in _dump(channel) if _source(body) in wanted]
        for number, body in enumerate(found, start=2):
            channel.send(_request(_DELETE, _ACK, number, _identity(body)))
            code = _end_of(channel, number)
            if code not in (0, errno.ENOENT):
                raise NetworkError(
                    f"cannot drop a connection: {os.strerror(code)}",
                    hint="restart the network qube to be sure that none is left",
                )
    return len(found)


def _request(kind: int, flags: int, sequence: int, body: bytes = b"") -> bytes:
    family = struct.pack("=BBH", socket.AF_INET, 0, 0)
    length = 16 + len(family) + len(body)
    return struct.pack("=IHHII", length, kind, _REQUEST | flags, sequence, 0) + family + body


def _dump(channel: socket.socket) -> Iterator[bytes]:
    channel.send(_request(_GET, _DUMP, 1))
    while True:
        for kind, _flags, sequence, body in messages(channel.recv(_BUFFER)):
            if sequence != 1:
                continue
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise NetworkError(
                    f"cannot list the connections: {os.strerror(code)}",
                    hint="load the kernel module `nf_conntrack_netlink`",
                )
            yield body[4:]


def _end_of(channel: socket.socket, number: int) -> int:
    while True:
        for kind, _flags, sequence, body in messages(channel.recv(_BUFFER)):
            if kind == _ERROR and sequence == number:
                return int(-struct.unpack_from("=i", body)[0])


def _source(body: bytes) -> bytes | None:
    """The address that opened a connection."""
    there = dict(attributes(body)).get(_TUPLE_ORIG, b"")
    addresses = dict(attributes(there)).get(_TUPLE_IP, b"")
    return dict(attributes(addresses)).get(_IP_SRC)


def _identity(body: bytes) -> bytes:
    """The attributes by which the kernel finds one connection again."""
    there = dict(attributes(body))
    return b"".join(
        _attribute(kind | (_NESTED if kind == _TUPLE_ORIG else 0), there[kind])
        for kind in (_TUPLE_ORIG, _ZONE, _ID)
        if kind in there
    )


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
