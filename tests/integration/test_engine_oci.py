"""Qubes as real containers: started, measured, limited, paused, ended."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from grounds.engine import BASE_LAYER, MIB, Ground, engine_ground, until
from grounds.processes import alive
from patience import PATIENCE

from caisson.engines import Tree
from caisson.engines.oci.runtime import Runtime, installed
from caisson.errors import EngineError

pytestmark = pytest.mark.root


async def test_a_qube_runs_with_its_name_and_its_files(ground: Ground):
    """The first process sees the host name, the files of `/etc` and the sockets' directory."""
    (ground.sockets / "qrexec").write_text("a socket would be here")
    lines = await ground.run(
        """
        say(os.uname().nodename, open("/etc/hostname").read().strip())
        say(os.listdir("/run/qubes"), os.getpid(), os.getcwd())
        say(sorted(os.environ))
        """
    )
    assert lines[0] == "work work"
    assert lines[1] == "['qrexec'] 1 /"
    assert "CAISSON_CAPABILITIES" in lines[2]


async def test_writes_belong_to_ids_from_zero_on_disk(ground: Ground):
    """Whatever range of ids a qube runs with, its volumes carry the ids that it sees."""
    private = ground.layer(writable=True)
    root = ground.layer(writable=True)
    lines = await ground.run(
        """
        open("/srv/of-root", "w").close()
        open("/rw/home/user/of-user", "w").close()
        os.chown("/rw/home/user/of-user", 1000, 1000)
        open("/usr/local/tool", "w").close()
        say(os.stat("/home/user/of-user").st_uid, os.stat("/rw/usrlocal/tool").st_uid)
        """,
        root=Tree("/", (BASE_LAYER[ground.paths],), root),
        private=Tree("/rw", (ground.layer(),), private),
    )
    assert lines == ["1000 0"]
    assert (ground.tree(root) / "srv/of-root").stat().st_uid == 0
    home = ground.tree(private) / "home/user"
    assert (home.stat().st_uid, (home / "of-user").stat().st_uid) == (1000, 1000)
    assert (ground.tree(private) / "usrlocal/tool").stat().st_uid == 0


async def test_a_directory_template_has_our_files_below_its_own(ground: Ground):
    """Every qube sees our files; what a template changes in one of them stays changed."""
    layer = BASE_LAYER[ground.paths]
    rpc = ground.qube_files / "etc/qubes-rpc"
    rpc.mkdir(parents=True)
    (rpc / "qubes.Test").write_text("ours")
    (rpc / "qubes.Same").write_text("ours")
    (ground.tree(layer) / "etc/qubes-rpc").mkdir()
    (ground.tree(layer) / "etc/qubes-rpc/qubes.Test").write_text("theirs")
    static = ground.qube_files / "usr/lib/qubes/static"
    program = Path(ground.paths.root) / "static.c"
    program.write_text(
        """
        #include <stdio.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int main(void) {
            char test[16] = "", same[16] = ""; struct stat s;
            fgets(test, sizeof test, fopen("/etc/qubes-rpc/qubes.Test", "r"));
            fgets(same, sizeof same, fopen("/etc/qubes-rpc/qubes.Same", "r"));
            stat("/etc/qubes-rpc/qubes.Same", &s);
            int new = fopen("/etc/qubes-rpc/new", "w") != 0;
            fprintf(stderr, "%s %s %d %d.", test, same, s.st_uid, new);
            pause();
        }
        """
    )
    await asyncio.to_thread(subprocess.run, ["gcc", "-static", "-o", static, program], check=True)
    instance = await ground.start("", host_usr=False, argv=("/usr/lib/qubes/static",))
    await until(lambda: instance.messages().endswith("."))
    assert instance.messages() == "theirs ours 0 1."


async def test_terminate_lets_a_qube_shut_down(ground: Ground):
    """A request to shut down reaches the first process."""
    instance = await ground.start(
        """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: (say("goodbye"), os._exit(0)))
        say("ready")
        signal.pause()
        """
    )
    await until(lambda: "ready" in instance.messages())
    assert not instance.ended
    instance.terminate()
    await asyncio.wait_for(instance.wait(), PATIENCE)
    assert "goodbye" in instance.messages()
    assert await ground.left() == []


async def test_kill_ends_every_process(ground: Ground):
    """Children that left their session and ignore signals end with the first process."""
    instance = await ground.start(
        """
        import signal
        for _ in range(20):
            if os.fork() == 0:
                os.setsid()
                for number in range(1, 65):
                    try: signal.signal(number, signal.SIG_IGN)
                    except (OSError, ValueError): pass
                while True: signal.pause()
        say("ready")
        signal.pause()
        """
    )
    await until(lambda: "ready" in instance.messages())
    group = ground.engine._group(instance)
    pids = group.processes()
    assert len(pids) == 21
    await ground.engine.kill(instance)
    assert instance.ended
    assert await ground.left() == []
    assert not any(alive(pid) for pid in pids)


