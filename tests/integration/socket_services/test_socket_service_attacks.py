"""Services and callers that hold up others, names that say too much, sockets of other users."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import struct
from pathlib import Path

import pytest
from agent_rig import BINARY, Agent, Pipes, running_agent, shut
from socket_rig import read_rest, read_until, unix_service

MEGABYTE = 1 << 20


def write_much(descriptor: int, most: int) -> None:
    """Write until it fails, or so much."""
    while most > 0:
        most -= os.write(descriptor, b"x" * 65536)


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
        assert agent.outcome(number, pipes).code == 0


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
        assert agent.outcome(number, pipes).code == 0


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
        assert agent.outcome(number, pipes).code == 0


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
        assert agent.outcome(number, pipes).code == 0
