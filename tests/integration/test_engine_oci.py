"""Qubes as real containers: started, seen, paused, ended, found again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from grounds.engine import BASE_LAYER, MIB, Ground, engine_ground, until

from caisson.engines import OciEngine, Tree
from caisson.engines.oci import cgroups, kernel
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
    await asyncio.wait_for(instance.wait(), 10)
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


async def test_a_new_daemon_finds_a_paused_qube_paused(ground: Ground):
    """And a running one running."""
    frozen, other = await ground.start(), await ground.start()
    await ground.engine.pause(frozen)
    await ground.engine.close()
    assert {found.id: found.paused for found in await ground.restart()} == {
        frozen.id: True,
        other.id: False,
    }


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"argv": ("/usr/lib/qubes/absent",)}, "absent"),
        ({"qube_files": Path("/nowhere")}, "nowhere"),
        ({"socket_dir": Path("/nowhere")}, "nowhere"),
        ({"root": Tree("/", ("zzzzzzzz",), None)}, "volume at `/`"),
        ({"root": Tree("/", tuple(["zzzzzzzz"] * 200), None)}, "too many"),
        ({"files": {"../outside": b""}}, "outside"),
        ({"memory_max": -5}, "cannot start"),
    ],
)
async def test_a_start_that_fails_names_the_step_and_leaves_nothing(
    ground: Ground, changes: dict[str, object], said: str
):
    """Whatever step fails: no group, no mount, no record, no process stays behind."""
    with pytest.raises(Exception, match=said) as caught:
        await ground.start(**changes)
    assert type(caught.value).__name__ in {"EngineError", "InternalError"}
    assert await ground.left() == []


@pytest.fixture
def small_pool(ground: Ground) -> Iterator[None]:
    """The pool on a disk of 8 MiB."""
    image = ground.paths.root / "disk"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, ground.paths.pool],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no loop device here: {mounted.stderr.strip()}")
    yield
    kernel.detach(str(ground.paths.pool))


async def test_a_full_disk_is_a_clear_error_and_leaves_nothing(ground: Ground, small_pool: None):
    """No room for the home directory: the error says so, and the start is undone."""
    BASE_LAYER[ground.paths] = ground.base_layer()
    spec = ground.spec()
    with contextlib.suppress(OSError), (ground.paths.pool / "filling").open("wb") as file:
        while True:
            file.write(bytes(MIB))
    number = 0
    with contextlib.suppress(OSError):
        while True:  # every last inode
            (ground.paths.pool / f"inode-{number}").touch()
            number += 1
    with pytest.raises(EngineError, match="No space left") as caught:
        await ground.engine.start(spec)
    assert "make room" in (caught.value.hint or "")
    assert await ground.left() == []


def test_an_ordinary_user_is_told_to_use_root():
    """The daemon needs root; started without it says just that."""
    code = (
        "import os\n"
        "from caisson.engines import enter_private_namespace as e\n"
        "from caisson.errors import EngineError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: e()\n"
        "except EngineError as error: print(error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "run the daemon as root\n", done.stderr


def limit_with_free(spare: int) -> int:
    """The limit of descriptors that leaves so many to be opened."""
    used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    return next(n for n in range(4096) if n - len([fd for fd in used if fd < n]) == spare)


async def test_a_shortage_of_descriptors_at_any_step_leaves_nothing(ground: Ground):
    """EMFILE at every point of a start: an error of ours or a qube, and never a remnant."""
    await ground.engine.kill(await ground.start())
    await ground.left()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = []
    for spare in range(30):
        spec = ground.spec()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with_free(spare), hard))
        try:
            instance = await ground.engine.start(spec)
        except EngineError as error:
            outcomes.append(error.message)
        else:
            outcomes.append("started")
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await ground.engine.kill(instance)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcomes[0] != "started"
    assert outcomes[-1] == "started"
    assert await ground.left() == []


def descriptors() -> list[str]:
    """What this process holds open, but for the user namespaces that an engine keeps on purpose."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return [target for target in found if not target.startswith("user:")]


