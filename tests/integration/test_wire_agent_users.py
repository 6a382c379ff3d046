"""Whom the agent serves calls as, in which session, and whom else it tells."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from agent_rig import PATIENCE, eventually
from wire_peer import EXEC_CMDLINE, ME, PEER, TERMINATED, numbers, wire_agent

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
