"""`qrexec-client-vm`: the streams of a call, with pipes, files, terminals and the real agent."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import threading
from typing import IO, Any

import pytest
from agent_rig import PATIENCE, Agent, Pipes, read_all, running_agent, shut
from broker_desk import Desk, write_until_refused
from client_rig import end_input, finish

from caisson.qrexec.wire import ClientCall, parse_client

MEGABYTE = 1 << 20


# Streams.


def test_our_end_of_input_is_the_services(desk: Desk) -> None:
    """Half-close: output still flows."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    assert process.stdin is not None
    process.stdin.write(b"question")
    end_input(process)
    assert read_all(pipes.service[0]) == b"question"
    os.write(pipes.service[1], b"answer")
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process) == (0, b"answer", b"")


def test_a_service_that_reads_nothing_does_no_harm(desk: Desk) -> None:
    """Its closed stdin is no signal to the client, and whoever writes to us learns it."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    shut(pipes.service, 0)
    assert process.stdin is not None
    with pytest.raises(BrokenPipeError):
        write_until_refused(process.stdin.fileno())
    end_input(process)
    os.write(pipes.service[1], b"out")
    os.write(pipes.service[2], b"err")
    shut(pipes.service)
    peer.send(b"X7")
    assert finish(process) == (7, b"out", b"err")


def test_output_that_comes_after_the_end_is_waited_for(desk: Desk) -> None:
    """A grandchild may hold stdout; our own stdin is not waited for."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    peer.send(b"X3")
    assert read_all(pipes.service[0]) == b""
    os.write(pipes.service[1], b"late")
    shut(pipes.service, 1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    os.write(pipes.service[2], b"later")
    shut(pipes.service)
    assert process.wait(timeout=PATIENCE) == 3
    assert finish(process) == (3, b"late", b"later")


def test_a_reader_that_leaves_reaches_the_service(desk: Desk) -> None:
    """As in a pipeline that ends in `head`."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    assert process.stdout is not None
    process.stdout.close()
    with pytest.raises(BrokenPipeError):
        write_until_refused(pipes.service[1])
    shut(pipes.service)
    peer.send(b"X0")
    assert process.wait(timeout=PATIENCE) == 0


def test_stdin_may_be_closed_or_empty(desk: Desk) -> None:
    """Neither is an error."""
    shell = f"exec {desk.home}/qrexec-client-vm --agent-socket={desk.listener.path} work a.B"
    for redirection in ("<&-", "</dev/null"):
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"{shell} {redirection}"], stdout=subprocess.PIPE
        )
        peer, _, pipes = desk.answer()
        assert read_all(pipes.service[0]) == b""
        os.write(pipes.service[1], b"ok")
        shut(pipes.service)
        peer.send(b"X0")
        assert finish(process)[:2] == (0, b"ok")


@pytest.mark.parametrize("kind", ["pipe", "file", "append"])
@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
def test_large_streams_arrive_whole(desk: Desk, kind: str, filtered: bool) -> None:
    """Both ways at once, through pipes and files, spliced or copied."""
    data = os.urandom(MEGABYTE) * 24
    seen = bytes(b if 32 <= b < 127 or b in b"\7\b\t\n\r" else ord("_") for b in range(256))
    source, sink = desk.home / "in", desk.home / "out"
    source.write_bytes(data)
    options: dict[str, Any] = {}
    files: list[IO[bytes]] = []
    if kind != "pipe":
        files = [source.open("rb"), sink.open("wb" if kind == "file" else "ab")]
        options = {"stdin": files[0], "stdout": files[1]}
    process = desk.start(*(["-t"] if filtered else []), "work", "a.B", **options)
    for file in files:
        file.close()
    peer, _, pipes = desk.answer()
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read_all(pipes.service[0])))
    reader.start()

    def write() -> None:
        at = 0
        while at < len(data):
            at += os.write(pipes.service[1], data[at : at + 100_000])
        shut(pipes.service, 1, 2)
        reader.join()
        peer.send(b"X0")

    writer = threading.Thread(target=write)
    writer.start()
    code, stdout, _ = finish(process, data if kind == "pipe" else None)
    writer.join()
    shut(pipes.service, 0)
    output = stdout if kind == "pipe" else sink.read_bytes()
    expected = data.translate(seen) if filtered else data
    assert code == 0
    assert hashlib.sha256(received[0]).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(output).digest() == hashlib.sha256(expected).digest()


def test_the_flags_of_our_own_descriptors_stay(desk: Desk) -> None:
    """They are shared with the shell: non-blocking mode there would break it."""
    stdin, silent = os.pipe()
    read, stdout = os.pipe()
    process = desk.start("-t", "work", "a.B", stdin=stdin, stdout=stdout)
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], b"x")
    assert os.read(read, 1) == b"x"
    assert os.get_blocking(stdin)
    assert os.get_blocking(stdout)
    shut(pipes.service)
    shut([stdin, silent, read, stdout])
    peer.send(b"X0")
    assert process.wait(timeout=PATIENCE) == 0


def through_terminal(desk: Desk, *arguments: str) -> bytes:
    """What a terminal shows of hostile output."""
    master, slave = pty.openpty()
    process = desk.start(*arguments, "work", "a.B", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], b"out\x1b[2J\x9b1m\xc3\xa9.")
    shut(pipes.service, 1)
    shown = b""
    while not shown.endswith(b"."):
        shown += os.read(master, 100)
    os.write(pipes.service[2], b"err\x1b]0;x\a.")
    shut(pipes.service)
    while shown.count(b".") < 2:
        shown += os.read(master, 100)
    peer.send(b"X0")
    assert process.wait(timeout=PATIENCE) == 0
    os.close(master)
    return shown


# Terminals.


def test_a_terminal_is_protected_by_default(desk: Desk) -> None:
    """Escape sequences of another qube do not reach it."""
    assert through_terminal(desk) == b"out_[2J_1m__.err_]0;x\a."


def test_the_protection_can_be_switched_off(desk: Desk) -> None:
    """For those who know."""
    options = ("--no-filter-escape-chars-stdout", "--no-filter-escape-chars-stderr")
    assert through_terminal(desk, *options) == b"out\x1b[2J\x9b1m\xc3\xa9.err\x1b]0;x\a."


def test_no_filter_where_there_is_no_terminal(desk: Desk) -> None:
    """Data stay data."""
    process = desk.start("work", "a.B")
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], bytes(range(256)))
    os.write(pipes.service[2], bytes(range(256)))
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process) == (0, bytes(range(256)), bytes(range(256)))


def relay(desk: Desk, agent: Agent) -> None:
    """One call from a client to the agent, as the broker makes it."""
    peer = desk.listener.accept()
    call = parse_client(peer.receive())
    assert isinstance(call, ClientCall)
    pipes = Pipes.make()
    descriptor = f"{call.service}+{call.argument}"
    peer.send(b"A", pipes.caller)
    shut(pipes.caller)
    code = agent.code_of(agent.service(descriptor, pipes, flags=call.flags))
    peer.send(b"X%d" % code)


# Both ends together.


def test_a_whole_call(desk: Desk) -> None:
    """Client, broker's part, agent, service and back."""
    (desk.home / "agent").mkdir()
    with running_agent(desk.home / "agent") as agent:
        agent.write_service("a.Hash", "#!/bin/sh\nsha256sum; echo $1 >&2; exit 17\n")
        process = desk.start("work", "a.Hash+arg", stdin=subprocess.PIPE)
        thread = threading.Thread(target=relay, args=(desk, agent))
        thread.start()
        data = os.urandom(MEGABYTE) * 32
        code, stdout, stderr = finish(process, data)
        thread.join()
        assert (code, stderr) == (17, b"arg\n")
        assert stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()

        process = desk.start("work", "a.Missing")
        relay(desk, agent)
        code, _, stderr = finish(process)
        assert code == 127
        assert stderr == b"error: the called qube has no service `a.Missing+`\n"

        process = desk.start("-e", "work", "a.Hash")
        relay(desk, agent)
        assert finish(process) == (0, b"", b"")
