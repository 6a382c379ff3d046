"""The agent over its control stream: handshake, requests of clients, ends, limits."""

from __future__ import annotations

import contextlib
import os
import pty
import pwd
import resource
import select
import signal
import socket
import struct
import subprocess
import tempfile
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE, eventually
from wire_peer import (
    CONTROL_PORT,
    EXEC_CMDLINE,
    HELLO,
    JUST_EXEC,
    OWN,
    PEER,
    SERVICE_CONNECT,
    SERVICE_REFUSED,
    STDIN,
    STDOUT,
    TERMINATED,
    TRIGGER_SERVICE,
    TRIGGER_SERVICE3,
    TRIGGER_SERVICE4,
    Wire,
    WireAgent,
    code_of,
    descriptors_of,
    hello,
    joined,
    message,
    numbers,
    own_name,
    trigger,
    wire_agent,
)

ME = own_name(os.geteuid())


@pytest.fixture(scope="module")
def shared() -> Iterator[WireAgent]:
    """An agent for all tests that leave it as it was."""
    with wire_agent() as agent:
        yield agent


def ident_of(body: bytes) -> bytes:
    """What the agent calls a client, by its trigger of protocol 4."""
    return body[128:160]


def forwarded(agent: WireAgent) -> bytes:
    """The body of the trigger that comes next."""
    kind, body = agent.daemon.receive()
    assert kind == TRIGGER_SERVICE4
    return body


# Handshake.


def test_agent_speaks_first_and_takes_the_lower_version() -> None:
    """The bytes of the sheet, and a daemon that echoes a version from the future."""
    with wire_agent(connect=False) as agent:
        daemon = agent.streams.connect(OWN, 0, CONTROL_PORT)
        assert daemon.exactly(12) == bytes.fromhex("00030000 04000000 04000000")
        daemon.raw(hello(99))
        agent.daemon = daemon
        agent.closing.append(daemon)
        assert agent.outcome(agent.script("exit 4"))[0] == 4


@pytest.mark.parametrize(
    "wrong",
    [
        message(HELLO, b"\4\0\0"),
        message(HELLO, b"\4\0\0\0\0"),
        message(HELLO),
        message(EXEC_CMDLINE, b"\4\0\0\0"),
        hello(1),
        hello(0),
    ],
)
def test_a_wrong_hello_ends_the_agent(wrong: bytes) -> None:
    """With code 1, and without its socket left behind."""
    with wire_agent(connect=False) as agent:
        daemon = agent.streams.connect(OWN, 0, CONTROL_PORT)
        agent.closing.append(daemon)
        daemon.raw(wrong)
        assert agent.process.wait(PATIENCE) == 1
        assert not agent.trigger_socket.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        message(0x999),
        message(TRIGGER_SERVICE4, b"x" * 200),
        message(HELLO, b"\4\0\0\0"),
        message(STDIN, b"x"),
        message(EXEC_CMDLINE, b"x" * 7),
        message(EXEC_CMDLINE, b"x" * 8),
        struct.pack("<II", EXEC_CMDLINE, 65_536),
        struct.pack("<II", EXEC_CMDLINE, 0xFFFF_FFFF),
        message(SERVICE_CONNECT, b"x" * 8),
        message(SERVICE_REFUSED, b"x" * 31),
        message(SERVICE_REFUSED, b"x" * 33),
        message(SERVICE_REFUSED),
    ],
)
def test_a_daemon_that_breaks_the_protocol_ends_the_agent(wrong: bytes) -> None:
    """QSB-089: a length that no message has is refused before its body; the code is 1."""
    with wire_agent() as agent:
        agent.daemon.raw(wrong)
        assert agent.process.wait(PATIENCE) == 1


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


