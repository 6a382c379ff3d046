"""The agent on the wire: what it answers to the broker, and how it starts and ends services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import (
    BINARY,
    LONGEST,
    ME,
    PATIENCE,
    Agent,
    Listener,
    Pipes,
    environment,
    eventually,
    lay_out,
    read_all,
    running_agent,
    shut,
)

from caisson.engines.barriers import BARRIERS
from caisson.qrexec.wire import Hello, parse_client

ROOT = os.geteuid() == 0


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An admitted agent."""
    with running_agent(tmp_path) as agent:
        yield agent


@pytest.fixture
def open_agent() -> Iterator[Agent]:
    """An agent in a directory that other users may enter."""
    with tempfile.TemporaryDirectory() as directory, running_agent(Path(directory)) as agent:
        yield agent


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_hello_names_every_barrier_once(tmp_path: Path) -> None:
    """The report holds exactly the agreed barriers, and the broker's own parser takes it."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        datagram = listener.accept().receive()
    finally:
        process.kill()
        process.wait()
        listener.close()
    assert isinstance(parse_client(datagram), Hello)
    report = json.loads(datagram.split(b"\0", 1)[1])
    assert set(report["barriers"]) == BARRIERS
    assert report["version"]
    # Outside a qube there is no wall to be proud of.
    assert report["barriers"]["pid-namespace"]["up"] is False
    assert report["barriers"]["agent-read-only"]["up"] is False


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


def test_a_missing_service_is_127_and_says_so(agent: Agent) -> None:
    """The caller can tell a missing service from a refusal."""
    outcome = agent.call("a.Missing+x")
    assert outcome.code == 127
    assert outcome.stderr == b"error: the called qube has no service `a.Missing+x`\n"


def test_a_service_that_cannot_be_started_is_125(agent: Agent) -> None:
    """Found but unusable ends the search: a later directory is not tried."""
    (agent.home / "services-1/a.Directory").mkdir()
    os.mkfifo(agent.home / "services-1/a.Fifo")
    (agent.home / "file").touch()
    (agent.home / "services-1/a.Through").symlink_to(agent.home / "file/below")
    (agent.home / "services-1/a.Loop").symlink_to("a.Loop")
    for name in ("a.Directory", "a.Fifo", "a.Through", "a.Loop"):
        agent.write_service(name, "#!/bin/sh\nexit 0\n")
        outcome = agent.call(name)
        assert outcome.code == 125, name
        assert outcome.stderr.strip(), name
    agent.write_service("a.NotExecutable", "#!/bin/sh\nexit 0\n", mode=0o644)
    assert agent.call("a.NotExecutable").code == 125


def test_a_dangling_link_counts_as_absent(agent: Agent) -> None:
    """The search goes on behind it."""
    (agent.home / "services-1/a.Dangling").symlink_to(agent.home / "nowhere")
    assert agent.call("a.Dangling").code == 127
    agent.write_service("a.Dangling", "#!/bin/sh\nexit 3\n")
    assert agent.call("a.Dangling").code == 3


def test_a_missing_interpreter_is_127(agent: Agent) -> None:
    """The file is there, but what should run it is not."""
    agent.write_service("a.Script", "#!/nonexistent\n")
    assert agent.call("a.Script").code == 127


def test_the_service_made_for_an_argument_beats_the_general_one(agent: Agent) -> None:
    """Also when the general one lies in an earlier directory."""
    agent.write_service("a.Both", "#!/bin/sh\necho general\n", where="services-1")
    agent.write_service("a.Both+x", "#!/bin/sh\necho special\n")
    agent.write_service("a.Both+", "#!/bin/sh\necho empty\n")
    assert agent.call("a.Both+x").stdout == b"special\n"
    assert agent.call("a.Both+y").stdout == b"general\n"
    assert agent.call("a.Both+").stdout == b"empty\n"
    assert agent.call("a.Both").stdout == b"empty\n"


def test_the_earlier_directory_wins(agent: Agent) -> None:
    """Of two with the same name."""
    agent.write_service("a.Twice", "#!/bin/sh\necho first\n", where="services-1")
    agent.write_service("a.Twice", "#!/bin/sh\necho second\n")
    assert agent.call("a.Twice").stdout == b"first\n"


@pytest.mark.parametrize("name", ["../file", "a/b", "+x", ".", "..", "x" * 256])
def test_a_name_never_leaves_the_directories(agent: Agent, name: str) -> None:
    """The broker checks names; the agent does not rely on it."""
    (agent.home / "file").write_text("#!/bin/sh\necho escaped\n")
    (agent.home / "file").chmod(0o755)
    outcome = agent.call(name)
    assert outcome.code == 125
    assert b"escaped" not in outcome.stdout


def test_a_line_without_interpreter_is_a_service(agent: Agent) -> None:
    """One line of shell is enough."""
    agent.write_service("a.Line", "echo $1 $QREXEC_REMOTE_DOMAIN\n")
    assert agent.call("a.Line+arg", source="shop").stdout == b"arg shop\n"


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
    assert is_alive(pid)
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


@pytest.mark.parametrize(
    "datagram",
    [
        b"Z",
        b"S",
        b"S1",
        b"Sx\0u\0s\0q\0",
        b"S1\0u\0s\0q\0\0",
        b"S1\0u\0s\0q\0x",
        b"S99999999999999999999\0u\0s\0q\0",
        b"M1\0u",
        b"W\0",
        b"\0",
        b"S" + b"\xff" * (LONGEST - 1),
        b"S" * (LONGEST + 1),
        b"M1\0u\0" + b"x" * 100_000,
    ],
    ids=lambda datagram: repr(datagram[:12]),
)
def test_a_malformed_message_changes_nothing(agent: Agent, datagram: bytes) -> None:
    """It is ignored with a line on stderr, its descriptors are closed, and work goes on."""
    read, write = os.pipe()
    agent.peer.send(datagram, (write,))
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    assert agent.process.stderr is not None
    assert b"malformed message" in agent.process.stderr.readline()
    assert agent.shell("exit 9").code == 9


def test_too_many_descriptors_are_closed(agent: Agent) -> None:
    """Only the agreed three are taken, else none."""
    read, write = os.pipe()
    number = agent.next_id()
    agent.peer.send(f"M{number}\0{ME}\0exit 1".encode(), (write,) * 20)
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    assert agent.shell("exit 9").code == 9


def test_a_service_without_pipes_gets_the_null_device(agent: Agent) -> None:
    """Missing descriptors are no reason to hand out others."""
    where = agent.home / "where"
    number = agent.next_id()
    agent.peer.send(f"M{number}\0{ME}\0readlink /proc/self/fd/0 >{where}".encode())
    assert agent.code_of(number) == 0
    assert where.read_text() == "/dev/null\n"


def test_services_outlive_a_broker(agent: Agent) -> None:
    """After the restart the agent reports anew, and the ends that happened meanwhile are told."""
    pipes = Pipes.make()
    meanwhile, later = agent.command("read x; exit 21", pipes), None
    other = Pipes.make()
    later = agent.command("read x; exit 22", other)
    agent.listener.remove()
    os.write(pipes.caller[0], b"go\n")
    assert read_all(pipes.caller[1]) == b""
    agent.listener = Listener(agent.listener.path)
    agent.admit()
    assert set(agent.report["barriers"]) == BARRIERS
    # Its own descriptors are no leak.
    assert "socket" not in agent.report["barriers"]["descriptors"]["detail"]
    assert agent.code_of(meanwhile) == 21
    os.write(other.caller[0], b"go\n")
    assert agent.code_of(later) == 22
    assert agent.shell("exit 0").code == 0


def test_the_agent_finds_a_broker_behind_a_stale_socket(agent: Agent) -> None:
    """A broker that was killed leaves its socket file; the next one replaces it."""
    for _ in range(3):
        agent.listener.close()
        agent.listener.path.unlink()
        agent.listener = Listener(agent.listener.path)
        agent.admit()
        assert agent.shell("exit 4").code == 4


def test_the_agent_waits_for_the_first_broker(tmp_path: Path) -> None:
    """Also when it is started before the socket exists."""
    lay_out(tmp_path)
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: "inotify" in " ".join(links(process.pid)))
        listener = Listener(tmp_path / "broker/qrexec")
        assert listener.accept().receive().startswith(b"H1\0")
        listener.close()
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0


def links(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_no_service_starts_before_the_admission(tmp_path: Path) -> None:
    """A qube whose barriers nobody judged runs nothing."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        peer = listener.accept()
        peer.receive()
        pipes = Pipes.make()
        peer.send(f"M1\0{ME}\0touch {tmp_path}/ran".encode(), pipes.service)
        shut(pipes.service)
        assert b"not been admitted" in read_all(pipes.caller[2])
        peer.send(b"W")
        assert peer.receive() == b"X1\x00125"
        assert not (tmp_path / "ran").exists()
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0
        listener.close()


