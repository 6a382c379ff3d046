"""Services behind sockets: what they are told, how bytes pass, and how a call ends."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import (
    BINARY,
    ME,
    PATIENCE,
    Agent,
    Outcome,
    Pipes,
    eventually,
    read_all,
    running_agent,
    shut,
)
from wire_peer import STDERR, STDIN, STDOUT, code_of, joined, wire_agent

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent for all calls of this module."""
    with tempfile.TemporaryDirectory() as directory, running_agent(Path(directory)) as agent:
        yield agent


class Server:
    """A service behind a socket."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        listening.settimeout(PATIENCE)
        listening.listen(16)

    def accept(self) -> socket.socket:
        """The next call."""
        connection = self.listening.accept()[0]
        connection.settimeout(PATIENCE)
        return connection


@contextlib.contextmanager
def unix_service(agent: Agent, name: str, where: str = "services-2") -> Iterator[Server]:
    """A service behind a Unix socket, whatever the length of its path."""
    path = agent.home / where / name
    with (
        tempfile.TemporaryDirectory() as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening,
    ):
        listening.bind(f"{short}/s")
        shutil.move(f"{short}/s", path)
        try:
            yield Server(listening)
        finally:
            path.unlink()


@contextlib.contextmanager
def tcp_service(
    agent: Agent, name: str, link: str, family: int = socket.AF_INET
) -> Iterator[tuple[Server, int]]:
    """A service behind a TCP port; `PORT` in the link's text becomes its number."""
    path = agent.home / "services-2" / name
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        port = listening.getsockname()[1]
        path.symlink_to(link.replace("PORT", str(port)))
        try:
            yield Server(listening), port
        finally:
            path.unlink()


def settings(agent: Agent, name: str, *lines: str) -> None:
    """Write the settings of a service."""
    (agent.home / "settings" / name).write_text("".join(f"{line}\n" for line in lines))


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Read up to these bytes, or the end."""
    found = b""
    while not found.endswith(end) and (piece := connection.recv(1)):
        found += piece
    return found


def read_rest(connection: socket.socket) -> bytes:
    """Read to the end."""
    found = bytearray()
    while piece := connection.recv(1 << 16):
        found += piece
    return bytes(found)


def finish(agent: Agent, number: int, pipes: Pipes) -> Outcome:
    """Read a call's output to the end and wait for it."""
    stdout, stderr = read_all(pipes.caller[1]), read_all(pipes.caller[2])
    outcome = Outcome(agent.code_of(number), stdout, stderr)
    shut(pipes.caller)
    return outcome


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
        assert finish(agent, number, pipes) == Outcome(0, b"answer\0\xfe", b"")


def test_the_descriptor_is_not_completed(agent: Agent) -> None:
    """What arrived without `+` is told without."""
    with unix_service(agent, "a.Bare") as server:
        pipes = Pipes.make()
        number = agent.service("a.Bare", pipes)
        with server.accept() as connection:
            assert read_until(connection, b"\0") == b"a.Bare work\0"
            shut(pipes.caller, 0)
            assert read_rest(connection) == b""
        assert finish(agent, number, pipes).code == 0


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
        assert finish(agent, number, pipes).code == 0


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
        assert finish(agent, number, pipes).code == 0


def echo(connection: socket.socket) -> None:
    """Answer with what is read, to the end."""
    with connection:
        while piece := connection.recv(1 << 16):
            connection.sendall(piece)


def send_for_ever(connection: socket.socket) -> None:
    """Send until it fails."""
    while True:
        connection.sendall(b"x" * 4096)


def write_much(descriptor: int, most: int) -> None:
    """Write until it fails, or so much."""
    while most > 0:
        most -= os.write(descriptor, b"x" * 65536)


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
        outcome = finish(agent, number, pipes)
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
            assert finish(agent, number, pipes) == Outcome(0, b"", b"")


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
        assert finish(agent, number, pipes).code == 0


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
                assert finish(agent, number, pipes).code == 0


