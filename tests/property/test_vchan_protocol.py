"""The wire protocol: any bytes in any pieces, any order of events."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from wire_session import heard

from caisson.errors import ProtocolError
from caisson.qrexec.policy_messages import encode_query, parse_query
from caisson.qrexec.vchan import frames, ports
from caisson.qrexec.vchan.control import Session, Terminated
from caisson.qrexec.vchan.deciding import parse_answer
from caisson.qrexec.vchan.frames import Kind, Splitter
from caisson.qrexec.vchan.local import Command
from caisson.qrexec.vchan.ports import FIRST, LAST, Ports
from caisson.qrexec.vchan.switchboard import MOST_PENDING, Pending, Switchboard
from caisson.qrexec.vchan.untrusted import Requested, Unacceptable, parse_trigger

IDENTS = st.from_regex(rb"[A-Za-z0-9_. -]{0,31}", fullmatch=True)
SERVICES = st.from_regex(rb"[A-Za-z0-9_.-]{1,255}(\+[A-Za-z0-9_.+-]{0,300})?", fullmatch=True)
NAMES = st.from_regex(rb"[A-Za-z0-9_.@:-]{0,63}", fullmatch=True)
SOURCES = st.from_regex(rb"[A-Za-z0-9_.:-]{0,63}", fullmatch=True)
PORTS = st.integers(FIRST, LAST)
WORDS = st.integers(0, 2**32 - 1)


def hello(version: int) -> bytes:
    """An agent's first message."""
    return struct.pack("<III", 0x300, 4, version)


def trigger(service: bytes, target: bytes, ident: bytes, source: bytes) -> bytes:
    """A request in version 4."""
    fixed = struct.pack("64s64s32s", source, target, ident)
    return frames.frame(Kind.TRIGGER_SERVICE4, fixed + service)


MESSAGES = st.one_of(
    st.builds(
        lambda service, *more: trigger(service + b"\0", *more), SERVICES, NAMES, IDENTS, SOURCES
    ),
    st.builds(
        trigger, st.binary(min_size=1, max_size=90), *[st.binary(max_size=n) for n in (64, 32, 64)]
    ),
    st.builds(lambda domain, port: frames.params(Kind.TERMINATED, domain, port), WORDS, PORTS),
)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    """A stream in pieces."""
    places = sorted({place % (len(stream) + 1) for place in at})
    return [
        stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True) if a != b
    ]


@given(SERVICES, NAMES, IDENTS, SOURCES)
def test_request_is_read_as_it_was_written(
    service: bytes, target: bytes, ident: bytes, source: bytes
):
    """QSB-038: every field survives, byte by byte, up to the policy's question."""
    message = trigger(service + b"\0", target, ident, source)
    found = parse_trigger(Kind.TRIGGER_SERVICE4, message[8:])
    assert isinstance(found, Requested)
    plus = b"" if b"+" in service else b"+"
    assert found.descriptor.encode() == service + plus
    assert (found.target, found.source, found.ident) == (target.decode(), source.decode(), ident)
    query = parse_query(encode_query(found.query("work")))
    assert f"{query.service}+{query.argument}" == found.descriptor
    assert (query.target, query.requested_source) == (found.target, found.source)


@given(
    st.sampled_from([Kind.TRIGGER_SERVICE3, Kind.TRIGGER_SERVICE4]),
    st.binary(min_size=161, max_size=400),
)
def test_any_request_is_clean_or_refused(kind: Kind, body: bytes):
    """QSB-087, QSB-089: no other bytes reach policy, log or service."""
    found = parse_trigger(kind, body)
    if isinstance(found, Unacceptable):
        assert len(found.untrusted_ident) == 32
        assert found.reason.isprintable()
        assert found.reason.isascii()
    else:
        assert parse_query(encode_query(found.query("work"))).target == found.target


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(0, 5000), max_size=12))
def test_pieces_of_a_stream_do_not_matter(messages: list[bytes], at: list[int]):
    """However it is cut, it means the same; nothing of it is left over."""
    stream = hello(4) + b"".join(messages)
    whole = heard([stream])
    assert heard(cut(stream, at)) == whole
    assert len(whole[0]) == len(messages) + 1
    assert whole[1] == ""


