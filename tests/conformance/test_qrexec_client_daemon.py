"""`qrexec-client` at the socket of a qrexec-daemon: the bytes it sends, both ends, codes."""

from __future__ import annotations

import hashlib
import os
import pwd
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_rig import BINARY, PATIENCE, eventually
from daemon_peer import FakeDaemon, whole
from wire_peer import (
    EXEC_CMDLINE,
    EXIT_CODE,
    JUST_EXEC,
    SERVICE_CONNECT,
    STDERR,
    STDIN,
    STDOUT,
    Streams,
    Wire,
    hello,
    numbers,
    wire_agent,
)

WORK, VAULT = 42, 17


class Desk:
    """A directory of sockets, services of the admin qube, and the client."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "services").mkdir()
        (home / "run").mkdir()
        (home / "qrexec-client").symlink_to(BINARY)
        self.daemons: list[FakeDaemon] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def daemon(self, name: str = "work", domain: int = WORK) -> FakeDaemon:
        """A daemon of a qube."""
        daemon = FakeDaemon(self.home, name, domain)
        self.daemons.append(daemon)
        return daemon

    def service(self, name: str, text: str) -> None:
        """A service of the admin qube."""
        path = self.home / "services" / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, **popen: Any) -> subprocess.Popen[bytes]:
        """Start the client."""
        environment = {
            "PATH": os.environ["PATH"],
            "VCHAN_SOCKET_DIR": str(self.home),
            "CAISSON_ROOT": str(self.home),
            "QREXEC_SERVICE_PATH": str(self.home / "services"),
            "QUBES_RPC_CONFIG_PATH": str(self.home / "settings"),
            "CAISSON_SESSION_LOCKS": str(self.home),
        }
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [self.home / "qrexec-client", f"--socket-dir={self.home}", *arguments]
        process = subprocess.Popen(command, bufsize=0, **(options | {"env": environment} | popen))
        self.started.append(process)
        return process

    def call(
        self, *arguments: str, port: int = 513, **popen: Any
    ) -> tuple[subprocess.Popen[bytes], Wire]:
        """Start a call of `work`, and come to its data link."""
        daemon = self.daemon()
        process = self.start("-d", "work", *arguments, **popen)
        daemon.command(daemon.accept(), port)
        return process, daemon.connect(port)

    def close(self) -> None:
        """Leave nothing behind."""
        for daemon in self.daemons:
            daemon.close()
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A desk of our own."""
    with tempfile.TemporaryDirectory() as directory:
        desk = Desk(Path(directory))
        yield desk
        desk.close()


def finish(
    process: subprocess.Popen[bytes], stdin: bytes | None = None
) -> tuple[int, bytes, bytes]:
    """Wait for the client; its code, stdout and stderr."""
    stdout, stderr = process.communicate(stdin, timeout=PATIENCE)
    return process.returncode, stdout, stderr


def code(number: int) -> bytes:
    """The body of an exit code."""
    return struct.pack("<i", number)


def end(link: Wire, number: int) -> None:
    """The service ends as a process does."""
    for stream in (STDOUT, STDERR):
        link.send(stream)
    link.send(EXIT_CODE, code(number))


# From the admin qube to a qube.


def test_a_call_is_what_daemons_and_agents_read(desk: Desk) -> None:
    """The command in whole with its NUL, as from domain 0; we wait at the port that we are told."""
    daemon = desk.daemon()
    process = desk.start("-d", "work", "user:QUBESRPC a.B+c dom0")
    wire = daemon.accept()
    asked = daemon.command(wire, 515)
    assert asked == (EXEC_CMDLINE, 0, 0, b"user:QUBESRPC a.B+c dom0\0")
    link = daemon.connect(515)
    assert process.stdin is not None
    process.stdin.write(b"question")
    process.stdin.close()
    process.stdin = None
    assert whole(link, STDIN) == b"question"
    link.send(STDOUT, b"answer")
    link.send(STDERR, b"remark")
    end(link, 7)
    assert finish(process) == (7, b"answer", b"remark")
    # The daemon keeps the port until we are gone.
    assert wire.is_gone()