async def test_no_descriptor_is_lost_over_many_starts(ground: Ground):
    """As many open descriptors after ten qubes as after one, whether they started or failed."""
    counts = []
    for _ in range(10):
        await ground.engine.kill(await ground.start())
        with pytest.raises(EngineError):
            await ground.start(argv=("/usr/lib/qubes/absent",))
        with pytest.raises(EngineError):
            await ground.start(root=Tree("/", ("zzzzzzzz",), None))
        await ground.left()
        counts.append(len(descriptors()))
    assert counts[-1] == counts[1]


async def test_a_runtime_that_fails_is_reported_and_leaves_nothing():
    """A runtime that cannot start a container: an error with its words and a hint."""
    async with engine_ground(runtime=Runtime("crun", Path("/bin/false"))) as ground:
        with pytest.raises(EngineError, match="`crun` cannot start the qube") as caught:
            await ground.start()
        assert caught.value.hint
        assert await ground.left() == []


async def test_no_runtime_at_all_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    """Without crun and runc the error says what to install."""
    monkeypatch.setattr("caisson.engines.oci.runtime.KNOWN", ("no-such-runtime",))
    async with engine_ground() as ground:
        with pytest.raises(EngineError, match="no OCI runtime is installed") as caught:
            await ground.start()
        assert "apt install crun" in (caught.value.hint or "")
        assert await ground.left() == []


async def test_a_cancelled_start_leaves_nothing(ground: Ground):
    """A caller that goes away in the middle of a start takes the qube with it."""
    starting = asyncio.ensure_future(ground.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: not ground.engine._running and not ground.remains())


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


async def test_a_new_daemon_adopts_what_runs(ground: Ground):
    """Running qubes are found again, with pid and ids, and can be ended."""
    instance = await ground.start()
    await ground.engine.close()
    [found] = await ground.restart()
    assert (found.id, found.name, found.pid) == (instance.id, "work", instance.pid)
    assert found.uid_base == instance.uid_base
    second = await ground.start()
    assert second.uid_base != found.uid_base
    for running in (found, second):
        await ground.engine.kill(running)
    assert await ground.left() == []


async def test_a_new_daemon_cleans_up_after_the_dead(ground: Ground):
    """A qube that ended while no daemon ran leaves nothing."""
    instance = await ground.start()
    await ground.engine.close()
    os.kill(instance.pid, signal.SIGKILL)
    await until(lambda: not alive(instance.pid))
    assert await ground.restart() == []
    assert await ground.left() == []


async def test_a_reused_pid_is_not_adopted(ground: Ground):
    """A record whose pid now belongs to another process is a dead qube's."""
    instance = await ground.start()
    record = instance.record
    await ground.engine.kill(instance)
    await ground.left()
    ground.engine._records.write(
        type(record)(**{**_fields(record), "pid": os.getpid(), "pid_started": 1})
    )
    assert await ground.engine.adopt() == []
    assert await ground.left() == []


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


DAEMON = """
import asyncio, sys
sys.path[:0] = {path!r}
from caisson.engines.oci import runtime as r
r.KNOWN = {known!r}
from pathlib import Path
from caisson.engines import OciEngine, enter_private_namespace
from caisson.paths import Paths
import grounds.engine as g

async def main():
    ground = g.Ground(OciEngine(Paths(Path({root!r})), spares=2), Paths(Path({root!r})))
    g.BASE_LAYER[ground.paths] = {base!r}
    g._counter = __import__("itertools").count({first})
    await ground.engine.adopt()
    while True:
        instance = await ground.start()
        print(instance.pid, flush=True)
        if {endless}:
            continue
        await asyncio.Event().wait()

enter_private_namespace()
asyncio.run(main())
"""


