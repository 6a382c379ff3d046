"""Control groups of version 2, alone and below a service manager."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from caisson.engines.oci import cgroups, kernel
from caisson.engines.oci.runtime import installed
from caisson.errors import EngineError

pytestmark = pytest.mark.root


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
