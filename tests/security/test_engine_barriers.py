"""Attacks from inside a qube on each wall of a container.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest
from grounds.engine import MIB, Ground, until

from caisson.engines import BARRIERS, ID_RANGE, Bind, Tree, missing
from caisson.engines.oci.spec import CAPABILITY_MASK, MASKED
from caisson.errors import EngineError

pytestmark = pytest.mark.root
PYTHON = os.path.realpath("/usr/bin/python3")
CAP_SYS_RESOURCE = 24

_COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
_BY_MACHINE = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "ioctl": (16, 29),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mbind": (237, 235),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_EVERYWHERE = {
    "clone3": 435,
    "fsconfig": 431,
    "fsmount": 432,
    "fsopen": 430,
    "fspick": 433,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "kexec_file_load": {"x86_64": 320, "aarch64": 294}.get(platform.machine(), 0),
    "listmount": 458,
    "mount_setattr": 442,
    "move_mount": 429,
    "open_tree": 428,
    "open_tree_attr": 467,
    "quotactl_fd": 443,
    "statmount": 457,
}
CALLS = _EVERYWHERE | (
    {} if _COLUMN is None else {name: both[_COLUMN] for name, both in _BY_MACHINE.items()}
)
knows_calls = pytest.mark.skipif(_COLUMN is None, reason="numbers of this machine's calls unknown")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="about ABIs of x86-64")


async def ended(ground: Ground, script: str, **changes: object) -> tuple[list[str], list[str]]:
    """Run a script; return what it said, and what is left of its qube."""
    lines = await ground.run(script, **changes)
    return lines, await ground.left()


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
        broker.settimeout(20)
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


# What is the host's


async def test_no_file_of_the_host_can_be_read(ground: Ground):
    """The qube's tree has nothing but volumes and the machine's `/usr`."""
    secret = ground.paths.root / "secret"
    secret.write_text("the host's secret")
    lines = await ground.run(
        f"""
        for path in ("/etc/shadow", {str(secret)!r}, "/root/.ssh", "/boot", "/var/lib/dpkg",
                     "/etc/ssh", "/etc/machine-id", "/usr/src"):
            say(path, attempt(os.stat, path))
        say(os.listdir("/root"), os.listdir("/home"))
        """
    )
    assert [line.split()[-1] for line in lines[:-1]] == ["ENOENT"] * 8
    assert lines[-1] == "[] ['user']"


async def test_what_only_the_hosts_root_may_read_stays_closed(ground: Ground):
    """The machine's `/usr` belongs to nobody in the qube, its private parts to nobody at all."""
    lines = await ground.run(
        """
        say(os.stat("/usr").st_uid, os.stat("/usr/bin/true").st_uid)
        say(attempt(os.chmod, "/usr/bin/true", 0o777), attempt(open, "/usr/bin/true", "r+b"))
        say(attempt(open, "/usr/new", "w"), attempt(os.unlink, "/usr/bin/true"))
        """
    )
    assert lines == ["65534 65534", "EROFS EROFS", "EROFS EROFS"]


async def test_no_process_of_the_host_is_seen(ground: Ground):
    """The qube has its own process ids; signals reach nobody else."""
    lines = await ground.run(
        f"""
        say(sorted(name for name in os.listdir("/proc") if name.isdigit()))
        say(attempt(os.kill, {os.getpid()}, 0), attempt(os.kill, -1, 0))
        """
    )
    assert lines == ["['1']", "ESRCH ESRCH"]


