"""Whole calls between machines, calls that nobody waits for, and what services say to the log."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import struct
import subprocess
import tempfile
import tty
from pathlib import Path

from agent_rig import PATIENCE, eventually
from wire_peer import (
    CONTROL_PORT,
    EXEC_CMDLINE,
    JUST_EXEC,
    ME,
    OWN,
    PEER,
    SERVICE_CONNECT,
    STDIN,
    STDOUT,
    TERMINATED,
    TRIGGER_SERVICE4,
    Wire,
    code_of,
    forwarded,
    hello,
    ident_of,
    joined,
    message,
    numbers,
    trigger,
    wire_agent,
)


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
