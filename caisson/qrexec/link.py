"""The link between qubesd and the broker: a unix stream of JSON lines; here are its messages.

qubesd tells the broker what exists (`Snapshot`), which qubes run (`OpenQube`) and whose agent is
genuine (`Admit`); the broker reports agents and asks for starts and disposables.

Two promises:
- `BrokerLink.push` (`broker_link`) returns when the broker decides by the pushed state, or can no
  longer decide.
- The broker decides nothing without a live link: `DaemonLink.pump` (`daemon_link`) reads, before
  each decision, everything that qubesd has sent so far, and its end.

qubesd does not trust the broker (which parses what hostile qubes send): lines are bounded, names
are checked, and the peer's user is checked on both sides.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import msgspec.structs

from caisson.errors import DaemonError

LONGEST_LINE = 16 * 1024 * 1024
MOST_FAILURES = 100
"""An agent tells of no more things that failed."""
PIECE_QUBES = 256
PIECE_BYTES = 1024 * 1024
"""A snapshot goes over in lines of so much; a qube that takes more by itself has its own line."""


class Operation(StrEnum):
    """What the broker asks qubesd for."""

    START = "start"
    DISPOSABLE = "disposable"
    DISCARD = "discard"


class Barrier(msgspec.Struct, frozen=True):
    """One barrier as the agent found it from inside."""

    up: bool
    detail: str = ""


class Report(msgspec.Struct, frozen=True):
    """What the agent says of the walls around it; `fresh`: it knows of no former one's calls."""

    barriers: dict[str, Barrier]
    version: str = ""
    fresh: bool = False


class Snapshot(msgspec.Struct, frozen=True, tag=True):
    """What exists: everything (`full`), or what changed; or a piece of that.

    The pieces of a snapshot have its number and follow each other; all but the last say `more`.
    The broker takes them over as a whole, with the last.

    `domains` is as in `internal.GetSystemInfo`, or each of them encoded already (`encode_domain`);
    `open`, with `full`, names all running qubes.
    """

    seq: int
    full: bool
    domains: dict[str, Any]
    removed: list[str] = []
    open: list[str] = []
    more: bool = False


class OpenQube(msgspec.Struct, frozen=True, tag=True):
    """Listen for this qube."""

    name: str


class CloseQube(msgspec.Struct, frozen=True, tag=True):
    """The qube ended: take its socket and sessions away."""

    name: str


class Admit(msgspec.Struct, frozen=True, tag=True):
    """The process that said hello is the qube's agent, and its barriers are up."""

    name: str
    pid: int


class Reject(msgspec.Struct, frozen=True, tag=True):
    """The process that said hello is not served."""

    name: str
    pid: int
    reason: str


class Reply(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `Request`."""

    id: int
    ok: bool
    value: str = ""
    error: str = ""


class Ack(msgspec.Struct, frozen=True, tag=True):
    """The broker decides by the snapshot of this number."""

    seq: int


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The broker listens for this qube."""

    name: str


class AgentHello(msgspec.Struct, frozen=True, tag=True):
    """A process of the qube claims to be its agent; `pid` and `uid` come from the kernel."""

    name: str
    pid: int
    uid: int
    report: Report


class AgentGone(msgspec.Struct, frozen=True, tag=True):
    """The session of the qube's agent ended."""

    name: str


class SetUp(msgspec.Struct, frozen=True, tag=True):
    """The set-up of a qube is over; `pid`, from the kernel, is the agent that says so."""

    name: str
    pid: int
    failures: Annotated[int, msgspec.Meta(ge=0, le=MOST_FAILURES)]


class Holding(msgspec.Struct, frozen=True, tag=True):
    """The disposables whose calls go on, told once after a full snapshot; no other is needed."""

    names: list[str]


class Request(msgspec.Struct, frozen=True, tag=True):
    """Start `name`; make a disposable of `name` for `source`; or discard the disposable `name`."""

    id: int
    op: Operation
    name: str
    source: str


ToBroker = Snapshot | OpenQube | CloseQube | Admit | Reject | Reply
ToDaemon = Ack | Opened | AgentHello | AgentGone | SetUp | Holding | Request


def plain_name(value: object) -> str:
    """A name as text: names are `str` of their own types, which the encoder does not know."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"`{type(value).__name__}` has no place on the link")


_encoder = msgspec.json.Encoder(enc_hook=plain_name)
_to_broker: msgspec.json.Decoder[ToBroker] = msgspec.json.Decoder(ToBroker)
_to_daemon: msgspec.json.Decoder[ToDaemon] = msgspec.json.Decoder(ToDaemon)


def read_to_broker(line: bytes | bytearray) -> ToBroker:
    """One message of qubesd.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _to_broker.decode(line)


def read_to_daemon(line: bytes) -> ToDaemon:
    """One message of the broker.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _to_daemon.decode(line)


def encode(message: ToBroker | ToDaemon) -> bytes:
    """One message as it stands on the link."""
    return _encoder.encode(message) + b"\n"


def encode_domain(info: Mapping[str, Any]) -> msgspec.Raw:
    """What is told of one qube, as it stands in a `Snapshot`."""
    return msgspec.Raw(_encoder.encode(info))


def in_pieces(snapshot: Snapshot) -> Iterator[Snapshot]:
    """A snapshot, its domains encoded already, as pieces whose lines are bounded."""
    piece: dict[str, msgspec.Raw] = {}
    size = 0
    for name, domain in snapshot.domains.items():
        if piece and (len(piece) == PIECE_QUBES or size + len(domain) > PIECE_BYTES):
            yield Snapshot(snapshot.seq, snapshot.full, piece, more=True)
            piece, size = {}, 0
        piece[name] = domain
        size += len(domain)
    yield msgspec.structs.replace(snapshot, domains=piece)


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end of a unix socket, by the kernel's word."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", raw)
    return pid, uid, gid


def address(path: Path) -> str:
    """The shortest form of a socket's path: the kernel takes 107 bytes."""
    absolute, relative = str(path), os.path.relpath(path)
    return relative if len(relative) < len(absolute) else absolute


def listening(path: Path, kind: socket.SocketKind, gid: int, backlog: int) -> socket.socket:
    """A socket at `path` that root and the broker's group may connect to.

    Raises:
        DaemonError: it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        path.unlink(missing_ok=True)
        sock.bind(address(path))
        os.chown(path, 0, gid)
        path.chmod(0o660)
        sock.listen(backlog)
    except OSError as e:
        sock.close()
        raise DaemonError(
            f"cannot listen at `{path}`: {e}",
            hint="socket paths have at most 107 bytes: choose a shorter root directory",
        ) from None
    return sock