@given(st.integers(2, 4), st.binary(max_size=400), st.lists(st.integers(0, 500), max_size=12))
def test_any_stream_means_something_or_ends(version: int, stream: bytes, at: list[int]):
    """No other exception, and the same one however it is cut."""
    for start in (hello(version), b"", hello(version) + frames.params(Kind.TERMINATED, 0, FIRST)):
        whole = heard([start + stream])
        assert heard(cut(start + stream, at)) == whole
        assert whole[1].isprintable()


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=8))
def test_frames_are_taken_out_as_they_were_put_in(body: bytes, at: list[int]):
    """A frame of any type, in any pieces."""
    splitter = Splitter()
    found = []
    stream = b"".join(frames.frame(kind, body) for kind in Kind)
    for piece in cut(stream, at):
        splitter.feed(piece)
        while one := splitter.next(lambda _kind, _length: None):
            found.append(one)
    assert found == [(kind, body) for kind in Kind]
    assert splitter.held == 0


@given(st.binary(max_size=300))
def test_any_answer_of_the_policy_is_read_or_refused(answer: bytes):
    """No other exception leaves the reader."""
    for text in (answer, b"result=allow\nuser=DEFAULT\ntarget=" + answer):
        with contextlib.suppress(ProtocolError):
            parse_answer(text)


class PortsInUse(RuleBasedStateMachine):
    """Section 1.3, against a table of who holds what."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.ports = Ports(42)
        self.owners: dict[int, int] = {}

    @rule(target=held, peer=st.sampled_from([0, 1, 41, 43, 44, 900]), count=st.integers(1, 70))
    def take(self, peer: int, count: int) -> list[tuple[int, int]]:
        """The lowest free one of the peer's lane, as long as it leaves as many to others."""
        taken = []
        for _ in range(count):
            lane = [
                port
                for port in range(513, 769)
                if (peer == 0 or port % 2 == (1 if peer < 42 else 0)) and port not in self.owners
            ]
            mine = list(self.owners.values()).count(peer)
            port = self.ports.allocate(peer)
            if not lane or (peer and mine >= len(lane)):
                assert port is None
            else:
                assert port == lane[0]
                self.owners[port] = peer
                taken.append((peer, port))
        return taken

    @rule(several=consumes(held))
    def free(self, several: list[tuple[int, int]]) -> None:
        """Once, and by the right peer."""
        for peer, port in several:
            assert not self.ports.release(peer + 1, port)
            assert self.ports.release(peer, port)
            assert not self.ports.release(peer, port)
            del self.owners[port]

    @invariant()
    def table_is_right(self) -> None:
        """Who holds which port."""
        assert self.ports.allocate(42) is None
        assert len(self.ports) == len(self.owners)
        for port, peer in self.owners.items():
            assert ports.valid(port)
            assert self.ports.peer_of(port) == peer


