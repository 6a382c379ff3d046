"""How the agent starts and ends services: streams, codes, environment, users."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from agent_rig import (
    ME,
    Agent,
    Pipes,
    environment,
    eventually,
    read_all,
    running_agent,
    shut,
)
from grounds.processes import alive


def test_every_exit_code_comes_back(agent: Agent) -> None:
    """0 to 255, unchanged."""
    agent.write_service("a.Exit", '#!/bin/sh\nexit "$1"\n')
    for code in range(256):
        assert agent.call(f"a.Exit+{code}").code == code


def test_a_signal_is_told_as_128_and_its_number(agent: Agent) -> None:
    """Death by a signal is no ordinary exit."""
    assert agent.shell("kill -KILL $$").code == 128 + signal.SIGKILL
    assert agent.shell("kill -TERM $$").code == 128 + signal.SIGTERM


def test_bytes_pass_both_ways_and_errors_beside(agent: Agent) -> None:
    """Stdin, stdout and stderr are three separate streams."""
    agent.write_service("a.Echo", "#!/bin/sh\necho oops >&2\nexec cat\n")
    outcome = agent.call("a.Echo", stdin=b"\0\xff line\n")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, b"\0\xff line\n", b"oops\n")


def test_environment_of_a_service(agent: Agent) -> None:
    """The table of the sheet, section 2.3, and nothing of the agent's own."""
    agent.write_service("a.Env", '#!/bin/sh\necho "$#"\nexec env\n')
    first, *lines = agent.call("a.Env+b+c", source="work").stdout.decode().splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert first == "1"
    assert found["QREXEC_SERVICE_FULL_NAME"] == "a.Env+b+c"
    assert found["QREXEC_SERVICE_ARGUMENT"] == "b+c"
    assert found["QREXEC_REMOTE_DOMAIN"] == "work"
    assert found["QREXEC_REQUESTED_TARGET_TYPE"] == ""
    assert found["QREXEC_AGENT_PID"] == str(agent.process.pid)
    assert found["QREXEC_SERVICE_PATH"] == environment(agent.home)["QREXEC_SERVICE_PATH"]
    assert found["USER"] == found["LOGNAME"] == ME
    assert found["HOME"] == str(Path(f"~{ME}").expanduser())
    assert "/usr/bin" in found["PATH"].split(":")
    assert not {name for name in found if name.startswith("CAISSON")}
    assert "QUBES_RPC_CONFIG_PATH" not in found

    first, *lines = agent.call("a.Env").stdout.decode().splitlines()
    assert first == "0"
    assert not [line for line in lines if line.startswith("QREXEC_SERVICE_ARGUMENT=")]
    first, *lines = agent.call("a.Env+").stdout.decode().splitlines()
    assert first == "0"
    assert "QREXEC_SERVICE_ARGUMENT=" in lines


def test_a_service_starts_in_a_clean_state(tmp_path: Path) -> None:
    """No inherited descriptor, no ignored or blocked signal, a session and a mask of its own."""

    def spoil() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        os.umask(0)

    leak = os.open("/", os.O_RDONLY)
    with running_agent(tmp_path, preexec_fn=spoil, pass_fds=(leak,)) as agent:
        assert f"{leak} is `/`" in agent.report["barriers"]["descriptors"]["detail"]
        status = agent.shell("grep -E '^Sig(Ign|Blk)|^Groups' /proc/self/status; umask").stdout
        assert b"SigBlk:\t0000000000000000\n" in status
        assert b"SigIgn:\t0000000000000000\n" in status
        assert status.endswith(b"0022\n")
        session = agent.shell("echo $$ $(cut -d' ' -f6 /proc/$$/stat)").stdout.split()
        assert session[0] == session[1]
    os.close(leak)


def test_a_service_inherits_no_descriptor(agent: Agent) -> None:
    """The socket to the broker, above all, stays with the agent."""
    # `ls` itself holds one descriptor, on the directory that it lists.
    listed = agent.shell("exec ls /proc/self/fd").stdout.split()
    assert listed == [b"0", b"1", b"2", b"3"]


