"""The agent and its clients: requests forwarded, answered and refused, one and many."""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterator

import pytest
from agent_rig import eventually
from wire_peer import (
    HELLO,
    ME,
    PEER,
    SERVICE_CONNECT,
    SERVICE_REFUSED,
    STDIN,
    TERMINATED,
    TRIGGER_SERVICE,
    TRIGGER_SERVICE3,
    TRIGGER_SERVICE4,
    WireAgent,
    code_of,
    descriptors_of,
    forwarded,
    ident_of,
    message,
    numbers,
    trigger,
    wire_agent,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[WireAgent]:
    """An agent for all tests that leave it as it was."""
    with wire_agent() as agent:
        yield agent


def test_answers_that_name_no_client_are_ignored(shared: WireAgent) -> None:
    """And the agent goes on."""
    for ident in (
        b"SOCKET",
        b"SOCKET-1",
        b"SOCKET999999",
        b"socket1",
        b"",
        b"\xff" * 32,
        b"x" * 32,
    ):
        padded = ident.ljust(32, b"\0")
        shared.daemon.send(SERVICE_CONNECT, numbers(PEER, 513) + padded)
        shared.daemon.send(SERVICE_REFUSED, padded)
    assert shared.outcome(shared.script("exit 3"))[0] == 3
    assert shared.daemon.receive()[0] == TERMINATED


def test_a_request_is_forwarded_and_answered(shared: WireAgent) -> None:
    """The agent puts its own name for the client; the answer is two numbers."""
    client = shared.ask(trigger(b"a.B+c", b"work", b"far"))
    body = forwarded(shared)
    assert body[:64].rstrip(b"\0") == b"far"
    assert body[64:128].rstrip(b"\0") == b"work"
    assert body[160:] == b"a.B+c\0"
    ident = ident_of(body)
    assert ident.startswith(b"SOCKET")
    assert ident.rstrip(b"\0")[6:].isdigit()
    shared.daemon.send(SERVICE_CONNECT, numbers(PEER, 600) + ident)
    assert client.exactly(8) == numbers(PEER, 600)
    client.close()
    assert shared.daemon.receive() == (TERMINATED, numbers(PEER, 600))


def test_a_refusal_closes_the_clients_socket(shared: WireAgent) -> None:
    """Of that client only."""
    one = shared.ask(trigger(b"a.One"))
    first = ident_of(forwarded(shared))
    two = shared.ask(trigger(b"a.Two"))
    second = ident_of(forwarded(shared))
    assert first != second
    shared.daemon.send(SERVICE_REFUSED, first)
    assert one.is_gone()
    # The first answer counts, whatever follows it.
    for port in (601, 602):
        shared.daemon.send(SERVICE_CONNECT, numbers(PEER, port) + second)
    shared.daemon.send(SERVICE_REFUSED, second)
    then = shared.ask(trigger(b"a.Then"))
    shared.daemon.send(SERVICE_REFUSED, ident_of(forwarded(shared)))
    assert then.is_gone()
    assert two.exactly(8) == numbers(PEER, 601)
    two.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        two.socket.recv(1)
    two.close()
    assert shared.daemon.receive() == (TERMINATED, numbers(PEER, 601))


def test_padding_of_clients_never_leaves(shared: WireAgent) -> None:
    """QSB-009, QSB-106: whatever a client left in its arrays, the daemon sees zeros."""
    dirty = bytearray(trigger(b"a.B", b"work", b"far"))
    for start, used in ((8, 3), (72, 4), (136, 6)):
        size = 32 if start == 136 else 64
        dirty[start + used + 1 : start + size] = b"!" * (size - used - 1)
    client = shared.ask(bytes(dirty))
    body = forwarded(shared)
    oracle = bytearray(160)
    oracle[:3], oracle[64:68] = b"far", b"work"
    ident = ident_of(body).rstrip(b"\0")
    oracle[128 : 128 + len(ident)] = ident
    assert body == bytes(oracle) + b"a.B\0"
    shared.daemon.send(SERVICE_REFUSED, ident_of(body))
    assert client.is_gone()


@pytest.mark.parametrize(
    "wrong",
    [
        message(TRIGGER_SERVICE4, b"x" * 160),
        struct.pack("<II", TRIGGER_SERVICE4, 160 + 65_001),
        struct.pack("<II", TRIGGER_SERVICE4, 0xFFFF_FFFF),
        message(TRIGGER_SERVICE4),
        message(TRIGGER_SERVICE4, b"x"),
        message(TRIGGER_SERVICE4, bytes(160) + b"\0"),
        message(TRIGGER_SERVICE4, bytes(160) + b"ab"),
        message(TRIGGER_SERVICE4, bytes(160) + b"a\0b\0"),
        message(TRIGGER_SERVICE3, bytes(96) + b"a.B\0"),
        message(TRIGGER_SERVICE, bytes(128)),
        message(HELLO, b"\4\0\0\0"),
        message(TERMINATED, bytes(8)),
        message(0x999),
    ],
)
def test_a_malformed_request_costs_only_its_client(shared: WireAgent, wrong: bytes) -> None:
    """QSB-089: nothing of it reaches the daemon, and the next client is served."""
    assert shared.ask(wrong).is_gone()
    client = shared.ask(trigger(b"a.Next"))
    body = forwarded(shared)
    assert body[160:] == b"a.Next\0"
    shared.daemon.send(SERVICE_REFUSED, ident_of(body))
    assert client.is_gone()


def test_a_late_answer_never_reaches_another_client(shared: WireAgent) -> None:
    """A client that left is not replaced by the next one that gets its descriptor."""
    first = shared.ask(trigger(b"a.Gone"))
    gone = ident_of(forwarded(shared))
    first.close()
    client = shared.ask(trigger(b"a.Here"))
    here = ident_of(forwarded(shared))
    shared.daemon.send(SERVICE_CONNECT, numbers(PEER, 602) + gone)
    # The connection that it was given is told to be done with.
    assert shared.daemon.receive() == (TERMINATED, numbers(PEER, 602))
    shared.daemon.send(SERVICE_CONNECT, numbers(PEER, 603) + here)
    assert client.exactly(8) == numbers(PEER, 603)
    client.close()
    assert shared.daemon.receive() == (TERMINATED, numbers(PEER, 603))


@pytest.mark.parametrize("size", [3935, 3936, 4096, 4097, 64_999])
def test_control_bodies_of_any_size_pass(shared: WireAgent, size: int) -> None:
    """Upstream hangs where a body is larger than its ring; here it is only bytes."""
    service = b"a.B+" + b"x" * (size - 4)
    client = shared.ask(trigger(service))
    body = forwarded(shared)
    assert body[160:] == service + b"\0"
    shared.daemon.send(SERVICE_REFUSED, ident_of(body))
    assert client.is_gone()


@pytest.mark.parametrize("size", [4096, 4097, 65_000, 65_535])
def test_commands_of_any_size_pass(shared: WireAgent, size: int) -> None:
    """Bodies of EXEC_CMDLINE, with their numbers and their NUL; the longest names no service."""
    shared.write_service("a.Size", '#!/bin/sh\nprintf %s "$1" | wc -c\n')
    length = size - 9 - len(f"{ME}:QUBESRPC a.Size+ work")
    code, out, _ = shared.outcome(f"{ME}:QUBESRPC a.Size+{'x' * length} work")
    assert (code, out) == ((0, b"%d\n" % length) if size <= 65_000 else (125, b""))
    assert shared.daemon.receive()[0] == TERMINATED


def test_a_command_is_a_line_for_the_users_shell(shared: WireAgent) -> None:
    """What is no call of a service."""
    code, out, err = shared.outcome(f"{ME}:cat; echo oops >&2; exit 5", b"line\n")
    assert (code, out) == (5, b"line\n")
    assert b"oops\n" in err
    assert shared.daemon.receive()[0] == TERMINATED


def test_older_daemons_get_the_requests_of_their_protocol() -> None:
    """A daemon of version 3 knows no source, one of version 2 no long names."""
    with wire_agent(connect=False) as agent:
        agent.connect_daemon(version=3)
        agent.ask(trigger(b"a.B+c"))
        kind, body = agent.daemon.receive()
        assert (kind, body[:64].rstrip(b"\0")) == (TRIGGER_SERVICE3, b"work")
        assert body[96:] == b"a.B+c\0"
        assert agent.ask(trigger(b"a.B", source=b"far")).is_gone()
    with wire_agent(connect=False) as agent:
        agent.connect_daemon(version=2)
        agent.ask(trigger(b"a.B+c"))
        kind, body = agent.daemon.receive()
        assert (kind, len(body)) == (TRIGGER_SERVICE, 128)
        assert body[:64].rstrip(b"\0") == b"a.B+c"
        assert body[64:96].rstrip(b"\0") == b"work"
        assert agent.ask(trigger(b"a.B+" + b"x" * 60)).is_gone()


def test_300_clients_and_300_calls_at_once() -> None:
    """Each is served, none is mixed up, and no descriptor is left."""
    with wire_agent() as agent:
        before = descriptors_of(agent.process.pid)
        clients = {}
        for number in range(300):
            client = agent.ask(trigger(b"a.B+%d" % number))
            clients[int(forwarded(agent)[164:-1])] = (client, number)
            assert number in clients
        for client, _ in clients.values():
            client.close()
        eventually(lambda: descriptors_of(agent.process.pid) == before)
        calls = [
            agent.call(agent.script(f"cat >/dev/null; exit {number % 250}"))
            for number in range(300)
        ]
        for number, call in reversed(list(enumerate(calls))):
            call.send(STDIN)
            assert code_of(call.rest()) == number % 250
            call.close()
        told = {agent.daemon.receive() for _ in calls}
        assert told == {
            (TERMINATED, numbers(PEER, port)) for port in range(agent.port - 299, agent.port + 1)
        }
        assert descriptors_of(agent.process.pid) == before


def test_clients_beyond_the_bound_are_refused_and_it_goes_on() -> None:
    """The one too many sees what a refusal looks like; room is made by those who leave."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit[0] < 1024 and limit[1] >= 1024:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limit[1]))
    with wire_agent() as agent:
        clients = []
        for number in range(512):
            clients.append(agent.ask(trigger(b"a.B+%d" % number)))
            assert forwarded(agent)[164:-1] == b"%d" % number
        extra = agent.ask(b"")
        assert extra.is_gone()
        full = descriptors_of(agent.process.pid)
        clients.pop().close()
        eventually(lambda: descriptors_of(agent.process.pid) < full)
        assert agent.process.poll() is None
        agent.ask(trigger(b"a.Room"))
        assert forwarded(agent)[160:] == b"a.Room\0"
