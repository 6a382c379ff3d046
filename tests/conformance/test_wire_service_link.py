"""The service's side of a data link: which bytes go over it, in which order it ends."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from agent_rig import PATIENCE, eventually
from wire_peer import (
    EXIT_CODE,
    HELLO,
    PEER,
    RING,
    STDERR,
    STDIN,
    STDOUT,
    TERMINATED,
    RingPeer,
    Wire,
    WireAgent,
    code_of,
    hello,
    joined,
    message,
    numbers,
    wire_agent,
)


@pytest.fixture(scope="module")
def agent() -> Iterator[WireAgent]:
    """One agent for all."""
    with wire_agent() as agent:
        yield agent


@pytest.fixture(autouse=True)
def _ends_are_told(agent: WireAgent) -> Iterator[None]:
    """Whatever a peer did, the daemon hears that its connection is done with."""
    before = agent.port
    yield
    told = {agent.daemon.receive() for _ in range(agent.port - before)}
    expected = {(TERMINATED, numbers(PEER, port)) for port in range(before + 1, agent.port + 1)}
    assert told == expected
    assert agent.process.poll() is None


def kinds(messages: list[tuple[int, bytes]]) -> list[int]:
    """The kinds of messages, in order."""
    return [kind for kind, _ in messages]


def test_bytes_of_a_whole_call(agent: WireAgent) -> None:
    """The agent greets without being greeted; three streams, their ends, the code, the end."""
    link = agent.execute(agent.script("cat; echo oops >&2; exit 42"))
    assert link.exactly(12) == bytes.fromhex("00030000 04000000 04000000")
    link.raw(hello() + message(STDIN, b"line\n") + message(STDIN))
    found = link.rest()
    assert joined(found, STDOUT) == b"line\n"
    assert joined(found, STDERR) == b"oops\n"
    assert {kind for kind, body in found if body == b""} == {STDOUT, STDERR}
    assert message(*found[-1]) == bytes.fromhex("93010000 04000000 2a000000")


@pytest.mark.parametrize(("script", "code"), [("kill -KILL $$", 137), ("exit 255", 255)])
def test_codes_and_signals(agent: WireAgent, script: str, code: int) -> None:
    """128 and the signal's number."""
    assert agent.outcome(agent.script(script))[0] == code


def test_the_code_does_not_wait_for_the_callers_end(agent: WireAgent) -> None:
    """Half open: the caller never says the end of its input."""
    link = agent.call(agent.script("echo out; exit 3"))
    found = link.rest()
    assert (joined(found, STDOUT), code_of(found)) == (b"out\n", 3)


def test_ends_come_before_the_code_when_streams_close_first(agent: WireAgent) -> None:
    """The streams end, the process lives on."""
    link = agent.call(agent.script("exec >&- 2>&-; read line; exit 4"))
    assert {link.receive(), link.receive()} == {(STDOUT, b""), (STDERR, b"")}
    link.send(STDIN, b"go\n")
    assert link.rest() == [(EXIT_CODE, struct.pack("<i", 4))]


def test_the_code_waits_for_a_grandchild_that_holds_stdout(agent: WireAgent) -> None:
    """The process is gone; its child still writes."""
    fifo = agent.home / "fifo"
    os.mkfifo(fifo)
    link = agent.call(agent.script(f"(read line <{fifo}; echo late) 2>&- & exit 5"))
    assert link.receive() == (STDERR, b"")
    with fifo.open("w") as writer:
        writer.write("go\n")
    fifo.unlink()
    found = link.rest()
    assert found == [(STDOUT, b"late\n"), (STDOUT, b""), (EXIT_CODE, struct.pack("<i", 5))]


def test_input_after_the_services_end_is_dropped(agent: WireAgent) -> None:
    """Stdin is closed when the service ends, although a grandchild keeps the call open."""
    fifo = agent.home / "fifo"
    os.mkfifo(fifo)
    link = agent.call(agent.script(f"(read line <{fifo}) 2>&- & exit 6"))
    assert link.receive() == (STDERR, b"")
    for _ in range(64):
        link.send(STDIN, b"x" * 65_536)
    fifo.open("w").close()
    fifo.unlink()
    assert code_of(link.rest()) == 6


def test_input_that_nobody_reads_stops_nothing(agent: WireAgent) -> None:
    """EPIPE on stdin: the rest of it is dropped, output goes on."""
    fifo = agent.home / "fifo"
    os.mkfifo(fifo)
    link = agent.call(agent.script(f"exec <&-; echo closed; read x <{fifo}; exit 7"))
    for _ in range(64):
        link.send(STDIN, b"x" * 65_536)
    link.send(STDIN)
    fifo.open("w").close()
    fifo.unlink()
    found = link.rest()
    assert (joined(found, STDOUT), code_of(found)) == (b"closed\n", 7)


