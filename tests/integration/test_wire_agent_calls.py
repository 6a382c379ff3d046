"""Whole calls between machines, calls that nobody waits for, and what services say to the log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from agent_rig import PATIENCE, eventually
from wire_peer import (
    EXEC_CMDLINE,
    JUST_EXEC,
    ME,
    OWN,
    SERVICE_CONNECT,
    TERMINATED,
    code_of,
    forwarded,
    ident_of,
    numbers,
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
            assert b"the called qube has no service `a.Missing`" in log.recv(4096)


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