def test_codes_come_back_and_can_be_hidden(desk: Desk) -> None:
    """The low eight bits; `-E` makes all of them 0."""
    for given, options, expected in ((300, [], 44), (3, ["-E"], 0), (-1, [], 255)):
        process, link = desk.call(*options, "user:false", stdin=subprocess.DEVNULL)
        end(link, given)
        assert finish(process)[0] == expected
        desk.daemons.pop().close()


def test_a_qube_with_a_daemon_is_found_without_options(desk: Desk) -> None:
    """Below the root, where daemons have their sockets."""
    (desk.home / "run/qubes").mkdir()
    daemon = FakeDaemon(desk.home / "run/qubes", "work", WORK)
    desk.daemons.append(daemon)
    process = subprocess.Popen(
        [desk.home / "qrexec-client", "-d", "work", "user:true"],
        env={"CAISSON_ROOT": str(desk.home), "VCHAN_SOCKET_DIR": str(desk.home)},
        stdin=subprocess.DEVNULL,
    )
    desk.started.append(process)
    daemon.command(daemon.accept(), 513)
    daemon.streams = Streams(desk.home)
    end(daemon.connect(513), 4)
    assert process.wait(timeout=PATIENCE) == 4


def test_just_exec_waits_for_the_code_alone(desk: Desk) -> None:
    """JUST_EXEC on the wire; our input is not sent."""
    daemon = desk.daemon()
    process = desk.start("-e", "-d", "work", "user:QUBESRPC a.B dom0")
    assert daemon.command(daemon.accept(), 513)[0] == JUST_EXEC
    link = daemon.connect(513)
    assert whole(link, STDIN) == b""
    link.send(EXIT_CODE, code(127))
    assert process.wait(timeout=PATIENCE) == 127


def test_output_is_filtered_on_request(desk: Desk) -> None:
    """Off by default; `-t` for stdout, `-T` for stderr."""
    hostile, harmless = b"a\x1b[2J\xc3\n", b"a_[2J_\n"
    for options, stdout, stderr in (
        ([], hostile, hostile),
        (["-t"], harmless, hostile),
        (["-T"], hostile, harmless),
    ):
        process, link = desk.call(*options, "user:x", stdin=subprocess.DEVNULL)
        link.send(STDOUT, hostile)
        link.send(STDERR, hostile)
        end(link, 0)
        assert finish(process) == (0, stdout, stderr)
        desk.daemons.pop().close()


def test_data_before_stdin(desk: Desk) -> None:
    """`-p`, in messages of the size that was agreed on."""
    process, link = desk.call("-p", "first " * 20_000, "user:x")
    assert process.stdin is not None
    process.stdin.write(b"second")
    process.stdin.close()
    process.stdin = None
    assert whole(link, STDIN) == b"first " * 20_000 + b"second"
    end(link, 0)
    assert process.wait(timeout=PATIENCE) == 0


def test_an_old_peer_gets_small_messages(desk: Desk) -> None:
    """Version 2 takes 4096 bytes at once."""
    daemon = desk.daemon()
    process = desk.start("-d", "work", "-p", "x" * 10_000, "user:x", stdin=subprocess.DEVNULL)
    daemon.command(daemon.accept(), 513)
    link = daemon.connect(513, version=2)
    sizes = []
    while body := link.receive()[1]:
        sizes.append(len(body))
    assert (sum(sizes), max(sizes)) == (10_000, 4096)
    end(link, 0)
    assert process.wait(timeout=PATIENCE) == 0


def test_a_local_command_speaks_with_the_remote_one(desk: Desk) -> None:
    """`-l`: a line for the shell; the remote code counts first, then the local one."""
    line = 'echo "to there"; read x; echo "got $x" >&2; exit 6'
    for remote, expected in ((0, 6), (5, 5)):
        process, link = desk.call("-l", line, "user:x", stdin=subprocess.DEVNULL)
        assert link.receive() == (STDIN, b"to there\n")
        link.send(STDOUT, b"answer\n")
        assert whole(link, STDIN) == b""
        end(link, remote)
        assert finish(process) == (expected, b"", b"got answer\n")
        desk.daemons.pop().close()


