"""Sizes and settings of volumes (sheet `admin-api`, section 2.5)."""

from __future__ import annotations

from admin_lab import Daemon
from volume_lab import SIZE, daemon, info, known, on_disk, volume, write

__all__ = ["daemon"]

REFUSED_SIZES = [
    ("private", b"", "ProtocolError"),
    ("private", b"x", "ProtocolError"),
    ("private", b"-1", "ProtocolError"),
    ("private", b"+1", "ProtocolError"),
    ("private", b"01", "ProtocolError"),
    ("private", b"1 ", "ProtocolError"),
    ("private", b"1" * 20, "ProtocolError"),
    ("private", b"9" * 19, "ProtocolError"),
    ("private", str(SIZE - 1).encode(), "StoragePoolException"),
    ("root", str(SIZE * 9).encode(), "StoragePoolException"),
    ("kernel", b"1", "StoragePoolException"),
]


async def test_refused_sizes(daemon: Daemon) -> None:
    """Section 2.5: no number, smaller, a snapshot, read-only."""
    for of, payload, error in REFUSED_SIZES:
        before = volume(daemon, "work", of)
        assert await daemon.refused(f"admin.vm.volume.Resize+{of}", "work", payload) == error
        assert volume(daemon, "work", of) == before


async def test_volume_grows_while_its_qube_runs(daemon: Daemon) -> None:
    """And the size is still there after the shutdown, which stores the volume anew."""
    await daemon.ok("admin.vm.Start", "work")
    assert await daemon.ok("admin.vm.volume.Resize+private", "work", str(SIZE).encode()) == ""
    await daemon.ok("admin.vm.volume.Resize+private", "work", b"9223372036854775807")
    await daemon.ok("admin.vm.Shutdown+wait", "work")
    assert (await info(daemon, "work"))["size"] == "9223372036854775807"


async def test_read_only_volume_has_no_writable_layer(daemon: Daemon) -> None:
    """The engine mounts it as such; the qube's other volume is as before."""
    assert await daemon.ok("admin.vm.volume.Set.rw+private", "work", b"off") == ""
    assert (await info(daemon, "work"))["rw"] == "False"
    before = volume(daemon, "work")
    await daemon.ok("admin.vm.Start", "work")
    (instance,) = daemon.engine.running.values()
    assert instance.spec.private is not None
    assert instance.spec.private.upper is None
    assert instance.spec.root.upper is not None
    await daemon.ok("admin.vm.Shutdown+wait", "work")
    assert volume(daemon, "work") == before
    refused = "StoragePoolException"
    assert await daemon.refused("admin.vm.volume.Clear+private", "work") == refused
    assert await daemon.refused("admin.vm.volume.Resize+private", "work", b"1") == refused
    await daemon.ok("admin.vm.volume.Set.rw+private", "work", b"ON")
    await write(daemon, "work", "a", "again")
    assert on_disk(daemon) == known(daemon)


async def test_borrowed_read_only_volume_is_held_while_it_is_read(daemon: Daemon) -> None:
    """Its source may move on and drop the layers: they stay until the qube has stopped."""
    await daemon.ok("admin.vm.volume.Set.revisions_to_keep+private", "base", b"0")
    await daemon.ok("admin.vm.Create.DispVM+base", payload=b"name=disp label=red")
    await daemon.ok("admin.vm.volume.Set.rw+private", "disp", b"no")
    await daemon.ok("admin.vm.Start", "disp")
    borrowed = set(volume(daemon, "disp").layers)
    await daemon.ok("admin.vm.volume.Clear+private", "base")
    assert borrowed <= on_disk(daemon)
    assert (await info(daemon, "disp"))["is_outdated"] == "True"
    await daemon.ok("admin.vm.Shutdown+wait", "disp")
    assert volume(daemon, "disp").layers == ()
    assert not borrowed & on_disk(daemon)


REFUSED_SETTINGS = [
    ("rw", "private", b"", "ProtocolError"),
    ("rw", "private", b"maybe", "ProtocolError"),
    ("rw", "private", b" True", "ProtocolError"),
    ("rw", "kernel", b"True", "StoragePoolException"),
    ("ephemeral", "private", b"2", "ProtocolError"),
    ("ephemeral", "private", b"True", "QubesValueError"),
    ("ephemeral", "root", b"True", "QubesValueError"),
    ("ephemeral", "kernel", b"True", "QubesValueError"),
    ("ephemeral", "volatile", b"True", "QubesNotImplementedError"),
    ("revisions_to_keep", "private", b"", "ProtocolError"),
    ("revisions_to_keep", "private", b"many", "ProtocolError"),
    ("revisions_to_keep", "private", b"-0", "ProtocolError"),
    ("revisions_to_keep", "private", b"-2", "QubesValueError"),
    ("revisions_to_keep", "kernel", b"1", "StoragePoolException"),
]


async def test_refused_settings(daemon: Daemon) -> None:
    """Section 2.5."""
    for setting, of, payload, error in REFUSED_SETTINGS:
        before = volume(daemon, "work", of)
        found = await daemon.refused(f"admin.vm.volume.Set.{setting}+{of}", "work", payload)
        assert found == error
        assert volume(daemon, "work", of) == before


async def test_not_ephemeral_is_what_every_volume_is(daemon: Daemon) -> None:
    """So that setting it is no error."""
    for of in ("root", "private", "volatile", "kernel"):
        assert await daemon.ok(f"admin.vm.volume.Set.ephemeral+{of}", "work", b"False") == ""


async def test_number_of_revisions_counts_from_the_next_commit(daemon: Daemon) -> None:
    """More are kept, then fewer, then none."""
    await daemon.ok("admin.vm.volume.Set.revisions_to_keep+private", "work", b"2")
    for text in ("1", "2", "3"):
        await write(daemon, "work", "a", text)
    assert await daemon.ok("admin.vm.volume.ListSnapshots+private", "work") == "2\n3\n"
    await daemon.ok("admin.vm.volume.Set.revisions_to_keep+private", "work", b"0")
    assert await daemon.ok("admin.vm.volume.ListSnapshots+private", "work") == "2\n3\n"
    await write(daemon, "work", "a", "4")
    assert await daemon.ok("admin.vm.volume.ListSnapshots+private", "work") == ""


async def test_snapshots_are_switched_off_while_nobody_uses_them(daemon: Daemon) -> None:
    """Section 2.5: neither the qube nor a disposable of it may run then."""
    setting = "admin.vm.volume.Set.revisions_to_keep+private"
    await daemon.ok("admin.vm.Start", "base")
    await daemon.ok(setting, "base", b"3")
    assert await daemon.refused(setting, "base", b"-1") == "QubesVMNotHaltedError"
    await daemon.ok("admin.vm.Shutdown+wait", "base")
    name = await daemon.ok("admin.vm.CreateDisposable", "base")
    await daemon.ok("admin.vm.Start", name)
    assert await daemon.refused(setting, "base", b"-1") == "QubesVMNotHaltedError"
    await daemon.ok("admin.vm.Kill", name)
    await daemon.ok(setting, "base", b"-1")
    assert (await info(daemon, "base"))["revisions_to_keep"] == "-1"
    await daemon.ok(setting, "base", b"1")
