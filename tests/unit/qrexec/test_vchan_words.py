"""What agents, programs of the admin qube and the policy say, word by word."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path
from typing import cast

import pytest

from caisson.errors import ProtocolError
from caisson.qrexec.link import address
from caisson.qrexec.policy_messages import LONGEST_ANSWER, encode_query, parse_query
from caisson.qrexec.vchan import frames
from caisson.qrexec.vchan.broker_side import BrokerSide, Work, exit_code, parse_work
from caisson.qrexec.vchan.control import Event, Greeted, Session, Terminated
from caisson.qrexec.vchan.deciding import Verdict, parse_answer
from caisson.qrexec.vchan.frames import Kind, MalformedError
from caisson.qrexec.vchan.local import Client, Command
from caisson.qrexec.vchan.streams import PIECE, Stream
from caisson.qrexec.vchan.switchboard import MOST_UNSENT, Decider, Switchboard
from caisson.qrexec.vchan.untrusted import Requested, Unacceptable

IDENT = b"SOCKET7".ljust(32, b"\0")
HELLO = {v: struct.pack("<III", 0x300, 4, v) for v in range(8)}


def said(*pieces: bytes, version: int = 4) -> list[Event]:
    """What an agent of this version says after its hello."""
    session = Session()
    events = list(session.receive(HELLO[version]))
    assert events == [Greeted(version)]
    return [event for piece in pieces for event in session.receive(piece)]


def trigger4(service: bytes, target: bytes = b"vault", ident: bytes = IDENT, source: bytes = b""):
    """A request in version 4."""
    return frames.frame(
        Kind.TRIGGER_SERVICE4, struct.pack("64s64s32s", source, target, ident) + service
    )


def test_frames_are_the_bytes_of_the_sheet():
    """Its three examples, and a connection."""
    assert frames.hello(4).hex(" ") == "00 03 00 00 04 00 00 00 04 00 00 00"
    assert frames.frame(Kind.STDOUT, b"").hex(" ") == "91 01 00 00 00 00 00 00"
    code = frames.frame(Kind.EXIT_CODE, struct.pack("<i", 42))
    assert code.hex(" ") == "93 01 00 00 04 00 00 00 2a 00 00 00"
    assert struct.unpack("<II", trigger4(b"a.B+\0")[:8]) == (0x213, 165)
    assert frames.connect(1, 513, b"SOCKET7")[16:] == IDENT


@pytest.mark.parametrize("text", [b"", b"S", b"x" * 31])
def test_arrays_are_padded_with_zeros(text: bytes):
    """QSB-009, QSB-106: no byte of a message is left over from anything else."""
    for message in (
        frames.connect(1, 513, text),
        frames.refused(frames.padded(text, frames.IDENT_SIZE)),
    ):
        assert message.endswith(text + bytes(32 - len(text)))
    with pytest.raises(ValueError, match="do not fit"):
        frames.padded(b"x" * 32, 32)
    with pytest.raises(ValueError, match="NUL"):
        frames.execute(Kind.EXEC_CMDLINE, 0, 0, b"a\0b")


@pytest.mark.parametrize(
    ("length", "fits"), [(0, False), (1, True), (64_999, True), (65_000, True), (65_001, False)]
)
@pytest.mark.parametrize("version", [3, 4])
def test_length_of_a_request_is_bounded(length: int, fits: bool, version: int):
    """QSB-089: both ends of the range, and both sides of them; before a byte of it is kept."""
    kind, fixed = (Kind.TRIGGER_SERVICE3, 96) if version == 3 else (Kind.TRIGGER_SERVICE4, 160)
    header = struct.pack("<II", kind, fixed + length)
    if not fits:
        with pytest.raises(MalformedError):
            said(header, version=version)
        return
    body = bytes(fixed - 32) + IDENT + b"x" * (length - 1) + b"\0"
    (event,) = said(header, body, version=version)
    assert isinstance(event, Unacceptable)  # empty, or a name of more than 255 characters
    assert event.untrusted_ident == IDENT
    argument = b"x+" + b"y" * (length - 3) + b"\0"
    if length > 3:
        (event,) = said(header, body[:fixed] + argument, version=version)
        assert isinstance(event, Requested)
        assert len(event.descriptor) == length - 1


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (4, struct.pack("<II", 0x999, 0)),
        (4, struct.pack("<II", 0, 0)),
        (4, HELLO[4]),
        (4, struct.pack("<II", Kind.TRIGGER_SERVICE, 128)),
        (3, struct.pack("<II", Kind.TRIGGER_SERVICE, 128)),
        (3, struct.pack("<II", Kind.TRIGGER_SERVICE4, 165)),
        (2, struct.pack("<II", Kind.TRIGGER_SERVICE3, 100)),
        (2, struct.pack("<II", Kind.TRIGGER_SERVICE4, 165)),
        (2, struct.pack("<II", Kind.TRIGGER_SERVICE, 127)),
        (2, struct.pack("<II", Kind.TRIGGER_SERVICE, 129)),
        (4, struct.pack("<II", Kind.TERMINATED, 7)),
        (4, struct.pack("<II", Kind.TERMINATED, 9)),
        (4, struct.pack("<IIII", Kind.TERMINATED, 8, 0, 512)),
        (4, struct.pack("<IIII", Kind.TERMINATED, 8, 0, 769)),
        (4, struct.pack("<II", Kind.SERVICE_REFUSED, 32)),
        (4, struct.pack("<II", Kind.EXEC_CMDLINE, 16)),
        (4, struct.pack("<II", Kind.STDIN, 1)),
        (4, struct.pack("<II", Kind.TRIGGER_SERVICE4, 0xFFFFFFFF)),
    ],
)
def test_what_breaks_the_protocol_ends_the_session(version: int, message: bytes):
    """Section 1.5, the first row; the header alone is enough, whatever length it claims."""
    with pytest.raises(MalformedError) as error:
        said(message, version=version)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "first", [HELLO[0], HELLO[1], struct.pack("<II", 0x300, 3), struct.pack("<II", 0x213, 165)]
)
def test_session_begins_with_a_hello(first: bytes):
    """Of at least version 2, and of 4 bytes."""
    with pytest.raises(MalformedError):
        list(Session().receive(first))


def test_newer_agent_is_taken_for_one_of_version_4():
    """It is answered with what both speak."""
    assert list(Session().receive(HELLO[7])) == [Greeted(4)]


@pytest.mark.parametrize(
    "ident",
    [
        b"x" * 32,
        b"SOCKET7\0\0x".ljust(32, b"\0"),
        b"a,b".ljust(32, b"\0"),
        b"a\n".ljust(32, b"\0"),
        b"a/b".ljust(32, b"\0"),
    ],
)
def test_ident_that_is_none_is_answered_as_it_came(ident: bytes):
    """Section 1.5: its 32 raw bytes, and the policy is not asked."""
    (event,) = said(trigger4(b"my.S\0", ident=ident))
    assert isinstance(event, Unacceptable)
    assert event.untrusted_ident == ident
    assert event.reason.isprintable()


def test_empty_ident_passes():
    """Section 1.5 says so."""
    (event,) = said(trigger4(b"my.S\0", ident=bytes(32)))
    assert isinstance(event, Requested)
    assert event.ident == b""


@pytest.mark.parametrize(
    "service", [b"x", b"\0", b"a\0b\0", b"a\0\0", b"+\0", b"+x\0", b"x" * 256 + b"\0"]
)
def test_service_that_is_none_is_refused(service: bytes):
    """No NUL at the end, one inside, no name, a name that no file can have."""
    (event,) = said(trigger4(service))
    assert isinstance(event, Unacceptable)
    assert event.untrusted_ident == IDENT


@pytest.mark.parametrize(
    ("service", "descriptor"),
    [
        (b"my.S", "my.S+"),
        (b"my.S+", "my.S+"),
        (b"my.S+a+b", "my.S+a+b"),
        (b"my.S+$(id)", "my.S+__id_"),
        (b"my/S \x1b[2J\r\n", "my_S___2J__+"),
        ("my.S+\u202egnp".encode(), "my.S+___gnp"),
        (b"$my.S+@x", "_my.S+_x"),
        (bytes(range(1, 43)) + b"x", "_" * 42 + "x+"),
    ],
)
def test_other_characters_of_a_service_are_replaced(service: bytes, descriptor: str):
    """QSB-038, QSB-087: one character for each byte, before anybody sees it."""
    (event,) = said(trigger4(service + b"\0"))
    assert isinstance(event, Requested)
    assert event.descriptor == descriptor
    query = parse_query(encode_query(event.query("work")))
    assert f"{query.service}+{query.argument}" == descriptor


def test_names_are_cut_at_a_nul_and_cleaned():
    """Sixty-three bytes of a name count; the last is taken for a NUL."""
    (event,) = said(trigger4(b"a\0", b"va$ul t\0secret", source=b"re\xffm"))
    assert isinstance(event, Requested)
    assert (event.target, event.source) == ("va_ul_t", "re_m")
    (event,) = said(trigger4(b"a\0", b"v" * 64))
    assert isinstance(event, Requested)
    assert event.target == "v" * 63
    for target in (b"", b"@default", b"@dispvm:x", b"uuid:0-0"):
        (event,) = said(trigger4(b"a\0", target))
        assert isinstance(event, Requested)
        assert event.target == target.decode()


def test_source_of_a_relay_cannot_be_a_keyword():
    """The policy would not even answer."""
    (event,) = said(trigger4(b"a\0", source=b"@anyvm"))
    assert isinstance(event, Unacceptable)


def test_request_of_version_2_is_cut_at_its_ends():
    """A NUL is put at the last byte of each of its arrays."""
    arrays = struct.pack("64s32s32s", b"s" * 64, b"t" * 32, IDENT)
    (event,) = said(frames.frame(Kind.TRIGGER_SERVICE, arrays), version=2)
    assert isinstance(event, Requested)
    assert (event.service, event.target) == ("s" * 63, "t" * 31)


def test_end_of_a_connection_names_it():
    """Domain and port."""
    assert said(frames.params(Kind.TERMINATED, 7, 768)) == [Terminated(7, 768)]


# The policy's answers.

ALLOW = {"user": "DEFAULT", "target": "vault", "requested_target": "vault", "autostart": "True"}


def answer(result: str, **values: str) -> bytes:
    """Lines as the policy writes them."""
    return "".join(f"{k}={v}\n" for k, v in ({"result": result} | values).items()).encode()


def test_answer_of_the_policy_is_read_in_any_order():
    """Unknown words are passed over."""
    verdict = Verdict(
        "vault", "", "", autostart=True, requested_target="vault", descriptor="", source=""
    )
    assert parse_answer(answer("allow", **ALLOW)) == verdict
    lines = answer("allow", new="x", **ALLOW).splitlines(keepends=True)
    assert parse_answer(b"".join(reversed(lines))) == verdict
    assert parse_answer(answer("deny", why="x")) is None
    assert parse_answer(b"result=deny") is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"result=maybe\n",
        b"result=deny\nuser=x\n",
        b"result=deny\nresult=deny\n",
        b"result=deny\nx\n",
        b"result=deny\0\n",
        b"result=deny\nx=\xff\n",
        b"result=deny\nx=" + b"y" * LONGEST_ANSWER,
        *(answer("allow", **{k: v for k, v in ALLOW.items() if k != gone}) for gone in ALLOW),
        answer("allow", **(ALLOW | {"autostart": "yes"})),
        answer("allow", **(ALLOW | {"user": "a:b"})),
        answer("allow", **(ALLOW | {"user": ""})),
        answer("allow", **(ALLOW | {"target": ""})),
        answer("allow", **(ALLOW | {"target": "../x"})),
        answer("allow", **(ALLOW | {"target_uuid": "uuid:x"})),
        answer("allow", **(ALLOW | {"service": "a b"})),
        answer("allow", **(ALLOW | {"policy_source": "@x"})),
    ],
)
def test_answer_that_is_none_allows_nothing(text: bytes):
    """Section 4.1: a malformed answer is no answer."""
    with pytest.raises(ProtocolError) as error:
        parse_answer(text)
    assert error.value.message.isprintable()


# What the broker says.


def test_work_of_the_broker_is_a_command():
    """A service with its source, or a command line; its user and `nogui:` in front."""
    for message, command, alone, source in (
        (b"S7\0\0a.B+x\0work\0", "DEFAULT:QUBESRPC a.B+x work", False, "work"),
        (b"S7\0root\0a.B\0dom0\0e", "root:QUBESRPC a.B dom0", True, "dom0"),
        (b"S7\0u\0a.B\0dom0\0n", "u:nogui:QUBESRPC a.B dom0", False, "dom0"),
        (b"S7\0u\0a.B\0dom0\0en", "u:nogui:QUBESRPC a.B dom0", True, "dom0"),
        (b"M7\0user\0nogui:a", "user:nogui:a", False, "dom0"),
        (b"M7\0user\0echo a:b", "user:echo a:b", False, "dom0"),
    ):
        assert parse_work(message) == Work(7, command, alone, source)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"S",
        b"Z1",
        b"S1\0\0a.B+ x\0work\0",
        b"S1\0\0a.B\0a b\0",
        b"S1\0-x\0a.B\0work\0",
        b"Sx\0\0a.B\0work\0",
        b"S1\0\0a.B\0work\0f",
        b"M1\0\0",
        b"M1\0a:b\0x",
        b"S1\0\xff\0a\0b\0",
    ],
)
def test_other_work_is_refused(message: bytes):
    """It is the broker's word, and a program's command line."""
    with pytest.raises(ProtocolError):
        parse_work(message)


@pytest.mark.parametrize(
    ("message", "code"), [(b"X0", 0), (b"X255", 255), (b"X256", 255), (b"", 255), (b"X", 255)]
)
def test_call_without_an_exit_code_is_lost(message: bytes, code: int):
    """255 is what a lost connection gives."""
    assert exit_code(message) == code


async def test_connection_to_the_broker_leaves_no_reader_behind(tmp_path: Path):
    """The next connection has its number: a reader left behind would make it deaf."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address(tmp_path / "qrexec"))
        listener.listen()
        former = BrokerSide(tmp_path / "qrexec")
        told = asyncio.ensure_future(former.receive())
        await asyncio.sleep(0)
        number = former._sock.fileno()

        async def end() -> None:
            # As where a link ends before the broker told the exit code.
            told.cancel()
            former.close()

        async def begin() -> tuple[bytes, list[int]]:
            broker = BrokerSide(tmp_path / "qrexec")
            assert broker._sock.fileno() == number
            try:
                async with asyncio.timeout(15):
                    return await broker.receive()
            finally:
                broker.close()

        ended, answer = asyncio.ensure_future(end()), asyncio.ensure_future(begin())
        await asyncio.gather(ended, told, return_exceptions=True)
        listener.accept()[0].close()
        with listener.accept()[0] as there:
            there.send(b"R")
            assert await answer == (b"R", [])