class Session4(RuleBasedStateMachine):
    """An agent, its daemon's switchboard and whoever decides, in any order.

    Each request is answered at most once, by its own ident; a port has one connection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.board = Switchboard("work", 42, "user", 4096)
        self.sent: list[bytes] = []
        self.session = Session()
        self.waiting: list[Pending] = []
        self.open: dict[bytes, int] = {}
        self.stale: list[Pending] = []
        self.connect()

    # What the switchboard asks of whoever decides.

    def begin(self, pending: Pending) -> None:
        """A request."""
        self.waiting.append(pending)

    def terminated(self, domain: int, port: int) -> bool:
        """An end."""
        return True

    def close(self) -> None:
        """The agent is gone."""

    def connect(self) -> None:
        """The agent is there."""

        def transmit(data: bytes) -> int:
            if data:
                self.sent.append(data)
            return 0

        self.board.begin(transmit, self)
        self.session = Session()
        list(self.session.receive(hello(4)))

    def answers(self) -> list[tuple[int, bytes]]:
        """What the agent was told since, type and body."""
        told = [(struct.unpack("<I", one[:4])[0], one[8:]) for one in self.sent]
        self.sent.clear()
        return told

    @rule(number=st.integers(0, 5), service=st.sampled_from([b"a\0", b"+\0", b"a\0\0"]))
    def request(self, number: int, service: bytes) -> None:
        """Known idents again and again, good services and bad ones."""
        ident = b"SOCKET%d" % number
        former = [p for p in self.waiting if p.request.ident == ident]
        for event in self.session.receive(trigger(service, b"vault", ident, b"")):
            self.board.handle(event)
        if service != b"a\0":
            assert self.answers() == [(Kind.SERVICE_REFUSED, ident.ljust(32, b"\0"))]
            return
        assert self.answers() == []
        assert all(p.over for p in former)
        self.stale += former
        self.waiting = [p for p in self.waiting if not p.over]
        assert self.waiting[-1].request.ident == ident

    @rule(chance=st.randoms(use_true_random=False), yes=st.booleans())
    def decide(self, chance: object, yes: bool) -> None:
        """Whoever decides says yes or no, in any order, once or twice."""
        if not self.waiting:
            return
        pending = self.waiting.pop(chance.randrange(len(self.waiting)))  # type: ignore[attr-defined]
        ident = pending.request.ident.ljust(32, b"\0")
        for again in (False, True):
            if yes:
                self.board.connect(pending, 43, 514)
            else:
                self.board.refuse(pending)
            told = (
                (Kind.SERVICE_CONNECT, struct.pack("<II", 43, 514) + ident)
                if yes
                else (Kind.SERVICE_REFUSED, ident)
            )
            assert self.answers() == ([] if again else [told])

    @rule()
    def decide_too_late(self) -> None:
        """The answer to a request that is forgotten reaches nobody."""
        for pending in self.stale:
            self.board.connect(pending, 43, 514)
            self.board.refuse(pending)
        assert self.answers() == []

    @rule(domain=st.sampled_from([0, 41, 43]), port=PORTS)
    def end(self, domain: int, port: int) -> None:
        """Any word of an end, true or not."""
        for event in self.session.receive(frames.params(Kind.TERMINATED, domain, port)):
            assert event == Terminated(domain, port)
            holder = self.board.ports.peer_of(port)
            self.board.handle(event)
            freed = self.board.ports.peer_of(port) is None
            assert freed == (holder is None or holder == domain)
        assert self.answers() == []

    @rule(domain=st.sampled_from([0, 41, 43]))
    def execute(self, domain: int) -> None:
        """A program of the admin qube has something run."""
        client = _Client()
        before = len(self.board.ports)
        self.board.command(client, Command(Kind.EXEC_CMDLINE, domain, 0, b"DEFAULT:x"))  # type: ignore[arg-type]
        ((kind, body),) = self.answers()
        assert kind == Kind.EXEC_CMDLINE
        assert body == struct.pack("<II", domain, client.port) + b"user:x\0"
        assert len(self.board.ports) == before + 1

    @rule()
    def agent_comes_again(self) -> None:
        """Requests are forgotten, ports are not."""
        before = len(self.board.ports)
        self.board.end()
        assert all(pending.over for pending in self.waiting)
        self.stale += self.waiting
        self.waiting = []
        assert len(self.board.ports) == before
        self.connect()

    @invariant()
    def pending_are_what_waits(self) -> None:
        """And not many."""
        assert len(self.waiting) <= MOST_PENDING
        assert len({p.request.ident for p in self.waiting}) == len(self.waiting)


class _Client:
    """A client that only remembers its port."""

    port: int = 0

    def reply(self, kind: Kind, domain: int, port: int) -> None:
        """Told where its connection is."""
        assert domain == 42

    def close(self) -> None:
        """Dropped."""


TestPortsInUse = PortsInUse.TestCase
TestSession4 = Session4.TestCase
TestPortsInUse.settings = settings(max_examples=25, stateful_step_count=12)
TestSession4.settings = settings(max_examples=40, stateful_step_count=25)
