"""Attacks of a qube on its neighbours: what qubes could share, and what one could use up for all.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from grounds.engine import MIB, PYTHON, Ground, until
from patience import PATIENCE

pytestmark = pytest.mark.root
CAP_SYS_RESOURCE = 24


async def ended(ground: Ground, script: str, **changes: object) -> tuple[list[str], list[str]]:
    """Run a script; return what it said, and what is left of its qube."""
    lines = await ground.run(script, **changes)
    return lines, await ground.left()


async def test_another_qube_shares_nothing(ground: Ground):
    """Disjoint ids, no shared memory, no semaphores, no abstract sockets of a neighbour."""
    neighbour = await ground.start(
        """
        import signal, socket
        s = socket.socket(socket.AF_UNIX); s.bind("\\0neighbour"); s.listen()
        say(libc.shmget(0x1234, 4096, 0o1666) >= 0)
        open("/dev/shm/neighbour", "w").close(); open("/tmp/neighbour", "w").close()
        say("ready"); signal.pause()
        """
    )
    await until(lambda: "ready" in neighbour.messages())
    assert "True" in neighbour.messages()
    lines = await ground.run(
        """
        import socket
        say(attempt(socket.socket(socket.AF_UNIX).connect, "\\0neighbour"))
        say(libc.shmget(0x1234, 4096, 0o666), os.listdir("/dev/shm"), os.listdir("/tmp"))
        """
    )
    assert lines == ["ECONNREFUSED", "-1 [] []"]


async def test_what_the_kernel_counts_by_user_is_not_shared(ground: Ground):
    """One qube uses up inotify and queued signals; its neighbour and root have theirs.

    Class: a quota that many share (the kernel charges the owner of a user namespace as well).
    """
    hungry = await ground.start(
        """
        import resource, signal
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        while libc.inotify_init1(0) >= 0: pass
        while libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) == 0: pass
        say("ready"); signal.pause()
        """
    )
    await until(lambda: "ready" in hungry.messages())
    asked = (
        "libc.inotify_init1(0) >= 0, libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p()))"
    )
    lines = await ground.run(f"say({asked})")
    assert lines == ["True 0"]
    program = f"import ctypes; libc = ctypes.CDLL(None); print({asked})"
    own = await asyncio.create_subprocess_exec(PYTHON, "-c", program, stdout=subprocess.PIPE)
    assert (await own.communicate())[0] == b"True 0\n"


async def test_no_qube_watches_or_locks_what_another_opens(ground: Ground):
    """The machine's `/usr`, the agent's directory and the devices are each qube's own view.

    Class: a file system that qubes share tells one what the other runs, and lets them signal.
    """
    paths = ["/usr/bin", "/usr/bin/true", "/usr/lib/qubes", "/dev", "/dev/zero", "/dev/urandom"]
    watcher = await ground.start(
        f"""
        import fcntl, select
        watch = libc.inotify_init1(0)
        assert all(libc.inotify_add_watch(watch, path.encode(), 0x21) > 0 for path in {paths})
        held = [os.open(path, os.O_RDONLY) for path in {paths}]
        for file in held: fcntl.flock(file, fcntl.LOCK_EX)
        while select.select([watch], [], [], 0.2)[0]: os.read(watch, 65536)
        say("ready")
        say("saw" if select.select([watch], [], [], 60)[0] else "nothing")
        import signal; signal.pause()
        """
    )
    await until(lambda: "ready" in watcher.messages())
    lines = await ground.run(
        f"""
        import fcntl
        held = [os.open(path, os.O_RDONLY) for path in {paths}]
        os.listdir("/usr/bin"), os.listdir("/dev"), os.read(held[-1], 1)
        say(*(attempt(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB) for file in held))
        """
    )
    assert lines == [" ".join(["ok"] * len(paths))]
    assert "saw" not in watcher.messages()


def _root_may_set_limits() -> bool:
    """Whether the machine's root has CAP_SYS_RESOURCE; some machines withhold it."""
    held = Path("/proc/self/status").read_text().partition("CapEff:\t")[2].split()[0]
    return bool(int(held, 16) >> CAP_SYS_RESOURCE & 1)


async def test_a_machine_short_of_memory_ends_qubes_first(ground: Ground):
    """A qube cannot put itself behind the machine's own programs.

    Class: exhaustion of what many share; many small processes would outlive the daemons.
    """
    lines = await ground.run(
        """
        say(open("/proc/self/oom_score_adj").read().strip())
        def lower():
            with open("/proc/self/oom_score_adj", "w") as file: file.write("0")
        say(attempt(lower))
        """
    )
    assert lines[0] == "500"
    if _root_may_set_limits():
        assert lines[1] == "EACCES"


async def test_no_pipe_can_be_enlarged(ground: Ground):
    """Those of calls are charged to the broker: one qube would use up what all calls may have.

    Class: exhaustion of a quota that many share.
    """
    lines = await ground.run(
        """
        import fcntl
        end, _ = os.pipe()
        say(attempt(fcntl.fcntl, end, fcntl.F_SETPIPE_SZ, 1 << 20), fcntl.fcntl(end, fcntl.F_GETFD))
        say(libc.fcntl(end, ctypes.c_ulong(fcntl.F_SETPIPE_SZ | 1 << 32), 1 << 20))
        """
    )
    assert lines == ["EPERM 1", "-1"]


# Too much of everything


async def test_a_fork_bomb_stays_within_its_limit(ground: Ground):
    """Processes end at the limit, nobody else notices, and all are gone after a kill."""
    instance = await ground.start(
        """
        import signal
        made = 0
        try:
            while made < 1000:
                if os.fork() == 0: signal.pause(); os._exit(0)
                made += 1
        except OSError as error:
            say("stopped", made, name_of(error.errno))
        signal.pause()
        """,
        pids_max=40,
    )
    await until(lambda: "stopped" in instance.messages())
    stopped, made, reason = instance.messages().split()[:3]
    assert (stopped, reason) == ("stopped", "EAGAIN")
    assert int(made) < 40
    await ground.engine.kill(instance)
    assert await ground.left() == []


async def test_a_memory_bomb_ends_inside_its_limit(ground: Ground):
    """The kernel ends the process that took too much, in that qube; files in `/tmp` count."""
    lines, remains = await ended(
        ground,
        """
        def bomb(): return [bytearray(os.urandom(1 << 20)) for _ in range(300)]
        def fill():
            with open("/dev/shm/big", "wb") as f:
                for _ in range(300): f.write(bytes(1 << 20))
        for act in (bomb, fill):
            pid = os.fork()
            if pid == 0:
                open("/proc/self/oom_score_adj", "w").write("1000")
                act(); os._exit(0)
            _, status = os.waitpid(pid, 0)
            say(os.WIFSIGNALED(status) and os.WTERMSIG(status))
        """,
        memory_max=100 * MIB,
    )
    assert lines[0] == "9"
    assert lines[1] == "9"
    assert remains == []


async def test_endless_output_is_cut(ground: Ground):
    """The error output is read up to 64 KiB; then the pipe is closed, escapes are shown as such."""
    instance = await ground.start(
        """
        import signal
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        while True: os.write(2, b"\\x1b[2J\\x07 evil\\n" * 100)
        """
    )
    # The first process of a namespace is not ended by its own SIGPIPE: it gets the error.
    await asyncio.wait_for(instance.wait(), PATIENCE)
    text = instance.messages()
    assert len(instance._untrusted_messages) <= 65_536
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