def test_ready_is_told_once_the_daemon_is_there(tmp_path: Path) -> None:
    """To the socket of the service manager, not earlier."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(str(tmp_path / "notify"))
        with wire_agent(connect=False, NOTIFY_SOCKET=str(tmp_path / "notify")) as agent:
            daemon = agent.streams.connect(OWN, 0, CONTROL_PORT)
            agent.closing.append(daemon)
            daemon.receive()
            assert select.select([manager], [], [], 0)[0] == []
            daemon.raw(hello())
            assert manager.recv(64) == b"READY=1"


def test_agent_waits_anew_when_the_daemon_is_gone() -> None:
    """Clients whose call nobody decides any more are refused; running calls go on."""
    with wire_agent() as agent:
        running = agent.call(agent.script("cat; exit 6"))
        asking = agent.ask(trigger(b"a.B"))
        forwarded(agent)
        agent.daemon.close()
        assert asking.is_gone()
        agent.connect_daemon()
        running.send(STDIN)
        assert code_of(running.rest()) == 6
        # The port is freed with the new connection.
        assert agent.daemon.receive() == (TERMINATED, numbers(PEER, agent.port))


def test_sigterm_ends_the_agent_in_order() -> None:
    """Code 0, no socket left, although the daemon takes nothing and clients keep asking."""
    with wire_agent() as agent:
        big = trigger(b"a.B+" + b"x" * 60_000)
        for _ in range(40):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect(str(agent.trigger_socket))
            with contextlib.suppress(BlockingIOError):
                client.send(big)
            agent.closing.append(client)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(PATIENCE) == 0
        assert not agent.trigger_socket.exists()


def test_clients_that_leave_while_the_daemon_is_stuck_are_let_go() -> None:
    """No descriptor stays behind, and what they had asked is not asked for them any more."""
    with wire_agent() as agent:
        before = descriptors_of(agent.process.pid)
        clients = []
        for _ in range(60):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect(str(agent.trigger_socket))
            with contextlib.suppress(BlockingIOError):
                client.send(trigger(b"a.B+" + b"x" * 60_000))
            clients.append(client)
        # The daemon is behind once the agent stops to take clients.
        eventually(lambda: descriptors_of(agent.process.pid) > before + 4)
        for client in clients:
            client.close()
        eventually(lambda: descriptors_of(agent.process.pid) <= before)
        assert agent.process.poll() is None


@pytest.mark.parametrize("option", ["-h", "--help", "--no-such", "operand"])
def test_usage_is_code_2(option: str) -> None:
    """As the sheet says, for help too."""
    done = subprocess.run([BINARY, option], check=False, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr


# Requests of clients.


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


# Many at once.


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


# Users.


@pytest.mark.root
def test_root_serves_every_user() -> None:
    """With nothing of root left; an unknown user is 125."""
    nobody = pwd.getpwnam("nobody")
    with wire_agent() as agent:
        agent.write_service("a.Who", "#!/bin/sh\nid -un; id -G\n")
        code, out, _ = agent.outcome("nobody:QUBESRPC a.Who work")
        assert (code, out) == (0, b"nobody\n%d\n" % nobody.pw_gid)
        code, out, err = agent.outcome("nosuch-user:QUBESRPC a.Who work")
        assert (code, out) == (125, b"")
        assert b"nosuch-user" in err


@pytest.mark.root
def test_an_ordinary_agent_serves_its_own_user_only() -> None:
    """Any other user is 125."""
    nobody = pwd.getpwnam("nobody")
    wrapper = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    with wire_agent(wrapper=wrapper) as agent:
        agent.write_service("a.Who", "#!/bin/sh\nid -un\n")
        assert agent.outcome("nobody:QUBESRPC a.Who work")[:2] == (0, b"nobody\n")
        assert agent.outcome("root:QUBESRPC a.Who work")[:2] == (125, b"")
        # Whatever the user's login shell is, and without a profile.
        assert agent.outcome("nobody:echo $0 $-x; id -un")[1].split() == [
            b"/bin/sh",
            b"x",
            b"nobody",
        ]


@pytest.mark.root
def test_the_first_call_wakes_the_reporter_of_memory() -> None:
    """Once: the process that its file names gets SIGUSR1."""
    sleeper = subprocess.Popen(["sleep", "600"])
    # The file lies in a `/run` that only this agent sees.
    apart = f'mount -t tmpfs none /run && echo {sleeper.pid} >/run/meminfo-writer.pid && exec "$@"'
    try:
        with wire_agent(wrapper=("unshare", "-m", "sh", "-c", apart, "sh")) as agent:
            assert sleeper.poll() is None
            assert agent.outcome(agent.script("exit 0"))[0] == 0
            assert sleeper.wait(PATIENCE) == -signal.SIGUSR1
    finally:
        sleeper.kill()
        sleeper.wait()


# Session servers.


def test_a_session_server_serves_its_users_calls() -> None:
    """It gets 16 bytes and the command without its user; its hanging up ends the call."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        agent = stack.enter_context(wire_agent("--with-fork-server", "-s", f"{directory}/%s.sock"))
        path = Path(directory) / f"{ME}.sock"
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.settimeout(PATIENCE)
        listener.bind(str(path))
        listener.listen()
        port = agent.next_port()
        agent.daemon.send(EXEC_CMDLINE, numbers(PEER, port) + f"{ME}:echo x\0".encode())
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(PATIENCE)
        expected = struct.pack("<iiiI", EXEC_CMDLINE, PEER, port, 7) + b"echo x\0"
        assert server.recv(len(expected), socket.MSG_WAITALL) == expected
        server.close()
        assert agent.daemon.receive() == (TERMINATED, numbers(PEER, port))
        # Not wanted: by the command, or by the settings of a socket service.
        assert agent.outcome(agent.script("exit 9").replace(":", ":nogui:", 1))[0] == 9
        agent.write_service("a.Skip", "#!/bin/sh\nexit 8\n")
        (agent.home / "settings/a.Skip").write_text("skip-service-descriptor = true\n")
        assert agent.outcome(f"{ME}:QUBESRPC a.Skip work")[0] == 8