def test_a_local_service_speaks_with_the_remote_one(desk: Desk) -> None:
    """`-l QUBESRPC …` starts a service of the admin qube."""
    desk.service("a.Local", '#!/bin/sh\necho "$1 $QREXEC_REMOTE_DOMAIN"; exec cat >&2\n')
    process, link = desk.call("-l", "QUBESRPC a.Local+x work", "user:x", stdin=subprocess.DEVNULL)
    assert whole(link, STDIN) == b"x work\n"
    link.send(STDOUT, b"said")
    end(link, 0)
    assert finish(process) == (0, b"", b"said")


def test_stdin_may_be_a_socket_for_both_ways(desk: Desk) -> None:
    """As a service manager hands it over."""
    ours, theirs = socket.socketpair()
    process, link = desk.call("--use-stdin-socket", "user:x", stdin=theirs)
    theirs.close()
    ours.sendall(b"in")
    ours.shutdown(socket.SHUT_WR)
    assert whole(link, STDIN) == b"in"
    link.send(STDOUT, b"out")
    end(link, 0)
    assert ours.recv(10) == b"out"
    assert process.wait(timeout=PATIENCE) == 0
    ours.close()


def test_a_link_that_breaks_is_255(desk: Desk) -> None:
    """What came before is delivered."""
    process, link = desk.call("user:x", stdin=subprocess.DEVNULL)
    link.send(STDOUT, b"half")
    link.close()
    assert finish(process)[:2] == (255, b"half")


def test_a_qube_that_does_not_come_is_not_waited_for(desk: Desk) -> None:
    """`-w 1`: one second; nothing is left behind."""
    daemon = desk.daemon()
    process = desk.start("-w", "1", "-d", "work", "user:x")
    daemon.command(daemon.accept(), 513)
    result, _, stderr = finish(process)
    assert (result, stderr) == (1, b"error: the qube does not connect: timed out\n")
    assert not list(desk.home.glob("vchan.*"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"x",
        hello(2),
        hello(3) + b"\0" * 8,
        hello(3) + struct.pack("<IIII", EXEC_CMDLINE, 8, WORK, 512),
        hello(3) + struct.pack("<IIII", EXEC_CMDLINE, 8, WORK, 769),
        hello(3) + struct.pack("<IIII", JUST_EXEC, 8, WORK, 513),
        hello(3) + struct.pack("<IIIII", EXEC_CMDLINE, 12, WORK, 513, 0),
        hello(3) + struct.pack("<II", EXEC_CMDLINE, 0xFFFFFFFF),
    ],
    ids=lambda answer: answer.hex() or "nothing",
)
def test_a_daemon_that_makes_no_sense_is_a_failure(desk: Desk, answer: bytes) -> None:
    """Nothing is connected, and the reason is named."""
    daemon = desk.daemon()
    process = desk.start("-d", "work", "user:x")
    wire = daemon.accept_silently()
    wire.socket.sendall(answer)
    wire.socket.shutdown(socket.SHUT_WR)
    result, stdout, stderr = finish(process)
    assert (result, stdout) == (1, b"")
    assert stderr.startswith(b"error: the daemon")


def test_a_missing_daemon_is_a_failure(desk: Desk) -> None:
    """Where the directory was named, the broker is no substitute."""
    result, _, stderr = finish(desk.start("-d", "nosuch", "user:x"))
    assert result == 1
    assert f"`{desk.home}/qrexec.nosuch`: no such file".encode() in stderr


# Answers to triggers.


def test_two_qubes_are_brought_together(desk: Desk) -> None:
    """The target's daemon allots the port, the source's hears of it, and we leave."""
    work, vault = desk.daemon(), desk.daemon("vault", VAULT)
    process = desk.start("-d", "vault", "-c", "SOCKET9,work,42", "user:QUBESRPC a.B+ work")
    asked = vault.command(vault.accept(), 514)
    assert asked == (EXEC_CMDLINE, WORK, 0, b"user:QUBESRPC a.B+ work\0")
    expected = numbers(VAULT, 514) + b"SOCKET9".ljust(32, b"\0")
    assert work.accept().receive() == (SERVICE_CONNECT, expected)
    assert finish(process) == (0, b"", b"")


def test_the_end_of_their_call_can_be_waited_for(desk: Desk) -> None:
    """`-W`: until the target's daemon closes our connection."""
    work, vault = desk.daemon(), desk.daemon("vault", VAULT)
    process = desk.start("-W", "-d", "vault", "-c", "SOCKET9,work,42", "user:x")
    wire = vault.accept()
    vault.command(wire, 514)
    work.accept().receive()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    wire.close()
    assert finish(process)[0] == 0


