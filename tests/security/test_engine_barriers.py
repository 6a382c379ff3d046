"""The barriers of a real qube as the agent sees them, and attacks on the agent itself.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
from pathlib import Path

import msgspec
import pytest
from grounds.engine import Ground
from patience import PATIENCE

from caisson.engines import BARRIERS, missing

pytestmark = pytest.mark.root
AGENT = Path(__file__).parents[2] / "agent/target/release/qrexec-agent"


@pytest.mark.skipif(not AGENT.exists(), reason="the agent is not built: `script/setup`")
@pytest.mark.parametrize("forwarding", [False, True])
async def test_the_agent_sees_every_barrier_up(ground: Ground, forwarding: bool):
    """The real agent's own look at a real qube, judged as the daemon judges it."""
    await asyncio.to_thread(shutil.copy, AGENT, ground.qube_files / "usr/lib/qubes/qrexec-agent")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as broker:
        broker.bind(str(ground.sockets / "qrexec"))
        (ground.sockets / "qrexec").chmod(0o666)
        broker.listen()
        broker.settimeout(PATIENCE)
        instance = await ground.start(argv=("/usr/lib/qubes/qrexec-agent",), forwarding=forwarding)
        connection, _ = await asyncio.to_thread(broker.accept)
        with connection:
            hello = await asyncio.to_thread(connection.recv, 66_000)
    assert hello[:1] == b"H"
    report = msgspec.json.decode(hello.rpartition(b"\0")[2])
    assert missing(report, ground.engine.barriers(instance)) == []
    assert set(report["barriers"]) == BARRIERS


def test_a_barrier_that_the_agent_finds_down_is_named():
    """One wall down: its name and the agent's words are what the person is told."""
    report = {"barriers": {name: {"up": True, "detail": ""} for name in BARRIERS}}
    report["barriers"]["seccomp"] = {"up": False, "detail": "no filter"}
    assert missing(report) == ["seccomp (no filter)"]


async def test_the_agent_cannot_be_overwritten(ground: Ground):
    """Through `/proc/self/exe`, its path, a rename above it: runc CVE-2019-5736."""
    agent = ground.qube_files / "usr/lib/qubes/qrexec-agent"
    before = hashlib.sha256(agent.read_bytes()).digest()
    lines = await ground.run(
        """
        say(os.readlink("/proc/self/exe"))
        say(attempt(os.open, "/proc/self/exe", os.O_WRONLY),
            attempt(os.open, "/proc/1/exe", os.O_RDWR | os.O_TRUNC),
            attempt(os.truncate, "/usr/lib/qubes/qrexec-agent", 0),
            attempt(os.chmod, "/usr/lib/qubes/qrexec-agent", 0o777))
        say(attempt(os.unlink, "/usr/lib/qubes/qrexec-agent"),
            attempt(os.rename, "/usr/lib/qubes", "/usr/lib/other"),
            attempt(os.symlink, "/bin/sh", "/usr/lib/qubes/qrexec-agent2"))
        # The way of the CVE: run it as an interpreter, wait until it is idle, write to it.
        held = os.open("/proc/self/exe", os.O_PATH)
        pid = os.fork()
        if pid == 0:
            for _ in range(1000):
                if attempt(os.open, f"/proc/self/fd/{held}", os.O_WRONLY) == "ok": say("opened")
            os._exit(0)
        os.waitpid(pid, 0)
        """,
        argv=("/usr/lib/qubes/qrexec-agent", "-I", "-S", "/etc/script.py"),
    )
    assert lines[0] == "/usr/lib/qubes/qrexec-agent"
    words = " ".join(lines[1:]).split()
    assert len(words) == 7
    assert set(words) <= {"EACCES", "EROFS", "ETXTBSY", "EXDEV", "EBUSY"}
    assert hashlib.sha256(agent.read_bytes()).digest() == before
