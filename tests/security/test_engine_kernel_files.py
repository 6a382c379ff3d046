"""Attacks from inside a qube on devices, `/proc`, `/sys` and control groups.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import pytest
from grounds.engine import Ground

from caisson.engines import Tree
from caisson.engines.oci.spec import MASKED

pytestmark = pytest.mark.root


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
