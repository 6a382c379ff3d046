"""The powers of a qube's root: capabilities, files that set the user id, options of mounts.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import shutil

import pytest
from grounds.engine import PYTHON, Ground

from caisson.engines import Bind, Tree
from caisson.engines.oci.spec import CAPABILITY_MASK

pytestmark = pytest.mark.root


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