def daemon(
    ground: Ground, *, endless: bool, known: tuple[str, ...] = ("crun", "runc")
) -> subprocess.Popen[str]:
    """A process of its own that starts qubes."""
    tests = Path(__file__).parents[1]
    code = DAEMON.format(
        path=[str(tests), str(tests.parent)],
        root=str(ground.paths.root),
        base=BASE_LAYER[ground.paths],
        first=1000 + secrets.randbelow(1 << 24),
        endless=endless,
        known=known,
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


async def test_qubes_survive_kill_9_of_the_daemon(ground: Ground):
    """After `kill -9` of the daemon its qube runs on, and the next daemon has it."""
    process = daemon(ground, endless=False)
    pid = int(await asyncio.to_thread(process.stdout.readline))
    process.kill()
    process.wait()
    process.stdout.close()
    assert alive(pid)
    [found] = await ground.restart()
    assert found.pid == pid
    await ground.engine.kill(found)
    assert not alive(pid)
    assert await ground.left() == []


@pytest.mark.parametrize("delay", [0.0, 0.004, 0.008, 0.012, 0.016])
@pytest.mark.parametrize("runtime", [found.name for found in installed()])
async def test_kill_9_in_the_middle_of_a_start_loses_no_track(
    ground: Ground, runtime: str, delay: float
):
    """At whatever point of a start the daemon dies: what runs is adopted, the rest is cleaned."""
    process = daemon(ground, endless=True, known=(runtime,))
    await asyncio.to_thread(process.stdout.readline)
    await asyncio.sleep(delay)  # the moment of death is the parameter; nothing is waited for
    process.kill()
    process.wait()
    process.stdout.close()
    found = await ground.restart()
    assert found
    groups = {instance.record.group for instance in found}
    assert ground.engine._groups.names() == groups
    for instance in found:
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


async def test_the_doctor_examines_this_machine(ground: Ground):
    """Every check is made; what fails has a remedy; a check leaves nothing."""
    findings = await ground.engine.doctor()
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(finding.detail for finding in findings)
    assert all(finding.remedy for finding in findings if not finding.ok)
    assert {f.name: f.ok for f in findings}["user namespaces"]
    assert ground.remains() == []


async def test_the_doctor_names_an_overlay_below_the_state(ground: Ground, tmp_path: Path):
    """A state directory on an overlay is found before the first start fails."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    data = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    kernel.mount("overlay", str(merged), "overlay", kernel.NO_FLAGS, data)
    engine = OciEngine(replace(ground.paths, root=merged), spares=0)
    try:
        findings = {finding.name: finding for finding in await engine.doctor()}
    finally:
        await engine.close()
        kernel.detach(str(merged))
    assert not findings["state directory"].ok
    assert "overlay" in findings["state directory"].detail
    assert findings["state directory"].remedy


@pytest.fixture
def unified(tmp_path: Path):
    """A mount of cgroup v2, with whatever controllers this machine gives it."""
    mount = tmp_path / "unified"
    mount.mkdir()
    kernel.mount("cgroup2", str(mount), "cgroup2")
    yield cgroups.Layout(cgroups.Kind.V2, mount, {})
    kernel.detach(str(mount))


def test_groups_of_cgroup_v2_hold_freeze_and_release(unified: cgroups.Layout):
    """On pure v2: made, entered, frozen, thawed, emptied, removed."""
    parent = f"qubes-test-{secrets.token_hex(3)}"
    groups = cgroups.UnifiedGroups(unified, parent, needed=(), own="/")
    group = groups.make("one")
    with subprocess.Popen(["sleep", "100"]) as process:
        group.enter(process.pid)
        assert group.processes() == [process.pid]
        group.freeze()
        group.thaw()
        process.kill()
    assert groups.names() == {"one"}
    group.remove()
    assert groups.names() == set()
    groups.remove_parent()
    assert not (unified.unified / parent).exists()


def test_a_delegated_group_is_used_when_the_daemon_is_in_a_leaf(unified: cgroups.Layout):
    """Only then could a service manager start the next daemon, too."""
    service = unified.unified / f"service-{secrets.token_hex(3)}"
    (service / "daemon").mkdir(parents=True)
    try:
        assert own_groups_parent(unified, service / "daemon") == "/qubes"
        os.setxattr(service, "trusted.delegate", b"1")
        assert own_groups_parent(unified, service / "daemon") == f"/{service.name}/qubes"
        assert own_groups_parent(unified, service) == "/qubes"
    finally:
        (service / "daemon").rmdir()
        service.rmdir()


def own_groups_parent(unified: cgroups.Layout, group: Path) -> str:
    """Where a daemon in that group would put its qubes."""
    code = (
        f"import os, pathlib; g = pathlib.Path({str(group)!r}) / 'cgroup.procs';"
        "g.write_text(str(os.getpid()));"
        "from caisson.engines.oci import cgroups as c;"
        f"l = c.Layout(c.Kind.V2, pathlib.Path({str(unified.unified)!r}), {{}});"
        "print(c.UnifiedGroups(l, 'qubes', needed=()).parent())"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().strip()


def test_a_delegated_group_keeps_its_processes_in_a_leaf(unified: cgroups.Layout):
    """Below a service manager: the daemon moves aside, qubes get groups next to it."""
    service = unified.unified / f"service-{secrets.token_hex(3)}"
    service.mkdir()
    groups = cgroups.UnifiedGroups(unified, "qubes", needed=(), own=f"/{service.name}")
    with subprocess.Popen(["sleep", "100"]) as process:
        (service / "cgroup.procs").write_text(str(process.pid))
        group = groups.make("one")
        assert (service / "daemon/cgroup.procs").read_text().split() == [str(process.pid)]
        assert groups.parent() == f"/{service.name}/qubes"
        process.kill()
    group.remove()
    groups.remove_parent()
    (service / "daemon").rmdir()
    service.rmdir()


PURE_V2 = """
import asyncio, sys
sys.path[:0] = {path!r}
from caisson.engines.oci import cgroups, kernel
from caisson.engines.oci.runtime import installed
kernel.unshare_mounts()
kernel.mount("none", "/", None, kernel.Mount.REC | kernel.Mount.PRIVATE)
kernel.detach("/sys/fs/cgroup")
kernel.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
from caisson.engines import enter_private_namespace
from grounds.engine import engine_ground

async def main():
    for runtime in installed():
        async with engine_ground(runtime=runtime) as ground:
            found = cgroups.layout()
            assert found.kind is cgroups.Kind.V2
            groups = cgroups.UnifiedGroups(found, {parent!r}, needed=(), own="/")
            ground.engine._groups = groups
            lines = await ground.run("say(os.getpid())")
            instance = await ground.start()
            assert instance.pid in ground.engine._group(instance).processes()
            await ground.engine.pause(instance)
            await ground.engine.kill(instance)
            await ground.left()
            assert groups.names() == set()
            groups.remove_parent()
            print(runtime.name, lines)

enter_private_namespace()
asyncio.run(main())
"""


async def test_qubes_run_on_pure_cgroup_v2():
    """A machine with v2 alone, played in a mount namespace: started, frozen, ended, no traces."""
    tests = Path(__file__).parents[1]
    code = PURE_V2.format(
        path=[str(tests), str(tests.parent)], parent=f"qubes-v2-{secrets.token_hex(3)}"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"{runtime.name} ['1']" for runtime in installed()], (
        done.stderr
    )


def test_a_missing_controller_is_named(unified: cgroups.Layout):
    """A limit that cannot be set is an error, not a qube without limits."""
    available = (unified.unified / "cgroup.controllers").read_text().split()
    if "memory" in available:
        pytest.skip("this machine has the memory controller on v2")
    groups = cgroups.UnifiedGroups(unified, f"qubes-test-{secrets.token_hex(3)}", own="/")
    with pytest.raises(EngineError, match="`memory` is missing"):
        groups.make("one")