def test_messages_out_of_place(agent: WireAgent) -> None:
    """STDOUT counts as STDIN; STDERR, EXIT_CODE and data after the end are dropped."""
    link = agent.call(agent.script("exec cat"))
    link.raw(
        message(STDOUT, b"a")
        + message(STDERR, b"no")
        + message(EXIT_CODE, b"\1\0\0\0")
        + message(EXIT_CODE)
        + message(STDIN, b"b")
        + message(STDIN)
        + message(STDIN, b"c")
        + message(STDIN)
    )
    found = link.rest()
    assert (joined(found, STDOUT), code_of(found)) == (b"ab", 0)


@pytest.mark.parametrize(
    "wrong",
    [
        struct.pack("<II", STDIN, 65_537),
        struct.pack("<II", STDIN, 0xFFFF_FFFF),
        message(0x194, b""),
        message(0x200, b"x" * 9),
        message(HELLO, b"\4\0\0\0"),
    ],
)
def test_a_peer_that_breaks_the_protocol_loses_the_call(agent: WireAgent, wrong: bytes) -> None:
    """QSB-089: the data process ends without a code, and its service with it."""
    link = agent.call(agent.script("cat; exit 1"))
    link.raw(wrong)
    assert EXIT_CODE not in kinds(link.rest())


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536])
def test_every_length_of_a_message_passes(agent: WireAgent, length: int) -> None:
    """QSB-089: 0 is the end, the largest is not too large."""
    link = agent.call(agent.script("exec wc -c"))
    link.send(STDIN, b"x" * length)
    if length:
        link.send(STDIN)
    found = link.rest()
    assert int(joined(found, STDOUT)) == length


@pytest.mark.parametrize(
    "wrong", [message(HELLO, b"\4\0\0"), message(STDIN, b"x"), hello(1), hello(0), b"", b"\0\3"]
)
def test_a_link_without_a_right_hello_serves_nothing(agent: WireAgent, wrong: bytes) -> None:
    """Nothing was started for it."""
    mark = agent.home / "started"
    link = agent.execute(agent.script(f"touch {mark}"))
    link.raw(wrong)
    link.socket.shutdown(socket.SHUT_WR)
    assert link.exactly(12) == hello()
    assert link.is_gone()
    assert not mark.exists()


def test_peers_of_protocol_2_get_small_messages(agent: WireAgent) -> None:
    """At most 4096 bytes each way."""
    link = agent.call(agent.script("head -c 100000 /dev/zero; cat"), version=2)
    link.send(STDIN, b"x" * 4096)
    link.send(STDIN)
    found = link.rest()
    assert len(joined(found, STDOUT)) == 104_096
    assert max(len(body) for _, body in found) == 4096
    link = agent.call(agent.script("exec cat"), version=2)
    link.raw(struct.pack("<II", STDIN, 4097))
    assert EXIT_CODE not in kinds(link.rest())


def test_a_peer_that_vanishes_takes_the_call_with_it(agent: WireAgent) -> None:
    """The service sees its streams end, also where it was not reading."""
    mark = agent.home / "ended"
    for script in ("cat", "yes", "read line; trap '' PIPE; while echo x; do :; done 2>/dev/null"):
        mark.unlink(missing_ok=True)
        link = agent.call(agent.script(f"trap '' PIPE; {script}; touch {mark}"))
        link.send(STDIN, b"x\n")
        link.close()
        eventually(mark.exists)


def test_a_caller_that_reads_nothing_is_no_reason_to_buffer(agent: WireAgent) -> None:
    """Back-pressure: the service stops, what is held stays bounded; then all arrives."""
    count = agent.home / "count"
    link = agent.call(
        agent.script(
            f"exec 3>&1; i=0; while [ $i -lt 64 ]; do head -c 1000000 /dev/zero >&3;"
            f" i=$((i+1)); echo $i >{count}; done"
        )
    )
    # Meanwhile the other direction works, and another call is served.
    link.send(STDIN, b"x" * 1000)
    assert agent.outcome(agent.script("exit 2"))[0] == 2
    assert not count.exists() or int(count.read_text() or "0") < 16
    found = link.rest()
    assert len(joined(found, STDOUT)) == 64_000_000
    assert code_of(found) == 0


def test_both_directions_at_once_over_small_rings(agent: WireAgent) -> None:
    """An upstream peer holds 4096 bytes each way: neither side may wait for the other to read."""
    link = agent.execute(agent.script("exec cat"))
    ring = RingPeer(link.socket)
    data = os.urandom(1_000_000)

    def send() -> None:
        for at in range(0, len(data), RING - 8):
            ring.wire.send(STDIN, data[at : at + RING - 8])
        ring.wire.send(STDIN)

    try:
        assert ring.wire.greet() == 4
        sender = threading.Thread(target=send)
        sender.start()
        found = ring.wire.rest()
        sender.join()
    finally:
        ring.close()
    assert joined(found, STDOUT) == data
    assert code_of(found) == 0