def test_qubes_that_cannot_be_brought_together_are_137(desk: Desk) -> None:
    """Whichever daemon is missing."""
    arguments = ("-d", "vault", "-c", "SOCKET9,work,42", "user:x")
    assert finish(desk.start(*arguments))[0] == 137
    vault = desk.daemon("vault", VAULT)
    process = desk.start(*arguments)
    vault.command(vault.accept(), 514)
    assert finish(process)[0] == 137


def serve(desk: Desk, command: str, port: int = 513) -> tuple[subprocess.Popen[bytes], Wire]:
    """A trigger of `work` for the admin qube, served; the machine's end of the link."""
    work = desk.daemon()
    listening = work.listen(port)
    process = desk.start("-d", "dom0", "-c", "SOCKET9,work,42", command)
    wire = work.accept()
    expected = bytes(8) + b"SOCKET9".ljust(32, b"\0")
    assert wire.receive() == (SERVICE_CONNECT, expected)
    wire.send(SERVICE_CONNECT, numbers(WORK, port))
    link = Wire(listening.accept()[0])
    assert link.greet(4) == 4
    return process, link


@pytest.mark.parametrize("user", ["", "DEFAULT:"])
def test_the_admin_qube_serves_a_trigger(desk: Desk, user: str) -> None:
    """Its service sees the caller and the target; its errors stay in the admin qube."""
    desk.service(
        "a.Serve",
        "#!/bin/sh\n"
        'echo "$1 $QREXEC_REMOTE_DOMAIN $QREXEC_REQUESTED_TARGET_KEYWORD"\n'
        "cat; echo log >&2; exit 3\n",
    )
    process, link = serve(desk, f"{user}QUBESRPC a.Serve+arg work keyword adminvm")
    assert link.receive() == (STDERR, b"")
    link.send(STDIN, b"input")
    link.send(STDIN)
    assert whole(link, STDOUT) == b"arg work adminvm\ninput"
    assert link.receive() == (EXIT_CODE, code(3))
    link.close()
    assert finish(process) == (3, b"", b"log\n")


def test_a_service_of_the_admin_qube_has_the_signals_of_any_program(desk: Desk) -> None:
    """None is held back, and a pipe that breaks ends it."""
    desk.service("a.Signals", "#!/bin/sh\nexec grep -E '^Sig(Ign|Blk):' /proc/self/status\n")
    process, link = serve(desk, "QUBESRPC a.Signals+ work name dom0")
    assert link.receive() == (STDERR, b"")
    _, blocked, _, ignored = whole(link, STDOUT).split()
    assert int(blocked, 16) == 0
    assert not int(ignored, 16) & 1 << signal.SIGPIPE - 1
    assert link.receive() == (EXIT_CODE, code(0))
    link.close()
    assert finish(process)[0] == 0


@pytest.mark.root
def test_a_service_for_a_named_user_gains_no_rights(desk: Desk) -> None:
    """It is that user's alone, and no program that it runs makes it more."""
    desk.home.chmod(0o755)
    desk.service("a.Who", "#!/bin/sh\nid -u; grep NoNewPrivs /proc/self/status\n")
    process, link = serve(desk, "nobody:QUBESRPC a.Who+ work name dom0")
    assert link.receive() == (STDERR, b"")
    uid, _, bit = whole(link, STDOUT).split()
    assert (int(uid), int(bit)) == (pwd.getpwnam("nobody").pw_uid, 1)
    assert link.receive() == (EXIT_CODE, code(0))
    link.close()
    assert finish(process)[0] == 0