def test_a_call_may_start_its_service_without_the_session(tmp_path: Path) -> None:
    """With `nogui:` in its command, whatever the settings of the service say."""
    with wire_agent(CAISSON_SESSION_LOCKS=str(tmp_path)) as agent:
        asked = tmp_path / "asked"
        agent.write_service("qubes.WaitForSession", f"#!/bin/sh\n: >{asked}\n")
        agent.write_service("a.Without", "#!/bin/sh\nexit 6\n")
        (agent.home / "settings/a.Without").write_text("wait-for-session = true\n")
        assert agent.outcome(f"{ME}:nogui:QUBESRPC a.Without work")[0] == 6
        assert not asked.exists()
        assert agent.outcome(f"{ME}:QUBESRPC a.Without work")[0] == 6
        assert asked.exists()


def test_a_session_is_waited_for_before_its_server_is_looked_for() -> None:
    """Where the service's settings say so: the server comes with the session."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        options = ("--with-fork-server", "-s", f"{directory}/%s.sock")
        agent = stack.enter_context(wire_agent(*options, CAISSON_SESSION_LOCKS=directory))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.settimeout(PATIENCE)
        listener.bind(f"{directory}/not-yet")
        listener.listen()
        appear = f'#!/bin/sh\nread user && mv {directory}/not-yet "{directory}/$user.sock"\n'
        agent.write_service("qubes.WaitForSession", appear)
        (agent.home / "settings/a.Window").write_text("wait-for-session = true\n")
        port = agent.next_port()
        line = f"{ME}:QUBESRPC a.Window work".encode()
        agent.daemon.send(EXEC_CMDLINE, numbers(PEER, port) + line + b"\0")
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(PATIENCE)
        assert server.recv(1024).endswith(b"QUBESRPC a.Window work\0")
        server.close()
        assert agent.daemon.receive() == (TERMINATED, numbers(PEER, port))


@pytest.mark.root
def test_a_session_server_of_somebody_else_is_not_used() -> None:
    """Who can name a socket after another user does not get that user's calls."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/daemon.sock")
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        with wire_agent("--with-fork-server", "-s", f"{directory}/%s.sock") as agent:
            agent.write_service("a.Who", "#!/bin/sh\nid -un\n")
            assert agent.outcome("daemon:QUBESRPC a.Who work")[:2] == (0, b"daemon\n")