async def test_no_socket_of_the_host_is_reached(ground: Ground):
    """Abstract sockets are bound to the network namespace, others to files that are not there."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0caisson-test-{ground.paths.instance}")
        listener.listen()
        lines = await ground.run(
            f"""
            import socket
            s = socket.socket(socket.AF_UNIX)
            say(attempt(s.connect, "\\0caisson-test-{ground.paths.instance}"))
            say(os.listdir("/run"), os.listdir("/run/qubes"), os.listdir("/tmp"))
            """
        )
    assert lines == ["ECONNREFUSED", "['qubes'] [] []"]


async def test_the_sockets_directory_cannot_be_changed(ground: Ground):
    """A qube can connect to its broker, not put another in its place."""
    (ground.sockets / "qrexec").touch()
    lines = await ground.run(
        """
        say(attempt(os.unlink, "/run/qubes/qrexec"), attempt(open, "/run/qubes/new", "w"))
        say(attempt(os.rename, "/run/qubes", "/run/other"), attempt(os.chmod, "/run/qubes", 0o777))
        """
    )
    assert lines == ["EROFS EROFS", "EBUSY EROFS"]


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


# Namespaces, mounts, capabilities


@knows_calls
async def test_nothing_can_be_mounted_and_no_namespace_made(ground: Ground):
    """The old and the new mount API, `unshare`, `setns`, `clone` (flatpak CVE-2021-41133)."""
    new_user, new_time, flags = 0x10000000, 0x80, (0x20000, 0x2000000, 0x20000000, 0x40000000)
    lines = await ground.run(
        f"""
        calls = {CALLS!r}
        for name in ("mount umount2 pivot_root fsopen fsmount fsconfig fspick open_tree move_mount "
                     "mount_setattr open_tree_attr setns").split():
            say(name, syscall(calls[name], b"none", b"/tmp", b"tmpfs", 0, 0))
        for flag in ({new_user}, {new_time}, *{flags!r}, {new_user} | 0x20000):
            say("unshare", syscall(calls["unshare"], flag))
        for flag in ({new_user}, *{flags!r}):
            say("clone", syscall(calls["clone"], flag | 17, 0, 0, 0, 0))
        say("clone3", syscall(calls["clone3"], bytes(88), 88))
        """
    )
    answers = dict(line.split() for line in lines)
    assert answers.pop("clone3") == "ENOSYS"
    assert set(answers.values()) <= {"EPERM", "ENOSYS"}
    assert [line for line in lines if line.endswith("ok")] == []
    assert {line for line in lines if line.startswith(("unshare", "mount "))} == {
        "unshare EPERM",
        "mount EPERM",
    }


@knows_calls
@pytest.mark.parametrize(
    "name",
    sorted(
        set(CALLS)
        - {"clone", "clone3", "ioctl", "personality", "socket", "unshare", "open_tree_attr"}
        - {"listmount", "statmount", "quotactl_fd"}
    ),
)
async def test_dangerous_call_is_refused(ground: Ground, name: str):
    """Modules, keys, BPF, performance events, io_uring, handles, clocks, swap: EPERM at once."""
    lines = await ground.run(
        f"say(syscall({CALLS[name]}, 0, 0, 0, 0, 0), syscall({CALLS[name]}, 1, 1, 1, 1, 1))"
    )
    assert lines == ["EPERM EPERM"]


@knows_calls
async def test_only_local_internet_and_routing_sockets_can_be_made(ground: Ground):
    """Virtual machine sockets, the crypto API, packets and raw IP stay closed."""
    lines = await ground.run(
        f"""
        import socket
        made = []
        for family in range(64):
            for kind in (1, 2, 3, 5):
                for protocol in range(24):
                    if syscall({CALLS["socket"]}, family, kind, protocol) == "ok":
                        made.append((family, kind, protocol))
        say(sorted({{family for family, _, _ in made}}))
        say(sorted({{protocol for family, _, protocol in made if family == 16}}))
        say([entry for entry in made if entry[0] in (2, 10) and entry[1] == 3])
        say(syscall({CALLS["socket"]}, 40 | 1 << 32, 1, 0), syscall({CALLS["socket"]}, 38, 5, 0))
        """
    )
    assert lines[0] == "[1, 2, 10, 16]"
    assert lines[1] == "[0]"
    assert lines[2] == "[]"
    assert "ok" not in lines[3]


@on_x86
@pytest.mark.parametrize(
    ("abi", "code"),
    [
        ("32-bit", "b8 14 00 00 00 cd 80 c3"),  # mov eax, getpid; int 0x80; ret
        ("x32", "b8 27 00 00 40 0f 05 c3"),  # mov eax, 0x40000000 | getpid; syscall; ret
    ],
)
async def test_other_abis_end_the_process(ground: Ground, abi: str, code: str):
    """A filter that looks at 64-bit numbers only can be walked around through another ABI."""
    lines = await ground.run(
        f"""
        import mmap
        pid = os.fork()
        if pid == 0:
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(bytes.fromhex({code!r}))
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            say("got", ctypes.CFUNCTYPE(ctypes.c_long)(address)())
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        say(os.WIFSIGNALED(status) and os.WTERMSIG(status))
        """
    )
    assert lines == [str(int(signal.SIGSYS))]


async def test_capabilities_are_exactly_those_agreed(ground: Ground):
    """No inheritable, no ambient ones; the bounding set is the set (CVE-2022-29162 and kin)."""
    lines = await ground.run(
        """
        wanted = ("CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Uid Gid Groups").split()
        found = dict(line.split(":", 1) for line in open("/proc/self/status"))
        for name in wanted: say(name, *found[name].split())
        say(os.environ["CAISSON_CAPABILITIES"])
        """
    )
    full = f"{CAPABILITY_MASK:016x}"
    none = "0" * 16
    assert lines[:5] == [
        f"CapInh {none}",
        f"CapPrm {full}",
        f"CapEff {full}",
        f"CapBnd {full}",
        f"CapAmb {none}",
    ]
    assert lines[5:7] == ["NoNewPrivs 1", "Seccomp 2"]
    assert lines[7:9] == ["Uid 0 0 0 0", "Gid 0 0 0 0"]
    assert lines[9] in {"Groups", "Groups 0"}
    assert int(lines[10], 16) == CAPABILITY_MASK


def test_no_capability_that_reaches_beyond_the_qube_is_given():
    """SYS_ADMIN, NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_MODULE, MKNOD and their like are absent."""
    dangerous = {2, 9, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28}
    dangerous |= {29, 30, 32, 33, 34, 35, 36, 37, 38, 39, 40}
    assert {bit for bit in range(64) if CAPABILITY_MASK >> bit & 1}.isdisjoint(dangerous)


async def test_a_setuid_file_gives_nothing(ground: Ground):
    """Neither one made now nor one that an earlier run left in a volume (incus CVE-2025-64507)."""
    layer = ground.layer()
    program = ground.tree(layer) / "usrlocal/become-root"
    program.parent.mkdir()
    shutil.copy(PYTHON, program)
    program.chmod(0o6755)
    lines = await ground.run(
        """
        import shutil, subprocess
        shutil.copy("/usr/local/become-root", "/home/become-root")
        shutil.copy("/usr/local/become-root", "/tmp/become-root")
        for path in ("/usr/local/become-root", "/home/become-root", "/tmp/become-root"):
            os.chmod(path, 0o6755)
            code = "import os; print(os.getresuid(), os.getresgid())"
            say(subprocess.run([path, "-I", "-S", "-c", code], user=1000, group=1000,
                               extra_groups=[], capture_output=True, text=True).stdout.strip())
        """,
        private=Tree("/rw", (layer,), ground.layer(writable=True)),
    )
    assert lines == ["(1000, 1000, 1000) (1000, 1000, 1000)"] * 3


async def test_every_mount_is_nosuid_and_without_devices(ground: Ground):
    """The directory of devices, which is read-only, is the one exception for devices."""
    shared = ground.paths.root / "shared"
    shared.mkdir()
    lines = await ground.run(
        """
        for line in open("/proc/self/mounts"):
            _, point, kind, options = line.split()[:4]
            options = options.split(",")
            if "ro" not in options and "nosuid" not in options: say(point, "without nosuid")
            if "nodev" not in options and kind not in ("devtmpfs", "tmpfs", "proc", "devpts"):
                say(point, "without nodev")
            if "rw" in options and "nodev" not in options and kind != "devpts":
                say(point, "writable, without nodev")
        say("done")
        """,
        binds=(Bind(shared, "/srv/shared", read_only=False),),
    )
    assert lines == ["done"]


# Devices, /proc, /sys, control groups


async def test_only_harmless_devices_are_there_and_none_can_be_made(ground: Ground):
    """No disk, no memory, no terminal of the host; `mknod` is refused."""
    lines = await ground.run(
        """
        import stat
        devices = []
        for directory, _, names in os.walk("/dev"):
            for name in names:
                status = os.lstat(os.path.join(directory, name))
                if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                    devices.append(os.path.join(directory, name))
        say(sorted(devices))
        for where in ("/tmp", "/home/user", "/srv", "/dev/shm", "/dev"):
            say(attempt(os.mknod, where + "/disk", stat.S_IFBLK | 0o666, os.makedev(8, 0)),
                attempt(os.mknod, where + "/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1)))
        say(attempt(open, "/dev/new", "w"), attempt(os.unlink, "/dev/null"))
        say(len(open("/dev/urandom", "rb", 0).read(8)), open("/dev/null", "w").write("x"))
        say(os.ttyname(os.openpty()[1]))
        """
    )
    names = ["full", "null", "pts/ptmx", "random", "tty", "urandom", "zero"]
    assert lines[0] == str([f"/dev/{name}" for name in names])
    assert all(set(line.split()) <= {"EPERM", "EROFS"} for line in lines[1:6])
    assert lines[6:] == ["EROFS EROFS", "8 1", "/dev/pts/0"]


async def test_nothing_in_proc_sys_can_be_written(ground: Ground):
    """Every file is tried, as root; also `sysrq-trigger` and the masked files of `/proc`."""
    lines = await ground.run(
        """
        opened = []
        for directory, _, names in os.walk("/proc/sys"):
            for name in names:
                path = os.path.join(directory, name)
                try: os.close(os.open(path, os.O_WRONLY))
                except OSError: continue
                opened.append(path)
        say(opened)
        say(attempt(open, "/proc/sysrq-trigger", "w"), attempt(os.open, "/proc/sys", 2))
        """
    )
    assert lines[0] == "[]"
    assert "ok" not in lines[1].split()


async def test_masked_files_of_the_kernel_say_nothing(ground: Ground):
    """Memory, symbols, keys, modules and the like are empty or absent."""
    lines = await ground.run(
        f"""
        for path in {MASKED!r}:
            try: content = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(64)
            except FileNotFoundError: continue
            except OSError as error: content = None
            if content: say(path, content)
        say("done")
        """
    )
    assert lines == ["done"]


async def test_nothing_in_sys_can_be_written(ground: Ground):
    """Every file is tried, as root; there is no control group file at all."""
    lines = await ground.run(
        """
        opened, seen, groups = [], 0, []
        for directory, names, files in os.walk("/sys"):
            for name in files:
                seen += 1
                if name.startswith(("cgroup.", "memory.", "pids.")): groups.append(name)
                path = os.path.join(directory, name)
                try: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                except OSError: continue
                opened.append(path)
        say(opened, groups, seen > 0)
        say([line for line in open("/proc/self/mounts") if line.split()[2].startswith("cgroup")])
        say({line.rsplit(":", 1)[1].strip() for line in open("/proc/self/cgroup")} - {"/"})
        """
    )
    assert lines[0] == "[] [] True"
    assert lines[1] == "[]"
    # v1 hierarchies that are not used for limits show where the daemon is: at the root, or above.
    assert "qubes" not in lines[2]


async def test_an_offline_qube_has_no_interface_but_its_own_loop(ground: Ground):
    """A fresh network namespace; the host's addresses are not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        lines = await ground.run(
            f"""
            import socket
            say([name for _, name in socket.if_nameindex()])
            say(attempt(socket.create_connection, ("127.0.0.1", {port}), 5))
            say(attempt(socket.create_connection, ("192.0.2.1", 80), 5))
            """
        )
    assert lines == ["['lo']", "ECONNREFUSED", "ENETUNREACH"]


# Descriptors, working directory, the agent


async def test_no_descriptor_leaks_into_the_qube(ground: Ground):
    """Only `/dev/null` twice and the error pipe (runc CVE-2024-21626); all of `/proc/1/fd`."""
    lines = await ground.run(
        """
        found = {}
        for name in os.listdir("/proc/self/fd"):
            try: found[int(name)] = os.readlink("/proc/self/fd/" + name)
            except FileNotFoundError: pass
        say(sorted(found), found[0], found[1][:5], found[2][:5])
        for name in found:
            say(attempt(os.open, "../../../../etc/shadow", 0, dir_fd=name))
        """
    )
    assert lines[0] == "[0, 1, 2] /dev/null pipe: pipe:"
    assert "ok" not in lines


async def test_the_working_directory_is_inside_the_root(ground: Ground):
    """No way up from the start (runc CVE-2024-21626, podman CVE-2026-55686)."""
    lines = await ground.run(
        """
        say(os.getcwd(), os.readlink("/proc/self/cwd"), os.readlink("/proc/self/root"))
        inside = os.stat("/")
        os.mkdir("/tmp/deep"); os.chdir("/tmp/deep")
        held = os.open("/", os.O_DIRECTORY)
        os.chroot("/tmp/deep")
        os.fchdir(held)
        for _ in range(50): os.chdir("..")
        os.chroot(".")
        outside = os.stat("/")
        say((inside.st_dev, inside.st_ino) == (outside.st_dev, outside.st_ino))
        """
    )
    assert lines == ["/ / /", "True"]


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


@knows_calls
async def test_no_character_is_pushed_into_a_terminal(ground: Ground):
    """TIOCSTI and TIOCLINUX, also with a dirty upper half (CVE-2017-5226, CVE-2019-10063)."""
    lines = await ground.run(
        f"""
        import fcntl, pty, termios
        ours, theirs = os.openpty()
        for request in (0x5412, 0x541C, 0x5412 | 1 << 32, 0x5412 | 0xFFFFFFFF << 32,
                        0x541C | 7 << 32):
            say(syscall({CALLS["ioctl"]}, theirs, request, b"x"))
        say(len(fcntl.ioctl(theirs, termios.TIOCGWINSZ, bytes(8))), os.isatty(theirs))
        """
    )
    assert lines == ["EPERM"] * 5 + ["8 True"]


@knows_calls
async def test_address_randomisation_stays_on(ground: Ground):
    """Of the personalities only the plain ones can be chosen."""
    lines = await ground.run(
        f"""
        say(syscall({CALLS["personality"]}, 0x0040000), syscall({CALLS["personality"]}, 0x0400000),
            syscall({CALLS["personality"]}, 0xFFFFFFFF))
        """
    )
    assert lines == ["ENOSYS ENOSYS ok"]


# Trees that a qube wrote


@pytest.mark.parametrize("point", ["dev", "proc", "sys", "run", "tmp", "rw", "home"])
@pytest.mark.parametrize("kind", ["absolute", "climbing", "file"])
async def test_a_link_for_a_mount_point_ends_the_start(ground: Ground, point: str, kind: str):
    """A template with a link or a file at a mount point: runc CVE-2025-31133 and -52881."""
    victim = ground.paths.root / "victim"
    victim.mkdir()
    layer = ground.base_layer()
    place = ground.tree(layer) / point
    place.rmdir()
    if kind == "absolute":
        place.symlink_to(victim)
    elif kind == "climbing":
        place.symlink_to(f"../../../../../../../../../../../..{victim}")
    else:
        place.write_text("a file")
    with pytest.raises(EngineError, match=f"`/{point}` in the qube is not a directory"):
        await ground.start(root=Tree("/", (layer,), ground.layer(writable=True)))
    assert list(victim.iterdir()) == []
    assert await ground.left() == []


@pytest.mark.parametrize("point", ["home", "home/user", "usrlocal"])
async def test_a_link_in_the_private_volume_is_not_followed(ground: Ground, point: str):
    """A qube that replaces its home with a link gets nothing of the host bound there."""
    victim = ground.paths.root / "victim"
    (victim / "user").mkdir(parents=True)
    layer = ground.layer()
    place = ground.tree(layer) / point
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(victim)
    with pytest.raises(EngineError, match=f"`/rw/{point}` in the qube is not a directory"):
        await ground.start(private=Tree("/rw", (layer,), ground.layer(writable=True)))
    assert victim.stat().st_uid == 0
    assert [path.name for path in victim.iterdir()] == ["user"]
    assert (victim / "user").stat().st_uid == 0
    assert await ground.left() == []


async def test_a_link_above_our_files_ends_the_start(ground: Ground):
    """A directory template whose `/usr/lib` leads elsewhere: nothing is mounted there."""
    layer = ground.base_layer()
    (ground.tree(layer) / "usr/lib").symlink_to("/etc")
    with pytest.raises(EngineError, match="`/usr/lib` in the qube is not a directory"):
        await ground.start(root=Tree("/", (layer,), ground.layer(writable=True)), host_usr=False)
    assert await ground.left() == []
    assert not [path for path in (ground.tree(layer) / "etc").rglob("*") if "qubes" in path.name]


async def test_fake_kernel_files_in_a_template_are_covered(ground: Ground):
    """Regular files that pose as `/proc` (runc CVE-2019-19921, CVE-2025-52881) are never used."""
    layer = ground.base_layer()
    fake = ground.tree(layer) / "proc/self/attr"
    fake.mkdir(parents=True)
    (fake / "exec").write_text("")
    (ground.tree(layer) / "proc/sys/net/ipv4").mkdir(parents=True)
    (ground.tree(layer) / "proc/sys/net/ipv4/ip_forward").write_text("fake")
    lines = await ground.run(
        "say(open('/proc/sys/net/ipv4/ip_forward').read().strip(), os.statvfs('/proc').f_blocks)",
        root=Tree("/", (layer,), ground.layer(writable=True)),
        forwarding=True,
    )
    assert lines == ["1 0"]
    assert (ground.tree(layer) / "proc/sys/net/ipv4/ip_forward").read_text() == "fake"
    assert (fake / "exec").read_text() == ""


async def test_mount_points_are_made_in_the_qubes_own_layer_only(ground: Ground):
    """A missing mount point appears in the writable layer, owned by the qube: CVE-2024-45310."""
    layer = ground.base_layer()
    (ground.tree(layer) / "srv").rmdir()
    upper = ground.layer(writable=True)
    shared = ground.paths.root / "shared"
    shared.mkdir()
    lines = await ground.run(
        "say(os.stat('/srv').st_uid, os.listdir('/srv'))",
        root=Tree("/", (layer,), upper),
        binds=(Bind(shared, "/srv/deep/shared"),),
    )
    assert lines == ["0 ['deep']"]
    assert (ground.tree(upper) / "srv/deep/shared").stat().st_uid == 0
    assert not (ground.tree(layer) / "srv").exists()
    assert list(shared.iterdir()) == []


async def test_the_pool_is_closed_to_the_ids_of_qubes(ground: Ground):
    """A process that got out with its ids could not walk into the pool (incus CVE-2025-64507)."""
    instance = await ground.start()
    base = instance.uid_base
    assert base >= 0x7000_0000
    assert base % ID_RANGE == 0
    assert ground.paths.pool.stat().st_mode & 0o077 == 0
    code = "import os, sys; os.listdir(sys.argv[1])"
    tried = await asyncio.to_thread(
        subprocess.run,
        [PYTHON, "-I", "-S", "-c", code, str(ground.paths.pool)],
        user=base,
        group=base,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert "PermissionError" in tried.stderr


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
    await asyncio.wait_for(instance.wait(), 20)
    text = instance.messages()
    assert len(instance._untrusted_messages) <= 65_536
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
