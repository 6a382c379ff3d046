"""The agent's report is no formality: where there is no wall, it says so, and names what it got."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from agent_rig import running_agent

from caisson.engines import BARRIERS

# These may be up without our doing: by the machine's own capabilities and interfaces.
MACHINES_OWN = frozenset({"kernel-modules", "network"})


@pytest.mark.root
def test_on_the_bare_machine_root_finds_every_barrier_down(tmp_path: Path) -> None:
    """Each of the acts that a qube must fail at succeeds there, so each is really tried."""
    leak = os.open("/", os.O_RDONLY)
    try:
        with running_agent(tmp_path, pass_fds=(leak,)) as agent:
            found = agent.report["barriers"]
    finally:
        os.close(leak)
    up = {name for name in BARRIERS if found[name]["up"]}
    assert up <= MACHINES_OWN
    for name, words in {
        "no-nested-namespaces": "mount succeeded; fsopen succeeded; open_tree succeeded",
        "keyrings": "add_key succeeded",
        "bpf": "bpf succeeded",
        "terminal-injection": "TIOCSTI was not denied",
        "descriptors": f"{leak} is `/`",
        "proc-sys-read-only": "/proc/sys/kernel/core_pattern can be written",
        "agent-read-only": "writable mount",
        "capabilities": "no expected set",
    }.items():
        assert words in found[name]["detail"], name


@pytest.mark.root
def test_the_attempts_change_nothing(tmp_path: Path) -> None:
    """Where they succeed, neither the agent nor the machine is another afterwards."""

    def namespaces(process: str) -> list[str]:
        names = ("mnt", "user", "pid", "net")
        return [str(Path("/proc", process, "ns", name).readlink()) for name in names]

    mounts = Path("/proc/self/mountinfo").read_text()
    with running_agent(tmp_path) as agent:
        assert namespaces(str(agent.process.pid)) == namespaces("self")
        assert Path("/proc/self/mountinfo").read_text() == mounts


@pytest.mark.root
def test_a_single_wall_is_told_from_the_others(tmp_path: Path) -> None:
    """One wall more, and one more is reported."""
    with running_agent(tmp_path, wrapper=["setpriv", "--no-new-privs"]) as agent:
        barriers = agent.report["barriers"]
    up = {name for name in BARRIERS - MACHINES_OWN if barriers[name]["up"]}
    assert up - {"descriptors"} == {"no-new-privileges"}


@pytest.mark.root
def test_the_machines_network_seen_from_a_user_namespace_is_no_own_network(tmp_path: Path) -> None:
    """Names alone prove nothing: who owns the namespace does."""
    wrapper = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    with running_agent(tmp_path, wrapper=wrapper) as agent:
        barriers = agent.report["barriers"]
    for name, kind in (
        ("network", "net"),
        ("pid-namespace", "pid"),
        ("mount-namespace-root", "mnt"),
    ):
        assert f"the {kind} namespace is not this qube's own" in barriers[name]["detail"]