def test_a_rejected_agent_ends(tmp_path: Path) -> None:
    """With the reason on stderr, where the engine reads it."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.PIPE)
    peer = listener.accept()
    peer.receive()
    peer.send(b"Nbarrier `seccomp` is down\x1b[2J")
    _, stderr = process.communicate(timeout=PATIENCE)
    listener.close()
    assert process.returncode == 1
    assert b"barrier `seccomp` is down\\x1b[2J" in stderr


@pytest.mark.parametrize("how", ["message", "signal"])
def test_a_shutdown_is_graceful(agent: Agent, how: str) -> None:
    """Services are asked to end, their codes are told, and the agent leaves with 0."""
    pipes = Pipes.make()
    number = agent.command("trap 'exit 33' TERM; echo up; while :; do sleep 0.01; done", pipes)
    assert os.read(pipes.caller[1], 3) == b"up\n"
    if how == "message":
        agent.peer.send(b"Q")
    else:
        agent.process.terminate()
    assert agent.code_of(number) == 33
    assert agent.process.wait(timeout=PATIENCE) == 0
    shut(pipes.caller)


def test_nothing_new_starts_during_a_shutdown(agent: Agent) -> None:
    """And what does not want to end is killed after a while."""
    pipes = Pipes.make()
    agent.command("trap '' TERM; echo $$; while :; do sleep 0.1; done", pipes)
    pid = int(os.read(pipes.caller[1], 20))
    started = time.monotonic()
    agent.peer.send(b"Q")
    outcome = agent.shell("true")
    assert (outcome.code, outcome.stderr) == (125, b"error: this qube is shutting down\n")
    assert agent.process.wait(timeout=PATIENCE) == 0
    assert time.monotonic() - started > 4  # the grace that it was given
    eventually(lambda: not is_alive(pid))
    shut(pipes.caller)


def test_an_idle_agent_is_small(agent: Agent) -> None:
    """At most 1 MiB of its own, all its life."""
    agent.write_service("a.True", "#!/bin/sh\n")
    for _ in range(50):
        agent.call("a.True")
    rollup = Path(f"/proc/{agent.process.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss <= 1024  # KiB


def test_an_agent_leaks_no_descriptor(agent: Agent) -> None:
    """What calls leave behind would end the qube after some thousand of them."""
    agent.write_service("a.True", "#!/bin/sh\n")
    agent.call("a.True")
    before = len(links(agent.process.pid))
    agent.write_service("a.True", "#!/bin/sh\n")
    for _ in range(50):
        agent.call("a.True")
        agent.call("a.Missing")
    agent.listener.remove()
    agent.listener = Listener(agent.listener.path)
    agent.admit()
    agent.call("a.True")
    assert len(links(agent.process.pid)) <= before


def test_a_broker_that_hangs_up_at_once_is_not_hammered(tmp_path: Path) -> None:
    """Reports cost time: between two there is a pause until one was admitted."""
    lay_out(tmp_path)
    listener = Listener(tmp_path / "broker/qrexec")
    process = subprocess.Popen([BINARY], env=environment(tmp_path), stderr=subprocess.DEVNULL)
    try:
        started = time.monotonic()
        for _ in range(4):
            listener.accept().close()
        assert time.monotonic() - started > 0.3  # three pauses of 0.2 s, less jitter
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0
        listener.close()


def test_a_long_socket_path_is_no_obstacle(tmp_path: Path) -> None:
    """Longer than a socket's address can hold."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with running_agent(deep) as agent:
        assert len(os.fsencode(agent.listener.path)) > socket.CMSG_SPACE(1)
        assert agent.shell("exit 6").code == 6
