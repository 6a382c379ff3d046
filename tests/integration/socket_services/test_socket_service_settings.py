"""Settings of services, whether sockets or programs serve; waiting for the session among them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from agent_rig import ME, Agent, Outcome, Pipes, eventually, running_agent, shut
from socket_rig import settings

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
        assert agent.outcome(number, pipes) == Outcome(0, b"started\n", b"")
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