def test_a_large_stream_arrives_whole(agent: WireAgent) -> None:
    """In both directions, with whatever cuts the sockets make."""
    data = os.urandom(1 << 20) * 20
    link = agent.call(agent.script("exec cat"))

    def send() -> None:
        for at in range(0, len(data), 50_001):
            link.send(STDIN, data[at : at + 50_001])
        link.send(STDIN)

    sender = threading.Thread(target=send)
    sender.start()
    found = link.rest()
    sender.join()
    assert joined(found, STDOUT) == data
    assert code_of(found) == 0


def test_stdin_takes_the_output_where_the_service_asks_for_it(agent: WireAgent) -> None:
    """SIGUSR1: stdout is done with, and what is written to descriptor 0 is the output."""
    link = agent.call(
        agent.script(
            'echo lost-or-not >/dev/null; kill -USR1 "$QREXEC_AGENT_PID"; exec >&-\n'
            "read line; echo answer to $line >&0; exec cat >&0"
        )
    )
    link.send(STDIN, b"ping\n")
    link.send(STDIN, b"more\n")
    link.send(STDIN)
    found = link.rest()
    assert joined(found, STDOUT) == b"answer to ping\nmore\n"
    assert code_of(found) == 0


def test_a_missing_service_and_a_malformed_command(agent: WireAgent) -> None:
    """STDOUT's end, STDERR's end, 127 or 125; the reason stands on stderr without escapes."""
    code, out, err = agent.outcome(f"{agent.user}:QUBESRPC a.Missing work")
    assert (code, out) == (127, b"")
    assert err
    for line in (
        b"no colon",
        f"{agent.user}:QUBESRPC".encode(),
        f"{agent.user}:QUBESRPCx y".encode(),
        f"{agent.user}:QUBESRPC a.B".encode(),
        f"{agent.user}:QUBESRPC  work".encode(),
        f"{agent.user}:QUBESRPC +x work".encode(),
        f"{agent.user}:QUBESRPC {'x' * 256} work".encode(),
        f"{agent.user}:QUBESRPC a\x1b[2J work".encode(),
    ):
        code, out, err = agent.outcome(line)
        assert (code, out) == (125, b""), line
        assert err.startswith(b"error: ")
        assert b"\x1b" not in err


def test_a_service_holds_none_of_our_descriptors(agent: WireAgent) -> None:
    """Nor does its data process hold those of the agent."""
    code, out, _ = agent.outcome(agent.script("ls /proc/self/fd"))
    assert (code, out.split()) == (0, [b"0", b"1", b"2", b"3"])
    fifo = agent.home / "fifo"
    os.mkfifo(fifo)
    link = agent.call(agent.script(f"echo $QREXEC_AGENT_PID; read line <{fifo}"))
    pid = int(link.receive()[1])
    held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH115, PTH208
    agents = {
        os.readlink(f"/proc/{agent.process.pid}/fd/{fd}")  # noqa: PTH115
        for fd in os.listdir(f"/proc/{agent.process.pid}/fd")  # noqa: PTH208
    }
    assert not {name for name in held & agents if name.startswith("socket:")}
    fifo.open("w").close()
    fifo.unlink()
    link.rest()


# Services through sockets.


@pytest.fixture
def served(agent: WireAgent) -> Iterator[socket.socket]:
    """A listening socket in the place of service `a.Sock`."""
    path = agent.home / "services/a.Sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        yield listener
    path.unlink()


def test_a_socket_service_has_no_errors_and_no_code(
    agent: WireAgent, served: socket.socket
) -> None:
    """STDERR ends at once; the code is 0 and waits for the ends of both directions."""
    link = agent.call(f"{agent.user}:QUBESRPC a.Sock+x work name y")
    service = Wire(served.accept()[0])
    assert link.receive() == (STDERR, b"")
    link.send(STDIN, b"in")
    assert service.exactly(23) == b"a.Sock+x work name y\0in"
    service.raw(b"answer")
    assert link.receive() == (STDOUT, b"answer")
    service.socket.shutdown(socket.SHUT_WR)
    assert link.receive() == (STDOUT, b"")
    link.send(STDIN, b"more")
    assert service.exactly(4) == b"more"
    link.send(STDIN)
    assert service.is_gone()
    assert link.rest() == [(EXIT_CODE, struct.pack("<i", 0))]
    service.close()


@pytest.mark.parametrize("setting", ["exit-on-client-eof", "exit-on-service-eof"])
def test_settings_end_calls_of_sockets_early(
    agent: WireAgent, served: socket.socket, setting: str
) -> None:
    """STDOUT ends, the code is 0, whatever the other direction does."""
    settings = agent.home / "settings/a.Sock"
    settings.write_text(f"{setting} = true\nskip-service-descriptor = true\n")
    link = agent.call(f"{agent.user}:QUBESRPC a.Sock work")
    service = Wire(served.accept()[0])
    link.send(STDIN, b"first")
    assert service.exactly(5) == b"first"
    if setting == "exit-on-client-eof":
        link.send(STDIN)
    else:
        service.socket.shutdown(socket.SHUT_WR)
    found = link.rest()
    settings.unlink()
    assert {kind for kind, _ in found[:-1]} == {STDOUT, STDERR}
    assert code_of(found) == 0
    service.close()