def test_just_exec_says_only_its_code() -> None:
    """0 when the service runs, 127 when there is none, 125 for no call; its end is not awaited."""
    with wire_agent() as agent:
        agent.write_service("a.Long", f"#!/bin/sh\necho $$ >{agent.home}/pid\nexec sleep 600\n")
        found = agent.call(f"{ME}:QUBESRPC a.Long work", kind=JUST_EXEC).rest()
        assert (len(found), code_of(found)) == (1, 0)
        eventually(lambda: (agent.home / "pid").exists() and (agent.home / "pid").read_text() != "")
        os.kill(int((agent.home / "pid").read_text()), signal.SIGKILL)
        found = agent.call(f"{ME}:QUBESRPC a.Missing work", kind=JUST_EXEC).rest()
        assert (len(found), code_of(found)) == (1, 127)
        found = agent.call(f"{ME}:QUBESRPC a.Missing", kind=JUST_EXEC).rest()
        assert (len(found), code_of(found)) == (1, 125)
        assert {agent.daemon.receive()[0] for _ in range(3)} == {TERMINATED}


def test_errors_of_a_service_that_nobody_waits_for_reach_the_log(tmp_path: Path) -> None:
    """Also those after the call's end, and why a service does not start."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.settimeout(PATIENCE)
        log.bind(str(tmp_path / "log"))
        with wire_agent(CAISSON_LOG_SOCKET=str(tmp_path / "log")) as agent:
            os.mkfifo(agent.home / "go")
            text = f"echo first >&2; read x <{agent.home}/go; echo $x >&2"
            agent.write_service("a.Err", f"#!/bin/sh\n{text}\n")
            agent.call(f"{ME}:QUBESRPC a.Err work", kind=JUST_EXEC).rest()
            assert log.recv(4096) == b"<13>a.Err-work: first"
            assert agent.daemon.receive()[0] == TERMINATED
            (agent.home / "go").write_text("second\n")
            assert log.recv(4096) == b"<13>a.Err-work: second"
            agent.call(f"{ME}:QUBESRPC a.Missing work", kind=JUST_EXEC).rest()
            assert b"there is no service `a.Missing`" in log.recv(4096)


def test_calls_whose_callers_left_do_not_wait_for_a_session(tmp_path: Path) -> None:
    """A session that never comes would else collect a process for each call of another qube."""
    with wire_agent(CAISSON_SESSION_LOCKS=str(tmp_path)) as agent:
        binary = str(agent.home / "qrexec-agent")

        def processes() -> int:
            found = 0
            for entry in Path("/proc").glob("[0-9]*/exe"):
                with contextlib.suppress(OSError):
                    found += str(entry.readlink()) == binary
            return found

        started = agent.home / "started"
        agent.write_service(
            "qubes.WaitForSession", f"#!/bin/sh\necho $$ >{started}\nexec sleep 600\n"
        )
        agent.write_service("a.Waits", "#!/bin/sh\n")
        (agent.home / "settings/a.Waits").write_text("wait-for-session = true\n")
        agent.call(f"{ME}:QUBESRPC a.Waits work")
        eventually(lambda: started.exists() and started.read_text().endswith("\n"))
        try:
            # The agent; and of the first call the data process, and the one that waits.
            assert processes() == 3
            links = [agent.call(f"{ME}:QUBESRPC a.Waits work") for _ in range(5)]
            eventually(lambda: processes() == 13)
            for link in links:
                link.close()
            eventually(lambda: processes() == 3)
        finally:
            os.kill(int(started.read_text()), signal.SIGKILL)


# Whole calls.


def test_calls_between_two_machines() -> None:
    """A client of the one and a service of the other, many at once; each gets its own answer."""
    with wire_agent() as target, wire_agent(own=OWN + 1, streams=target.streams) as source:
        (source.home / "qrexec-client-vm").symlink_to("qrexec-agent")
        target.write_service("a.Echo", "#!/bin/sh\ncat; echo oops >&2; exit $1\n")
        clients = []
        for number in range(40):
            client = subprocess.Popen(
                [
                    source.home / "qrexec-client-vm",
                    f"--agent-socket={source.trigger_socket}",
                    "target",
                    f"a.Echo+{number}",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={
                    "VCHAN_DOMAIN": str(source.own),
                    "VCHAN_SOCKET_DIR": str(target.streams.directory),
                },
            )
            clients.append(client)
            body = forwarded(source)
            service = body[160:-1].decode()
            port = target.next_port()
            line = f"{target.user}:QUBESRPC {service} source\0".encode()
            target.daemon.send(EXEC_CMDLINE, numbers(source.own, port) + line)
            source.daemon.send(SERVICE_CONNECT, numbers(target.own, port) + ident_of(body))
        for number, client in enumerate(clients):
            data = b"%d " % number * 50_000
            out, err = client.communicate(data, timeout=PATIENCE)
            assert (client.returncode, out, err) == (number, data, b"oops\n")
        for agent in (source, target):
            assert {agent.daemon.receive()[0] for _ in clients} == {TERMINATED}


def test_plain_streams_in_the_place_of_named_sockets() -> None:
    """Port N is whatever lies at PREFIX.N; the machine opens it, whoever serves it comes later."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        prefix = Path(directory) / "port"

        def listen(port: int) -> socket.socket:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.settimeout(PATIENCE)
            listener.bind(f"{prefix}.{port}")
            listener.listen(1)
            return listener

        def accept(listener: socket.socket) -> Wire:
            return stack.enter_context(Wire(listener.accept()[0]))

        agent = stack.enter_context(wire_agent(connect=False, CAISSON_VCHAN_STREAMS=str(prefix)))
        agent.daemon = accept(listen(CONTROL_PORT))
        assert agent.daemon.exactly(12) == hello()
        agent.daemon.raw(hello())
        line = agent.script("exec cat").encode()
        agent.daemon.send(EXEC_CMDLINE, numbers(PEER, 514) + line + b"\0")
        link = accept(listen(514))
        assert link.greet() == 4
        link.raw(message(STDIN, b"x") + message(STDIN))
        found = link.rest()
        assert (joined(found, STDOUT), code_of(found)) == (b"x", 0)
        assert agent.daemon.receive() == (TERMINATED, numbers(PEER, 514))