def test_the_link_to_a_socket_is_followed(agent: Agent) -> None:
    """As system services do that keep their socket elsewhere."""
    with unix_service(agent, "elsewhere", where="broker") as server:
        (agent.home / "services-1/a.Linked").symlink_to(agent.home / "broker/elsewhere")
        pipes = Pipes.make()
        number = agent.service("a.Linked", pipes)
        shut(pipes.caller, 0)
        with server.accept() as connection:
            assert read_rest(connection) == b"a.Linked work\0"
        assert finish(agent, number, pipes).code == 0


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
        assert finish(agent, number, pipes).code == 0
        shut(other.caller, 0)
        assert agent.code_of(waiting) == 1
        shut(other.caller)


# TCP.


@pytest.mark.parametrize(
    ("name", "link", "argument", "family"),
    [
        ("t.Fixed", "/dev/tcp/127.0.0.1/PORT", "", socket.AF_INET),
        ("t.Host", "/dev/tcp/127.0.0.1", "PORT", socket.AF_INET),
        ("t.Any", "/dev/tcp", "127.0.0.1+PORT", socket.AF_INET),
        ("t.Any6", "/dev/tcp", "++1+PORT", socket.AF_INET6),
        ("t.Fixed6", "/dev/tcp/::1/PORT", "", socket.AF_INET6),
        ("t.Zone", "/dev/tcp/::1%lo", "PORT", socket.AF_INET6),
    ],
)
def test_tcp_services(agent: Agent, name: str, link: str, argument: str, family: int) -> None:
    """The link's text and the argument make the address; the descriptor is sent here too."""
    with tcp_service(agent, name, link, family) as (server, port):
        descriptor = f"{name}+{argument.replace('PORT', str(port))}"
        pipes = Pipes.make()
        number = agent.service(descriptor, pipes)
        with server.accept() as connection:
            assert read_until(connection, b"\0") == f"{descriptor} work\0".encode()
            os.write(pipes.caller[0], b"ping")
            assert connection.recv(4) == b"ping"
            connection.sendall(b"pong")
            shut(pipes.caller, 0)
            assert read_rest(connection) == b""
        assert finish(agent, number, pipes) == Outcome(0, b"pong", b"")


def test_a_port_that_nobody_serves_is_125(agent: Agent) -> None:
    """And the caller is told that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (agent.home / "services-2/t.Closed").symlink_to(f"/dev/tcp/127.0.0.1/{port}")
    outcome = agent.call("t.Closed+")
    assert outcome.code == 125
    assert b"connection refused" in outcome.stderr


@pytest.mark.parametrize(
    ("link", "argument"),
    [
        ("/dev/tcp/127.0.0.1/80", "80"),
        ("/dev/tcp/127.0.0.1", ""),
        ("/dev/tcp", "80"),
        ("/dev/tcp", "localhost+80"),
        ("/dev/tcp", "local_host+80"),
        ("/dev/tcp", "127.0.0.01+80"),
        ("/dev/tcp", "0x7f000001+80"),
        ("/dev/tcp", "127.0.0.1+080"),
        ("/dev/tcp", "127.0.0.1+" + "9" * 60_000),
        ("/dev/tcp/localhost/80", ""),
        ("/dev/tcp/../../etc/passwd", ""),
    ],
)
def test_a_host_is_a_number_and_nothing_else(agent: Agent, link: str, argument: str) -> None:
    """Names would let a caller use this qube's resolver; odd numbers mean two things (QSB-038)."""
    path = agent.home / "services-2/t.Wrong"
    path.unlink(missing_ok=True)
    path.symlink_to(link)
    outcome = agent.call(f"t.Wrong+{argument}")
    assert outcome.code == 125
    assert outcome.stdout == b""
    assert outcome.stderr.startswith(b"error: ")
    assert len(outcome.stderr) < 1025


# Settings.


def test_a_forced_user_and_sockets_exclude_each_other(agent: Agent) -> None:
    """A file that says both has a mistake in it: the call fails."""
    agent.write_service("a.Both", "#!/bin/sh\n")
    for key in ("skip-service-descriptor", "exit-on-client-eof", "exit-on-service-eof"):
        settings(agent, "a.Both", "force-user = 'root'", f"{key} = true")
        outcome = agent.call("a.Both")
        assert outcome.code == 125
        assert b"settings" in outcome.stderr