def test_a_trigger_whose_caller_left_does_not_wait_for_a_session(desk: Desk) -> None:
    """A qube must not collect processes of the admin qube, whose log is open all the time."""
    begun = desk.home / "begun"
    gate = desk.home / "gate"
    os.mkfifo(gate)
    desk.service("qubes.WaitForSession", f"#!/bin/sh\n: >{begun}; read x <{gate}\n")
    desk.service("a.Waits", "#!/bin/sh\n")
    (desk.home / "settings").mkdir()
    (desk.home / "settings/a.Waits").write_text("wait-for-session = true\n")
    first, first_link = serve(desk, "QUBESRPC a.Waits+ work name dom0")
    eventually(begun.exists)
    desk.daemons.pop().close()
    second, link = serve(desk, "QUBESRPC a.Waits+ work name dom0", 514)
    assert link.receive() == (STDERR, b"")
    link.close()
    # Its standard error ends with the last of its processes.
    assert finish(second)[0] == 255
    gate.write_text("go\n")
    assert first_link.receive() == (STDERR, b"")
    assert whole(first_link, STDOUT) == b""
    assert first_link.receive() == (EXIT_CODE, code(0))
    first_link.close()
    assert finish(first)[0] == 0


def test_a_service_that_the_admin_qube_lacks_is_127(desk: Desk) -> None:
    """Errors end first, then output, then the code."""
    process, link = serve(desk, "QUBESRPC a.Missing+ work name dom0")
    assert [link.receive() for _ in range(3)] == [
        (STDERR, b""),
        (STDOUT, b""),
        (EXIT_CODE, code(127)),
    ]
    link.close()
    result, _, stderr = finish(process)
    assert (result, stderr) == (127, b"error: there is no service `a.Missing+` in this qube\n")


def test_a_socket_may_serve_a_trigger(desk: Desk) -> None:
    """It is told all that followed `QUBESRPC `."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(desk.home / "services/policy.Ask"))
        listening.listen()
        process, link = serve(desk, "QUBESRPC policy.Ask+ work name dom0")
        with listening.accept()[0] as connection:
            link.send(STDIN, b"ask")
            link.send(STDIN)
            assert connection.makefile("rb").read() == b"policy.Ask+ work name dom0\0ask"
            connection.sendall(b"deny")
        assert link.receive() == (STDERR, b"")
        assert whole(link, STDOUT) == b"deny"
        assert link.receive() == (EXIT_CODE, code(0))
        link.close()
    assert finish(process)[0] == 0


def test_a_shell_line_is_no_service_of_the_admin_qube(desk: Desk) -> None:
    """QSB-038: nothing that a qube triggered becomes a command line."""
    desk.daemon()
    for command in ("DEFAULT:touch ran", "QUBESRPC", "QUBESRPCa.B work", "root:QUBESRPC a.B"):
        result, stdout, _ = finish(desk.start("-d", "dom0", "-c", "S,work,42", command))
        assert (result, stdout) == (125, b"")


# The admin qube to itself.


def test_the_admin_qube_calls_itself_directly(desk: Desk) -> None:
    """The service takes the client's place: its streams, its code."""
    desk.service("a.Own", '#!/bin/sh\necho "$1 $QREXEC_REMOTE_DOMAIN"; cat; exit 8\n')
    for qube in ("dom0", "@adminvm", "uuid:00000000-0000-0000-0000-000000000000"):
        process = desk.start("-d", qube, "DEFAULT:QUBESRPC a.Own+x dom0")
        assert finish(process, b"in") == (8, b"x dom0\nin", b"")
    process = desk.start("-E", "-d", "dom0", "DEFAULT:QUBESRPC a.Own+x dom0")
    assert finish(process, b"in")[:2] == (0, b"x dom0\nin")


def test_services_of_the_admin_qube_lie_below_its_root(desk: Desk) -> None:
    """So do their settings: many instances live side by side."""
    for path, text in (
        ("etc/qubes-rpc/a.Root", "#!/bin/sh\necho below\n"),
        ("etc/qubes/rpc-config/a.Bad", "x\n"),
    ):
        (desk.home / path).parent.mkdir(parents=True)
        (desk.home / path).write_text(text)
    (desk.home / "etc/qubes-rpc/a.Root").chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "CAISSON_ROOT": str(desk.home)}
    for service, expected in (("a.Root", (0, b"below\n")), ("a.Bad", (125, b""))):
        process = desk.start("-d", "dom0", f"DEFAULT:QUBESRPC {service} dom0", env=environment)
        assert finish(process)[:2] == expected


