"""Pools over the Admin API (sheet `admin-api`, section 2.6)."""

from __future__ import annotations

from pathlib import Path

from admin_lab import Daemon
from volume_lab import MACHINE, daemon, info

from caisson.storage import Pool

__all__ = ["daemon"]


async def test_pools_and_drivers(daemon: Daemon) -> None:
    """Section 2.6 and trap 2: lines with what clients look for, sorted where the sheet says so."""
    assert await daemon.ok("admin.pool.List") == "varlibqubes\nhost\nlinux-kernel\n"
    drivers = (await daemon.ok("admin.pool.ListDrivers")).splitlines()
    assert all(" " in line for line in drivers)
    names = {line.split(" ")[0] for line in drivers}
    for pool in ("varlibqubes", "host", "linux-kernel"):
        lines = (await daemon.ok(f"admin.pool.Info+{pool}")).splitlines()
        assert lines == sorted(lines)
        facts = dict(line.split("=", 1) for line in lines)
        assert facts["name"] == pool
        assert facts["driver"] in names
        assert {"revisions_to_keep", "ephemeral_volatile"} <= facts.keys()


async def test_usage_of_a_pool(daemon: Daemon) -> None:
    """Bytes of the disk; nothing where there is none to measure."""
    usage = await daemon.ok("admin.pool.UsageDetails+varlibqubes")
    assert usage == "data_size=1000\ndata_usage=10\n"
    assert await daemon.ok("admin.pool.UsageDetails+linux-kernel") == ""


def test_space_of_a_pool_is_that_of_its_disk(tmp_path: Path) -> None:
    """Used is what is not free, reserved blocks included."""
    import os  # noqa: PLC0415 - what it is compared with

    size, used = Pool(tmp_path / "pool").space()
    found = os.statvfs(tmp_path)
    assert size == found.f_blocks * found.f_frsize
    assert 0 < used <= size


async def test_volumes_of_a_pool(daemon: Daemon) -> None:
    """By their names in it."""
    lines = (await daemon.ok("admin.pool.volume.List+varlibqubes")).splitlines()
    assert lines == sorted(lines)
    assert "appvms/work/private" in lines
    assert "vm-templates/tpl/private" in lines
    await daemon.ok("admin.vm.CreateInPool.TemplateVM", payload=MACHINE)
    assert await daemon.ok("admin.pool.volume.List+host") == "vm-templates/machine/root\n"
    assert await daemon.ok("admin.pool.volume.List+linux-kernel") == ""


async def test_setting_of_a_pool_is_for_new_volumes(daemon: Daemon) -> None:
    """Section 2.6: those that are there keep theirs, and what is thrown away keeps none."""
    assert await daemon.ok("admin.pool.Set.revisions_to_keep+varlibqubes", payload=b"4") == ""
    assert "revisions_to_keep=4\n" in await daemon.ok("admin.pool.Info+varlibqubes")
    await daemon.ok("admin.vm.Create.AppVM", payload=b"name=new label=red")
    assert (await info(daemon, "new"))["revisions_to_keep"] == "4"
    assert (await info(daemon, "new", "root"))["revisions_to_keep"] == "0"
    assert (await info(daemon, "new", "volatile"))["revisions_to_keep"] == "0"
    assert (await info(daemon, "work"))["revisions_to_keep"] == "1"
    assert await daemon.ok("admin.pool.Set.ephemeral_volatile+varlibqubes", payload=b"no") == ""


REFUSED_CALLS = [
    ("Info+nosuch", b"", "PermissionDenied"),
    ("UsageDetails+nosuch", b"", "PermissionDenied"),
    ("volume.List+nosuch", b"", "PermissionDenied"),
    ("Remove+nosuch", b"", "PermissionDenied"),
    ("Set.revisions_to_keep+nosuch", b"1", "PermissionDenied"),
    ("Set.ephemeral_volatile+nosuch", b"no", "PermissionDenied"),
    ("Info", b"", "ProtocolError"),
    ("Remove+varlibqubes", b"", "QubesPoolInUseError"),
    ("Remove+host", b"", "QubesPoolInUseError"),
    ("Remove+linux-kernel", b"", "QubesPoolInUseError"),
    ("Set.revisions_to_keep+varlibqubes", b"-2", "ProtocolError"),
    ("Set.revisions_to_keep+varlibqubes", b"", "ProtocolError"),
    ("Set.revisions_to_keep+varlibqubes", b"1.5", "ProtocolError"),
    ("Set.revisions_to_keep+host", b"1", "StoragePoolException"),
    ("Set.ephemeral_volatile+varlibqubes", b"perhaps", "ProtocolError"),
    ("Set.ephemeral_volatile+varlibqubes", b"yes", "QubesNotImplementedError"),
    ("Add+nosuch", b"name=x\n", "PermissionDenied"),
    ("Add+layers", b"", "ProtocolError"),
    ("Add+layers", b"dir_path=/x\n", "ProtocolError"),
    ("Add+layers", b"name=x\nname=x\n", "ProtocolError"),
    ("Add+layers", b"name=x\nnonsense\n", "ProtocolError"),
    ("Add+layers", b"name=x y\ndir_path=/x\n", "ProtocolError"),
    ("Add+layers", b"name=x\nvolume_group=v\n", "ProtocolError"),
    ("Add+layers", b"name=\xc3\xa4\n", "ProtocolError"),
    ("Add+layers", b"name=x\ndir_path=/x\nrevisions_to_keep=-2\n", "ProtocolError"),
    ("Add+layers", b"name=x\ndir_path=here\n", "QubesValueError"),
    ("Add+layers", b"name=x\n", "QubesException"),
    ("Add+layers", b"name=host\ndir_path=/x\n", "QubesPoolInUseError"),
    ("Add+layers", b"name=x\ndir_path=/x\n", "QubesNotImplementedError"),
]


async def test_refused_calls_about_pools(daemon: Daemon) -> None:
    """Section 2.6: malformed, unknown, incomplete, taken; in this order."""
    for method, payload, error in REFUSED_CALLS:
        assert await daemon.refused(f"admin.pool.{method}", payload=payload) == error
        assert await daemon.ok("admin.pool.List") == "varlibqubes\nhost\nlinux-kernel\n"