def test_settings_of_sockets_change_nothing_for_programs(agent: Agent) -> None:
    """A program is not told differently."""
    settings(agent, "a.Program", "skip-service-descriptor = true", "exit-on-client-eof = true")
    agent.write_service("a.Program", "#!/bin/sh\nread x; echo $x\n")
    assert agent.call("a.Program", stdin=b"line\n") == Outcome(0, b"line\n", b"")


def test_unreadable_settings_end_the_call(agent: Agent) -> None:
    """A trap in their place is neither waited for nor passed over."""
    agent.write_service("a.Trapped", "#!/bin/sh\n")
    os.mkfifo(agent.home / "settings/a.Trapped")
    assert agent.call("a.Trapped").code == 125


# Attacks.


def test_a_service_that_never_reads_holds_up_nobody_else(agent: Agent) -> None:
    """Its own call waits, with bounded memory; other calls go on, and the caller may leave."""
    with unix_service(agent, "a.Stuck") as server:
        pipes = Pipes.make()
        number = agent.service("a.Stuck", pipes)
        connection = server.accept()
        os.set_blocking(pipes.caller[0], False)
        # The service has a socket's buffer full of it, the call a pipe's and a chunk.
        with pytest.raises(BlockingIOError):
            write_much(pipes.caller[0], 8 * MEGABYTE)
        assert agent.shell("exit 8").code == 8
        shut(pipes.caller)
        connection.close()
        assert agent.code_of(number) == 0


def test_a_service_that_accepts_nothing_delays_its_own_call_only(agent: Agent) -> None:
    """A full queue of connections is waited for, by the caller of that service alone."""
    with unix_service(agent, "a.Full") as server:
        server.listening.listen(0)
        path = agent.home / "services-2/a.Full"
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            pipes = Pipes.make()
            number = agent.service("a.Full", pipes)
            assert agent.shell("exit 7").code == 7
            shut(pipes.caller, 0)
            server.accept().close()
            with server.accept() as connection:
                assert read_rest(connection) == b"a.Full work\0"
        assert finish(agent, number, pipes).code == 0


@pytest.mark.parametrize("character", [*"$`'\"\\;|&*?~#!(){}[]<>%^=,@:\x80\xff"])
def test_the_bytes_of_a_name_are_those_that_were_decided_on(agent: Agent, character: str) -> None:
    """QSB-038: no shell, no expansion; program and socket see what policy saw."""
    argument = f"a{character}(id){character}b"
    name = f"q{character}Name"
    agent.write_service(
        name,
        '#!/bin/sh\nprintf "%s\\n%s\\n%s\\n%s\\n" "$1" "$QREXEC_SERVICE_ARGUMENT"'
        ' "$QREXEC_SERVICE_FULL_NAME" "$#"\n',
    )
    outcome = agent.call(f"{name}+{argument}")
    expected = f"{argument}\n{argument}\n{name}+{argument}\n1\n"
    assert (outcome.code, outcome.stdout) == (0, expected.encode())
    with unix_service(agent, f"s{character}Socket") as server:
        pipes = Pipes.make()
        number = agent.service(f"s{character}Socket+{argument}", pipes)
        shut(pipes.caller, 0)
        with server.accept() as connection:
            assert read_rest(connection) == f"s{character}Socket+{argument} work\0".encode()
        assert finish(agent, number, pipes).code == 0


@pytest.mark.parametrize("descriptor", ["a.X+b c", "a.X\n", "a.X+b\tc", "a.X+../../bin/sh", "+a"])
def test_bytes_that_could_split_a_name_are_refused(agent: Agent, descriptor: str) -> None:
    """QSB-038: a blank in a name would make a second word of the descriptor."""
    agent.write_service("a.X", "#!/bin/sh\necho ran\n")
    outcome = agent.call(descriptor)
    assert (outcome.code, outcome.stdout) == (125, b"")


def test_an_empty_directory_of_the_search_path_is_not_the_root(tmp_path: Path) -> None:
    """Else `bin` would be a service."""
    command = ["env", "QREXEC_SERVICE_PATH=::", "QUBES_RPC_CONFIG_PATH="]
    with running_agent(tmp_path, wrapper=command) as agent:
        assert agent.call("bin").code == 127


# The session.


