"""Services behind unix sockets: what they are told, how bytes pass, and how a call ends."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from agent_rig import Agent, Outcome, Pipes, read_all, running_agent, shut
from socket_rig import read_rest, read_until, settings, unix_service

MEGABYTE = 1 << 20


def test_the_service_is_told_first_what_is_called_and_by_whom(agent: Agent) -> None:
    """The descriptor ends with a NUL; then come the caller's bytes, and the answer goes back."""
    with unix_service(agent, "a.Told") as server:
        pipes = Pipes.make()
        number = agent.service("a.Told+arg", pipes, source="work")
        with server.accept() as connection:
            assert read_until(connection, b"\0") == b"a.Told+arg work\0"
            os.write(pipes.caller[0], b"question\0\xff")
            shut(pipes.caller, 0)
            assert read_rest(connection) == b"question\0\xff"
            # Stderr has ended before anything else did.
            assert read_all(pipes.caller[2]) == b""
            connection.sendall(b"answer\0\xfe")
        assert agent.outcome(number, pipes) == Outcome(0, b"answer\0\xfe", b"")


def test_the_descriptor_is_not_completed(agent: Agent) -> None:
    """What arrived without `+` is told without."""
    with unix_service(agent, "a.Bare") as server:
        pipes = Pipes.make()
        number = agent.service("a.Bare", pipes)
        with server.accept() as connection:
            assert read_until(connection, b"\0") == b"a.Bare work\0"
            shut(pipes.caller, 0)
            assert read_rest(connection) == b""
        assert agent.outcome(number, pipes).code == 0


def test_a_service_may_be_spared_the_descriptor(agent: Agent) -> None:
    """With `skip-service-descriptor`, for servers that know nothing of calls."""
    settings(agent, "a.Skip", "skip-service-descriptor = true")
    with unix_service(agent, "a.Skip") as server:
        pipes = Pipes.make()
        number = agent.service("a.Skip+x", pipes)
        os.write(pipes.caller[0], b"GET")
        shut(pipes.caller, 0)
        with server.accept() as connection:
            assert read_rest(connection) == b"GET"
        assert agent.outcome(number, pipes).code == 0


def test_each_direction_ends_for_itself(agent: Agent) -> None:
    """A service that has said all may go on reading, and the code is always 0."""
    with unix_service(agent, "a.Half") as server:
        pipes = Pipes.make()
        number = agent.service("a.Half", pipes)
        with server.accept() as connection:
            read_until(connection, b"\0")
            connection.sendall(b"all")
            connection.shutdown(socket.SHUT_WR)
            assert read_all(pipes.caller[1]) == b"all"
            os.write(pipes.caller[0], b"more")
            shut(pipes.caller, 0)
            assert read_rest(connection) == b"more"
        assert agent.outcome(number, pipes).code == 0


def echo(connection: socket.socket) -> None:
    """Answer with what is read, to the end."""
    with connection:
        while piece := connection.recv(1 << 16):
            connection.sendall(piece)


def send_for_ever(connection: socket.socket) -> None:
    """Send until it fails."""
    while True:
        connection.sendall(b"x" * 4096)


def write_all(pipes: Pipes, data: bytes) -> None:
    """Write the caller's input, and end it."""
    at = 0
    while at < len(data):
        at += os.write(pipes.caller[0], data[at : at + 100_000])
    shut(pipes.caller, 0)


def test_large_streams_pass_both_ways(agent: Agent) -> None:
    """Whole and in order, with a service that answers what it reads."""
    data = os.urandom(MEGABYTE) * 8
    with unix_service(agent, "a.Large") as server:
        pipes = Pipes.make()
        number = agent.service("a.Large", pipes)
        connection = server.accept()
        read_until(connection, b"\0")
        threads = [
            threading.Thread(target=echo, args=(connection,)),
            threading.Thread(target=write_all, args=(pipes, data)),
        ]
        for thread in threads:
            thread.start()
        outcome = agent.outcome(number, pipes)
        for thread in threads:
            thread.join()
    assert (outcome.code, len(outcome.stdout)) == (0, len(data))
    assert outcome.stdout == data


def test_a_call_may_end_with_the_callers_input(agent: Agent) -> None:
    """With `exit-on-client-eof` the service's end is not waited for."""
    settings(agent, "a.ClientEof", "exit-on-client-eof = true")
    with unix_service(agent, "a.ClientEof") as server:
        pipes = Pipes.make()
        number = agent.service("a.ClientEof", pipes)
        with server.accept() as connection:
            read_until(connection, b"\0")
            shut(pipes.caller, 0)
            assert agent.outcome(number, pipes) == Outcome(0, b"", b"")