def test_a_command_runs_in_the_login_shell_at_home(agent: Agent) -> None:
    """As a person would find it after logging in."""
    name, where = agent.shell("echo $0; pwd").stdout.decode().split()
    assert name.startswith("-")
    assert Path(where) == Path(f"~{ME}").expanduser()


def test_an_unknown_user_is_125(agent: Agent) -> None:
    """And the message shows no control characters of it."""
    outcome = agent.shell("true", user="nobody-of\x1b[2J")
    assert outcome.code == 125
    assert outcome.stderr == b"error: the called qube has no user `nobody-of\\x1b[2J`\n"


@pytest.mark.root
def test_a_service_runs_as_the_asked_user(open_agent: Agent) -> None:
    """Nothing of root is left, neither ids nor groups nor capabilities."""
    open_agent.write_service(
        "a.Who", "#!/bin/sh\nid -u; id -G; grep -E '^Cap(Prm|Eff)' /proc/self/status\n"
    )
    empty = b"0" * 16
    expected = b"1\n1\nCapPrm:\t%s\nCapEff:\t%s\n" % (empty, empty)
    assert open_agent.call("a.Who", user="daemon").stdout == expected


@pytest.mark.root
def test_settings_can_force_the_user(open_agent: Agent) -> None:
    """`force-user` beats what the broker asks for; broken settings start nothing."""
    open_agent.write_service("a.Id", "#!/bin/sh\nid -un\n")
    settings = open_agent.home / "settings"
    (settings / "a.Id").write_text("# comment\nforce-user = 'daemon'\n")
    assert open_agent.call("a.Id").stdout == b"daemon\n"
    (settings / "a.Id+x").write_text("other = 1\n")
    assert open_agent.call("a.Id+x").stdout == b"root\n"
    (settings / "a.Id+y").write_text('force-user = "root"\n')
    outcome = open_agent.call("a.Id+y")
    assert (outcome.code, outcome.stdout) == (125, b"")
    assert b"line 1" in outcome.stderr


def test_just_starting_a_service_answers_at_once(agent: Agent) -> None:
    """The caller hears 0 while the service still runs, with no pipe in its hands."""
    agent.write_service(
        "a.Long",
        f"#!/bin/sh\ncd {agent.home}\necho $$ >new\nmv new pid\nexec sleep 600\n",
    )
    assert agent.call("a.Long", flags="e").code == 0
    eventually((agent.home / "pid").exists)
    pid = int((agent.home / "pid").read_text())
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    # The agent has adopted it, and buries it.
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert agent.call("a.Missing", flags="e").code == 127


def test_the_end_of_a_service_does_not_wait_for_its_children(agent: Agent) -> None:
    """The code is told when the service ends; a grandchild may hold stdout longer."""
    pipes = Pipes.make()
    number = agent.command("cat <&0 & exit 5", pipes)
    # Background jobs read /dev/null unless told otherwise: this one holds stdout until stdin ends.
    assert agent.code_of(number) == 5
    os.write(pipes.caller[0], b"late")
    shut(pipes.caller, 0)
    assert read_all(pipes.caller[1]) == b"late"
    assert read_all(pipes.caller[2]) == b""


def test_orphans_are_reaped(agent: Agent) -> None:
    """PID 1 leaves no zombie."""
    pid = int(agent.shell("sleep 0.05 >/dev/null 2>&1 & echo $!").stdout)
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_a_large_stream_arrives_whole(agent: Agent) -> None:
    """The agent is not in the way of the data."""
    outcome = agent.shell("head -c 50000000 /dev/zero | tr '\\0' x; echo done >&2")
    assert outcome.code == 0
    assert outcome.stdout == b"x" * 50_000_000
    assert outcome.stderr == b"done\n"


def test_many_services_at_once(agent: Agent) -> None:
    """Each gets its own code, whatever order they end in."""
    agent.write_service("a.Wait", '#!/bin/sh\ncat >/dev/null\nexit "$1"\n')
    calls = []
    for code in range(200):
        pipes = Pipes.make()
        calls.append((code, agent.service(f"a.Wait+{code}", pipes), pipes))
    for _, _, pipes in reversed(calls):
        shut(pipes.caller)
    for code, number, _ in calls:
        assert agent.code_of(number) == code