def test_calls_that_wait_for_the_session_share_one_wait(agent: Agent) -> None:
    """It is told user and caller; others do not wait for it; its status does not matter."""
    log, gate = agent.home / "session-log", agent.home / "gate"
    os.mkfifo(gate)
    agent.write_service(
        "qubes.WaitForSession",
        f'#!/bin/sh\nread user; echo "$user:$QREXEC_REMOTE_DOMAIN:$#" >>{log}\n'
        f"read x <{gate}; exit 9\n",
    )
    agent.write_service("w.Waits", "#!/bin/sh\necho started\n")
    settings(agent, "w.Waits", "wait-for-session = 1")
    calls = []
    for source in ("one", "two", "three"):
        pipes = Pipes.make()
        calls.append((agent.service("w.Waits", pipes, source=source), pipes))
        if source == "one":
            eventually(log.exists)
    agent.write_service("w.Other", "#!/bin/sh\necho at once\n")
    assert agent.call("w.Other").stdout == b"at once\n"
    eventually(lambda: _waiting(agent) == 3)
    os.set_blocking(calls[0][1].caller[1], False)
    with pytest.raises(BlockingIOError):
        os.read(calls[0][1].caller[1], 1)
    os.set_blocking(calls[0][1].caller[1], True)
    gate.write_text("go\n")
    for number, pipes in calls:
        assert finish(agent, number, pipes) == Outcome(0, b"started\n", b"")
    assert log.read_text() == f"{ME}:one:0\n"


def test_a_call_may_start_its_service_without_the_session(agent: Agent) -> None:
    """Where the admin qube said `nogui:`; whether anybody waits for the service or not."""
    asked, started = agent.home / "session-asked", agent.home / "started-alone"
    agent.write_service("qubes.WaitForSession", f"#!/bin/sh\n: >{asked}\n")
    agent.write_service("w.Without", f"#!/bin/sh\n: >{started}\necho up\n")
    settings(agent, "w.Without", "wait-for-session = true")
    assert agent.call("w.Without", flags="n") == Outcome(0, b"up\n", b"")
    started.unlink()
    assert agent.call("w.Without", flags="en") == Outcome(0, b"", b"")
    eventually(started.exists)
    assert not asked.exists()
    assert agent.shell("nogui:echo $((6 * 7))") == Outcome(0, b"42\n", b"")
    assert agent.call("w.Without") == Outcome(0, b"up\n", b"")
    assert asked.exists()


def _waiting(agent: Agent) -> int:
    """Processes that have the lock of the session open."""
    pids = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
    found = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            links = [entry.readlink().name for entry in Path(f"/proc/{pid}/fd").iterdir()]
            found += any(link.startswith("qubes-session") for link in links)
    return found


def test_a_call_whose_caller_left_does_not_wait_for_the_session(agent: Agent) -> None:
    """Callers must not fill the table of calls of a qube whose session does not come."""
    gate, begun = agent.home / "left-gate", agent.home / "left-begun"
    os.mkfifo(gate)
    agent.write_service("qubes.WaitForSession", f"#!/bin/sh\n: >{begun}; read x <{gate}\n")
    settings(agent, "w.Left", "wait-for-session = true")
    agent.write_service("w.Left", "#!/bin/sh\n")
    first, quiet, gone = Pipes.make(), Pipes.make(), Pipes.make()
    numbers = [agent.service("w.Left", first)]
    eventually(begun.exists)
    numbers += [agent.service("w.Left", pipes) for pipes in (quiet, gone)]
    eventually(lambda: _waiting(agent) == 3)
    shut(quiet.caller, 1)  # it wants no output, and is still there
    shut(gone.caller)
    assert agent.code_of(numbers[2]) == 125
    assert _waiting(agent) == 2
    gate.write_text("go\n")
    assert [agent.code_of(number) for number in numbers[:2]] == [0, 0]
    shut(first.caller)
    shut(quiet.caller)


def test_a_missing_session_service_is_not_waited_for(tmp_path: Path) -> None:
    """A qube without sessions starts its services at once."""
    with running_agent(tmp_path) as agent:
        agent.write_service("w.Alone", "#!/bin/sh\necho up\n")
        settings(agent, "w.Alone", "wait-for-session = true")
        assert agent.call("w.Alone") == Outcome(0, b"up\n", b"")