def test_a_call_may_end_with_the_services_output(agent: Agent) -> None:
    """With `exit-on-service-eof` the caller's end of input is not waited for."""
    settings(agent, "a.ServiceEof", "exit-on-service-eof = true")
    with unix_service(agent, "a.ServiceEof") as server:
        pipes = Pipes.make()
        number = agent.service("a.ServiceEof", pipes)
        with server.accept() as connection:
            read_until(connection, b"\0")
            connection.sendall(b"bye")
            connection.shutdown(socket.SHUT_WR)
            assert read_all(pipes.caller[1]) == b"bye"
            assert agent.code_of(number) == 0
        shut(pipes.caller)


def test_a_service_that_is_gone_ends_the_call(agent: Agent) -> None:
    """It closed both ways: the caller learns it as from a program that has ended."""
    with unix_service(agent, "a.Gone") as server:
        pipes = Pipes.make()
        number = agent.service("a.Gone", pipes)
        server.accept().close()
        assert agent.outcome(number, pipes).code == 0


def test_a_reader_that_leaves_reaches_the_service(agent: Agent) -> None:
    """As with a program in a pipeline that ends in `head`."""
    with unix_service(agent, "a.Head") as server:
        pipes = Pipes.make()
        number = agent.service("a.Head", pipes)
        with server.accept() as connection:
            read_until(connection, b"\0")
            shut(pipes.caller, 1)
            with pytest.raises(BrokenPipeError):
                send_for_ever(connection)
            shut(pipes.caller, 0)
            assert read_rest(connection) == b""
        assert agent.code_of(number) == 0
        shut(pipes.caller)


def test_a_path_longer_than_an_address_is_no_obstacle(tmp_path: Path) -> None:
    """Neither where the directory is deep, nor where the name alone is too long."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir(parents=True)
    with running_agent(deep) as agent:
        for name in ("a.Deep", "a." + "n" * 200):
            with unix_service(agent, name) as server:
                pipes = Pipes.make()
                number = agent.service(name, pipes)
                shut(pipes.caller, 0)
                with server.accept() as connection:
                    assert read_rest(connection) == f"{name} work\0".encode()
                assert agent.outcome(number, pipes).code == 0


def test_the_link_to_a_socket_is_followed(agent: Agent) -> None:
    """As system services do that keep their socket elsewhere."""
    with unix_service(agent, "elsewhere", where="broker") as server:
        (agent.home / "services-1/a.Linked").symlink_to(agent.home / "broker/elsewhere")
        pipes = Pipes.make()
        number = agent.service("a.Linked", pipes)
        shut(pipes.caller, 0)
        with server.accept() as connection:
            assert read_rest(connection) == b"a.Linked work\0"
        assert agent.outcome(number, pipes).code == 0


def test_a_socket_without_a_server_is_125(agent: Agent) -> None:
    """So is one of another kind; the caller is told which."""
    for name, kind in (("a.Stale", socket.SOCK_STREAM), ("a.Packets", socket.SOCK_SEQPACKET)):
        path = agent.home / "services-2" / name
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.bind(str(path))
            if kind != socket.SOCK_STREAM:
                sock.listen()
            else:
                sock.close()
            outcome = agent.call(name)
        assert outcome.code == 125
        assert f"cannot connect to `{path}`".encode() in outcome.stderr


def test_just_exec_writes_the_descriptor_and_leaves(agent: Agent) -> None:
    """Nobody waits for a socket service either."""
    with unix_service(agent, "a.JustStart") as server:
        pipes = Pipes.make()
        number = agent.service("a.JustStart+x", pipes, flags="e")
        with server.accept() as connection:
            assert read_rest(connection) == b"a.JustStart+x work\0"
            assert agent.code_of(number) == 0
        shut(pipes.caller)


def test_the_process_of_a_call_holds_nothing_of_the_agent(agent: Agent) -> None:
    """Neither the way to the broker nor another call's pipes outlive the agent in it."""
    with unix_service(agent, "a.Clean") as server:
        other, pipes = Pipes.make(), Pipes.make()
        waiting = agent.command("echo up; read x", other)
        assert os.read(other.caller[1], 3) == b"up\n"
        number = agent.service("a.Clean", pipes)
        with server.accept() as connection:
            read_until(connection, b"\0")
            assert read_all(pipes.caller[2]) == b""
            child = next(
                int(pid)
                for pid in Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
                .read_text()
                .split()
                if Path(f"/proc/{pid}/exe").readlink().name == "qrexec-agent"
            )
            kinds = {
                str(entry.readlink()).split(":")[0] for entry in Path(f"/proc/{child}/fd").iterdir()
            }
            numbers = sorted(int(entry.name) for entry in Path(f"/proc/{child}/fd").iterdir())
            assert numbers[:4] == [0, 1, 2, 3]
            assert len(numbers) <= 6
            assert kinds <= {"pipe", "socket", "/dev/null"}
            shut(pipes.caller, 0)
        assert agent.outcome(number, pipes).code == 0
        shut(other.caller, 0)
        assert agent.code_of(waiting) == 1
        shut(other.caller)
