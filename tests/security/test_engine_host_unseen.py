"""Attacks from inside a qube on what is the machine's: files, processes, sockets, descriptors.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess

import pytest
from grounds.engine import PYTHON, Ground

from caisson.engines import ID_RANGE

pytestmark = pytest.mark.root


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


# Descriptors, working directory


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