# Users.


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become other users")
@pytest.mark.parametrize(("owner", "user"), [("root", "root"), ("daemon", "daemon")])
def test_who_placed_a_socket_decides_who_connects(agent: Agent, owner: str, user: str) -> None:
    """Root's may trust its peer's word on the caller; a user's gains no more than the user has."""
    with unix_service(agent, "u.Owned") as server:
        shutil.chown(agent.home / "services-2/u.Owned", owner)
        (agent.home / "services-2/u.Owned").chmod(0o600)
        pipes = Pipes.make()
        number = agent.service("u.Owned", pipes, user="daemon")
        with server.accept() as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            assert struct.unpack("3i", credentials)[1] == pwd.getpwnam(user).pw_uid
            assert read_until(connection, b"\0") == b"u.Owned work\0"
            # What relays the bytes has no more rights than the user.
            status = Path(f"/proc/{_relay(agent)}/status").read_text().splitlines()
            (ids,) = (line.split()[1:] for line in status if line.startswith("Uid:"))
            assert set(ids) == {str(pwd.getpwnam("daemon").pw_uid)}
            shut(pipes.caller, 0)
        assert finish(agent, number, pipes).code == 0


def _relay(agent: Agent) -> str:
    """The one process of the agent that serves through a socket."""
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text()
    (pid,) = (
        pid for pid in children.split() if Path(f"/proc/{pid}/exe").readlink().name == BINARY.name
    )
    return pid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become other users")
def test_a_user_cannot_point_the_agent_at_roots_sockets(agent: Agent) -> None:
    """A link that a user placed is followed with the user's rights."""
    with unix_service(agent, "secret", where="broker") as server:
        (agent.home / "broker/secret").chmod(0o600)
        link = agent.home / "services-2/u.Link"
        link.symlink_to(agent.home / "broker/secret")
        os.chown(link, pwd.getpwnam("daemon").pw_uid, -1, follow_symlinks=False)
        outcome = agent.call("u.Link", user="daemon")
        assert (outcome.code, outcome.stdout) == (125, b"")
        assert b"permission denied" in outcome.stderr
        # Likewise where others may write to the directory: the entry may be another one by now.
        os.chown(link, 0, -1, follow_symlinks=False)
        (agent.home / "services-2").chmod(0o777)
        try:
            assert agent.call("u.Link", user="daemon").code == 125
        finally:
            (agent.home / "services-2").chmod(0o755)
        pipes = Pipes.make()
        number = agent.service("u.Link", pipes, user="daemon")
        shut(pipes.caller, 0)
        with server.accept() as connection:
            assert read_rest(connection) == b"u.Link work\0"
        assert finish(agent, number, pipes).code == 0


# Through an agent in another machine.


def test_a_socket_serves_a_call_over_the_wire() -> None:
    """Errors end at once, output with the service, and the code is 0."""
    with wire_agent() as machine, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(machine.home / "services/a.Socket"))
        listening.settimeout(PATIENCE)
        listening.listen()
        link = machine.call(f"{machine.user}:QUBESRPC a.Socket+x work name y")
        with listening.accept()[0] as connection:
            assert link.receive() == (STDERR, b"")
            link.send(STDIN, b"input")
            link.send(STDIN)
            assert connection.makefile("rb").read() == b"a.Socket+x work name y\0input"
            connection.sendall(b"output")
        assert joined(rest := link.rest(), STDOUT) == b"output"
        assert code_of(rest) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's agent starts a login shell")
def test_the_login_shell_sees_words_and_no_script() -> None:
    """QSB-038: names and arguments pass through it byte by byte."""
    with wire_agent() as machine:
        for character in "$`'\"\\;|&*?~#!(){}<>^=\xff":
            argument = f"a{character}(id){character}$HOME"
            name = f"q{character}Name"
            machine.write_service(
                name, '#!/bin/sh\nprintf "%s\\n%s\\n%s\\n" "$1" "$QREXEC_SERVICE_ARGUMENT" "$#"\n'
            )
            outcome = machine.outcome(f"root:QUBESRPC {name}+{argument} work")
            assert outcome[:2] == (0, f"{argument}\n{argument}\n1\n".encode())
        assert machine.outcome("root:QUBESRPC q.None+ work")[0] == 127