# Streams.


async def test_other_side_that_reads_nothing_is_not_read_either():
    """What is kept for it is bounded by what one reading of it can cause; nothing is lost."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    most = 50_000

    def echo(untrusted: bytes) -> None:
        stream.send(untrusted)
        if stream.unsent > most:
            stream.pause_until_sent()

    stream = Stream(os.dup(ours.fileno()), echo, lambda: None)
    ours.close()
    sent, highest = 0, 0
    idle = 0
    while idle < 8:
        try:
            sent += theirs.send(b"x" * 4096)
            idle = 0
        except BlockingIOError:
            idle += 1
        await asyncio.sleep(0)
        highest = max(highest, stream.unsent)
    assert most < highest <= most + PIECE
    got = 0
    async with asyncio.timeout(15):
        while got < sent:
            got += len(await asyncio.get_running_loop().sock_recv(theirs, 65_536))
    theirs.close()
    stream.close()


async def test_end_of_a_stream_is_told_once():
    """And not after it was closed."""
    ends: list[int] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stream = Stream(ours.detach(), lambda _: None, lambda: ends.append(1))
    theirs.close()
    async with asyncio.timeout(15):
        while stream.open:  # noqa: ASYNC110 - the loop closes it
            await asyncio.sleep(0)
    stream.send(b"x")
    stream.close()
    assert ends == [1]


@pytest.mark.parametrize("port", [0, 600])
def test_an_agent_that_does_not_read_gets_no_more_commands(port: int):
    """Whoever gave the port: what waits for it is bounded."""
    sent: list[bytes] = []
    board = Switchboard("work", 7, "user", frames.LONGEST_COMMAND_BODY)

    def transmit(data: bytes) -> int:
        sent.extend([data] if data else [])
        return MOST_UNSENT + 1

    board.begin(transmit, cast("Decider", None))
    with pytest.raises(ProtocolError, match="does not take commands"):
        board.command(cast("Client", None), Command(Kind.EXEC_CMDLINE, 8, port, b"user:true"))
    assert (sent, len(board.ports)) == ([], 0)