async def test_a_paused_qube_stands_still_and_can_be_killed(ground: Ground):
    """Frozen processes do not answer; after the thaw they do; frozen ones can be ended."""
    instance = await ground.start(
        """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: say("got it"))
        say("ready")
        while True: signal.pause()
        """
    )
    await until(lambda: "ready" in instance.messages())
    await ground.engine.pause(instance)
    instance.terminate()
    group = ground.engine._group(instance)
    state = group.directories["freezer"] / "freezer.state"
    assert state.read_text().strip() == "FROZEN"
    assert "got it" not in instance.messages()
    await ground.engine.unpause(instance)
    await until(lambda: "got it" in instance.messages())
    await ground.engine.pause(instance)
    await ground.engine.kill(instance)
    assert instance.ended
    assert await ground.left() == []


async def test_the_usage_of_a_qube_is_measured(ground: Ground):
    """Memory in KiB, time in milliseconds; a qube that has ended uses nothing that is known."""
    instance = await ground.start(
        """
        import signal
        kept = bytearray(b'x') * (64 << 20)
        while __import__('time').process_time() < 0.2: pass
        say('ready')
        signal.pause()
        """
    )
    await until(lambda: "ready" in instance.messages())
    usage = await ground.engine.usage(instance)
    assert 64 * 1024 <= usage.memory < 256 * 1024
    assert 200 <= usage.cpu_time < 20_000
    await ground.engine.kill(instance)
    with pytest.raises(EngineError):
        await ground.engine.usage(instance)


async def test_limits_stand_before_the_qube_runs(ground: Ground):
    """Memory, processors and processes are limited from the first instruction."""
    instance = await ground.start(memory_max=100 * MIB, cpus=0.5, pids_max=50)
    group = ground.engine._group(instance)
    assert instance.pid in group.processes()
    directories = group.directories
    assert int((directories["memory"] / "memory.limit_in_bytes").read_text()) == 100 * MIB
    quota = int((directories["cpu"] / "cpu.cfs_quota_us").read_text())
    assert quota / int((directories["cpu"] / "cpu.cfs_period_us").read_text()) == 0.5
    assert int((directories["pids"] / "pids.max").read_text()) == 50
    for directory in directories.values():
        assert str(instance.pid) in (directory / "cgroup.procs").read_text().split()


async def test_qubes_started_together_have_ranges_of_their_own(ground: Ground):
    """No two running qubes share a user id; a range is free again afterwards."""
    started = await asyncio.gather(*(ground.start() for _ in range(6)))
    assert len({instance.uid_base for instance in started}) == 6
    first = min(instance.uid_base for instance in started)
    await asyncio.gather(*(ground.engine.kill(instance) for instance in started))
    assert await ground.left() == []
    again = await ground.start()
    assert again.uid_base == first


async def test_spare_launchers_are_used_and_leave_nothing():
    """A launcher that waits ready is taken by the next start; the others end with the engine."""
    async with engine_ground(spares=2) as ground:
        await ground.engine.adopt()
        await until(lambda: len(ground.engine._spares) == 2)
        names = {launcher.name for launcher in ground.engine._spares}
        instance = await ground.start()
        assert instance.record.group in names
        await ground.engine.kill(instance)
        await ground.engine.close()
        assert ground.remains() == []


async def test_a_spare_launcher_that_died_is_not_used():
    """A launcher that something killed is dropped; the start makes a new one."""
    async with engine_ground(spares=1) as ground:
        await ground.engine.adopt()
        await until(lambda: ground.engine._spares)
        ground.engine._spares[0]._process.kill()
        ground.engine._spares[0]._process.wait()
        instance = await ground.start()
        assert not instance.ended


@pytest.mark.parametrize("runtime", installed(), ids=lambda runtime: runtime.name)
async def test_each_installed_runtime_runs_a_qube(runtime: Runtime):
    """The second choice works, too, and inside the same limits."""
    async with engine_ground(runtime=runtime) as ground:
        lines = await ground.run("say(open('/proc/self/uid_map').read().split(), os.getpid())")
        assert lines[0].endswith(" 1")
        instance = await ground.start()
        assert instance.pid in ground.engine._group(instance).processes()
        await ground.engine.kill(instance)
        assert await ground.left() == []


def mounts_of(process: str) -> str:
    """The mount table that a process has."""
    return Path(f"/proc/{process}/mounts").read_text()


async def test_the_machine_sees_none_of_our_mounts(ground: Ground):
    """Mounts of a start exist in the daemon's namespace only, and there only for a moment."""
    await ground.start()
    mine = mounts_of("self")
    assert f"/{ground.paths.instance}/q" not in mine
    try:
        machine = mounts_of("1")
    except PermissionError:
        pytest.skip("the mount table of process 1 cannot be read here")
    assert "/run/caisson/mnt" not in machine
