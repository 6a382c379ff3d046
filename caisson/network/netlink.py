"""Batches of rtnetlink requests on a raw socket, encoded by pyroute2.

One batch is one system call; the kernel answers each request with its own error.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from caisson.errors import InternalError, NetworkError
from caisson.network.namespaces import Namespace

_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3
_F_REQUEST, _F_ACK, _F_DUMP = 0x1, 0x4, 0x300
_F_REPLACE, _F_EXCL, _F_CREATE = 0x100, 0x200, 0x400
_F_ACK_TLVS = 0x200
_ATTRIBUTE_MESSAGE = 1
_PATIENCE = 10.0
_HINTS = {
    errno.EPERM: "qubesd needs root: CAP_NET_ADMIN over the qube's namespace",
    errno.EOPNOTSUPP: "load the kernel module `veth`",
    errno.ENODEV: "the qube has just ended; start it again",
}
_BUFFER = 1 << 16

NEW = _F_CREATE | _F_EXCL
SET = _F_CREATE | _F_REPLACE
DUMP = _F_DUMP

_LINK, _NEW_LINK, _DEL_LINK, _GET_LINK = ifinfmsg, 16, 17, 18
_NEW_ADDRESS, _GET_ADDRESS, _NEW_ROUTE, _GET_NSID = 20, 22, 24, 90

Attributes = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Request:
    """One request to the kernel.

    Attributes:
        what: the step as an error names it, for example "set the address".
        kind: the number of the request.
        encoding: the pyroute2 class of the message.
        flags: beyond the ones that every request has.
        head: fields of the fixed part.
        attributes: name and value pairs.
    """

    what: str
    kind: int
    encoding: Any
    flags: int = 0
    head: Mapping[str, int] = field(default_factory=dict)
    attributes: Attributes = ()

    def encode(self, sequence: int) -> bytes:
        """The bytes of the message."""
        message = self.encoding()
        for name, value in self.head.items():
            message[name] = value
        message["attrs"] = list(self.attributes)
        acknowledge = 0 if self.flags & _F_DUMP == _F_DUMP else _F_ACK
        message["header"]["type"] = self.kind
        message["header"]["flags"] = _F_REQUEST | acknowledge | self.flags
        message["header"]["sequence_number"] = sequence
        message.encode()
        return bytes(message.data)


@dataclass
class Answer:
    """What the kernel said to one request: an error number (0: done) and the payloads."""

    request: Request
    code: int = 0
    detail: str = ""
    payloads: list[bytes] = field(default_factory=list)


class RefusedError(NetworkError):
    """The kernel refused a request.

    Args:
        answer: the first answer of the batch that is an error.
        where: the namespace.
    """

    def __init__(self, answer: Answer, where: str) -> None:
        reason = os.strerror(answer.code) + (f" ({answer.detail})" if answer.detail else "")
        super().__init__(
            f"cannot {answer.request.what} in {where}: {reason}",
            hint=_HINTS.get(answer.code, "see what this machine lacks: `caisson doctor`"),
        )
        self.code = answer.code
        self.request = answer.request


class Channel:
    """A socket that speaks to the kernel about one namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._where = namespace.what
        self._socket = namespace.run(
            socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._socket.settimeout(_PATIENCE)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._sequence = 0

    def ask(self, *requests: Request) -> list[Answer]:
        """Send a batch; return the answers in order, errors among them."""
        first = self._sequence + 1
        answers = [Answer(request) for request in requests]
        self._sequence += len(requests)
        self._socket.send(
            b"".join(request.encode(first + place) for place, request in enumerate(requests))
        )
        waiting = set(range(len(requests)))
        while waiting:
            for kind, flags, sequence, body in messages(self._socket.recv(_BUFFER)):
                place = sequence - first
                if place not in waiting:
                    continue  # an answer to an earlier batch that was given up
                if kind in (_ERROR, _DONE):
                    _note_end(answers[place], kind, flags, body)
                    waiting.discard(place)
                else:
                    answers[place].payloads.append(body)
        return answers

    def change(self, *requests: Request) -> None:
        """Send a batch in which nothing may fail.

        Raises:
            RefusedError: the first that did; the ones after it were tried all the same.
        """
        for answer in self.ask(*requests):
            if answer.code:
                raise RefusedError(answer, self._where)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def where(self) -> str:
        """The namespace, as an error names it."""
        return self._where


@dataclass(frozen=True)
class Interface:
    """A network interface as the kernel shows it; `peer` is the other end of a veth."""

    index: int
    name: str
    up: bool
    peer: int | None
    peer_namespace: int | None


def new_pair(
    name: str, mac: str, peer_name: str, peer_mac: str, peer_namespace: Namespace
) -> Request:
    """Make a veth with one end here and the other directly in its namespace, both down."""
    peer = {
        "attrs": [
            ("IFLA_IFNAME", peer_name),
            ("IFLA_ADDRESS", peer_mac),
            ("IFLA_NET_NS_FD", peer_namespace.descriptor),
        ]
    }
    kind = {
        "attrs": [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
        ]
    }
    attributes = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_LINKINFO", kind)]
    return Request(f"make the interface `{name}`", _NEW_LINK, ifinfmsg, NEW, attributes=attributes)


def set_up(index: int) -> Request:
    """Bring an interface up."""
    head = {"index": index, "flags": 1, "change": 1}
    return Request("bring the interface up", _NEW_LINK, ifinfmsg, head=head)


def delete_link(index: int) -> Request:
    """Delete an interface, and with it the other end of a veth."""
    return Request("delete the interface", _DEL_LINK, ifinfmsg, head={"index": index})


def get_link(name: str) -> Request:
    """Ask for one interface."""
    attributes = [("IFLA_IFNAME", name)]
    return Request(f"find the interface `{name}`", _GET_LINK, ifinfmsg, attributes=attributes)


def all_links() -> Request:
    """Ask for every interface."""
    return Request("list the interfaces", _GET_LINK, ifinfmsg, DUMP)


def add_address(index: int, address: str) -> Request:
    """Give an interface an address of its own, without a network around it."""
    return Request(
        f"set the address `{address}`",
        _NEW_ADDRESS,
        ifaddrmsg,
        NEW,
        head={"family": socket.AF_INET, "prefixlen": 32, "index": index},
        attributes=[("IFA_LOCAL", address), ("IFA_ADDRESS", address)],
    )


def all_addresses() -> Request:
    """Ask for every address, of every family."""
    return Request("list the addresses", _GET_ADDRESS, ifaddrmsg, DUMP)


def add_route(index: int, to: str | None, via: str | None, source: str | None = None) -> Request:
    """Route one address (None: everything) out of an interface, directly or via a gateway."""
    attributes: list[tuple[str, Any]] = [("RTA_OIF", index), ("RTA_TABLE", 254)]
    if to is not None:
        attributes.append(("RTA_DST", to))
    if via is not None:
        attributes.append(("RTA_GATEWAY", via))
    if source is not None:
        attributes.append(("RTA_PREFSRC", source))
    return Request(
        f"set the route to `{to or 'everything'}`",
        _NEW_ROUTE,
        rtmsg,
        NEW,
        head={
            "family": socket.AF_INET,
            "dst_len": 0 if to is None else 32,
            "table": 254,
            "proto": 4,
            "scope": 253 if via is None else 0,
            "type": 1,
        },
        attributes=attributes,
    )


def get_number(namespace: Namespace) -> Request:
    """Ask by which number the channel's namespace knows another one."""
    attributes = [("NETNSA_FD", namespace.descriptor)]
    return Request("tell the namespaces apart", _GET_NSID, nsidmsg, attributes=attributes)


def interface_of(answer: Answer) -> Interface | None:
    """The interface that `get_link` found, or None."""
    if answer.code in (errno.ENODEV, errno.ENOENT):
        return None
    if answer.code or not answer.payloads:
        raise RefusedError(answer, "the namespace")
    return parse_interface(answer.payloads[0])


def parse_interface(body: bytes) -> Interface:
    """An RTM_NEWLINK message."""
    _family, _type, index, flags, _change = struct.unpack_from("=BxHiII", body)
    found = dict(attributes(body[16:]))
    return Interface(
        index=index,
        name=found[3].rstrip(b"\0").decode(),
        up=bool(flags & 1),
        peer=_integer(found.get(5)),
        peer_namespace=_integer(found.get(37)),
    )


def number_of(answer: Answer) -> int | None:
    """The number that `get_number` found; None when there is none yet."""
    if answer.code or not answer.payloads:
        return None
    number = _integer(dict(attributes(answer.payloads[0][4:])).get(1))
    return None if number is None or number < 0 else number


def addresses_of(answer: Answer, index: int | None = None) -> frozenset[str]:
    """The addresses that `all_addresses` found: of one interface, or of all."""
    found = set()
    for body in answer.payloads:
        family, _prefix, _flags, _scope, of_index = struct.unpack_from("=BBBBi", body)
        known = dict(attributes(body[8:]))
        address = known.get(2) or known.get(1)
        if address is not None and index in (None, of_index):
            found.add(socket.inet_ntop(family, address))
    return frozenset(found)


def _integer(value: bytes | None) -> int | None:
    return None if value is None else int(struct.unpack("=i", value)[0])


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence number and body of each netlink message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            raise InternalError("a netlink message without a length")
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each netlink attribute."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _note_end(answer: Answer, kind: int, flags: int, body: bytes) -> None:
    if len(body) >= 4:  # noqa: PLR2004  # the error number
        answer.code = -struct.unpack_from("=i", body)[0]
    if kind == _ERROR and answer.code and flags & _F_ACK_TLVS:
        message = dict(attributes(body[4 + _HEADER.size :])).get(_ATTRIBUTE_MESSAGE, b"")
        answer.detail = message.rstrip(b"\0").decode(errors="replace")