def test_a_character_device_is_a_plain_stream_too() -> None:
    """As the port of a virtual machine is: no socket, and opened by us."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        master, slave = pty.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        tty.setraw(slave)
        (Path(directory) / f"port.{CONTROL_PORT}").symlink_to(os.ttyname(slave))
        prefix = f"{directory}/port"
        agent = stack.enter_context(wire_agent(connect=False, CAISSON_VCHAN_STREAMS=prefix))
        found = b""
        while len(found) < 12:
            found += os.read(master, 12)
        assert found == hello()
        os.write(master, hello())
        agent.ask(trigger(b"a.B"))
        found = b""
        while len(found) < 8 + 164:
            found += os.read(master, 4096)
        assert found[:8] == struct.pack("<II", TRIGGER_SERVICE4, 164)


def test_errors_of_services_reach_the_log_without_escapes(tmp_path: Path) -> None:
    """QSB-087: one line each, tagged with service and caller; the caller gets the raw bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.settimeout(PATIENCE)
        log.bind(str(tmp_path / "log"))
        with wire_agent(CAISSON_LOG_SOCKET=str(tmp_path / "log")) as agent:
            text = r"printf 'one\033[2Jx\ntwo\n\nrest' >&2; head -c 3000 /dev/zero >&2"
            agent.write_service("a.Err", f"#!/bin/sh\n{text}\n")
            _, _, err = agent.outcome(f"{agent.user}:QUBESRPC a.Err+c:d wo\x9brk")
            assert err == b"one\x1b[2Jx\ntwo\n\nrest" + bytes(3000)
            tag = b"<13>a.Err+c_d-wo__rk: "
            assert log.recv(4096) == tag + b"one_[2Jx"
            assert log.recv(4096) == tag + b"two"
            rest = [log.recv(4096).removeprefix(tag) for _ in range(3)]
            assert [len(line) for line in rest] == [1024, 1024, 956]
            assert b"".join(rest) == b"rest" + b"_" * 3000