def test_just_exec_in_the_admin_qube_does_not_wait(desk: Desk) -> None:
    """0 where the service has begun, 127 where there is none."""
    gate = desk.home / "gate"
    os.mkfifo(gate)
    desk.service("a.Slow", f"#!/bin/sh\nread x <{gate}; echo done >{desk.home}/done\n")
    assert finish(desk.start("-e", "-d", "dom0", "DEFAULT:QUBESRPC a.Slow dom0"))[0] == 0
    gate.write_text("go\n")
    eventually((desk.home / "done").exists)
    assert finish(desk.start("-e", "-d", "dom0", "DEFAULT:QUBESRPC a.None dom0"))[0] == 127


@pytest.mark.parametrize(
    "arguments",
    [
        ["user:QUBESRPC a.Own dom0"],
        ["QUBESRPC a.Own dom0"],
        ["DEFAULT:echo ran"],
        ["DEFAULT:nogui:QUBESRPC a.Own dom0"],
        ["DEFAULT:QUBESRPC a.Own dom0 name"],
        ["DEFAULT:QUBESRPC a.Socket dom0"],
        ["DEFAULT:QUBESRPC a.Tcp dom0"],
        ["-l", "true", "DEFAULT:QUBESRPC a.Own dom0"],
        ["-p", "x", "DEFAULT:QUBESRPC a.Own dom0"],
        ["-t", "DEFAULT:QUBESRPC a.Own dom0"],
    ],
)
def test_what_the_admin_qube_does_not_do_for_itself(desk: Desk, arguments: list[str]) -> None:
    """125, and nothing runs; a wish is never dropped silently."""
    desk.service("a.Own", "#!/bin/sh\necho ran\n")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(desk.home / "services/a.Socket"))
        listening.listen()
        (desk.home / "services/a.Tcp").symlink_to("/dev/tcp/127.0.0.1/1")
        result, stdout, stderr = finish(desk.start("-d", "dom0", *arguments))
    assert (result, stdout) == (125, b"")
    assert stderr.startswith(b"error: ")


# The end of the qube.


def test_the_qube_is_killed_at_the_end(desk: Desk) -> None:
    """`-k`: after the call, by qubesd, and a qube that is gone already is no error."""
    answers = [b"0\0", b"2\0QubesVMNotStartedError\0\0not started\0", b"2\0QubesException\0\0no\0"]
    with socket.socket(socket.AF_UNIX) as qubesd:
        qubesd.bind(str(desk.home / "run/qubesd.sock"))
        qubesd.listen()
        qubesd.settimeout(PATIENCE)
        for answer in answers:
            process, link = desk.call("-k", "user:x", stdin=subprocess.DEVNULL)
            end(link, 5)
            with qubesd.accept()[0] as connection:
                assert connection.makefile("rb").read() == b"admin.vm.Kill dom0 name work\0"
                connection.sendall(answer)
            result, _, stderr = finish(process)
            assert result == 5
            assert (b"does not kill `work`: QubesException" in stderr) == (answer is answers[2])
            desk.daemons.pop().close()


def test_a_client_that_is_ended_lets_the_qube_know(desk: Desk) -> None:
    """SIGTERM closes the data link and the daemon's socket."""
    process, link = desk.call("-p", "x", "user:x")
    assert link.receive() == (STDIN, b"x")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) != 0
    assert link.is_gone()


# The real agent at the other end.


def test_the_real_agent_serves_what_the_client_asks(desk: Desk) -> None:
    """Client, a daemon's part, agent, service and back: bytes, errors and codes."""
    data = os.urandom(1 << 20) * 3
    with wire_agent(own=WORK, streams=Streams(desk.home)) as agent:
        agent.write_service("a.Sum", '#!/bin/sh\nsha256sum; echo "$1" >&2; exit 17\n')
        daemon = desk.daemon()
        outcomes = []
        for at, (options, service) in enumerate(
            [((), "a.Sum+arg"), ((), "a.Missing+"), (("-e",), "a.Sum+")]
        ):
            command = f"{agent.user}:QUBESRPC {service} dom0"
            process = desk.start(*options, "-d", "work", command)
            kind, _, _, line = daemon.command(daemon.accept(), 513 + at)
            agent.daemon.send(kind, numbers(0, 513 + at) + line)
            outcomes.append(finish(process, data))
        assert outcomes == [
            (17, f"{hashlib.sha256(data).hexdigest()}  -\n".encode(), b"arg\n"),
            (127, b"", b"error: there is no service `a.Missing+` in this qube\n"),
            (0, b"", b""),
        ]
