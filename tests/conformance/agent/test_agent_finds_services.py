"""Which program the agent takes for a service, and what it says where there is none."""

from __future__ import annotations

import os

import pytest
from agent_rig import Agent


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
