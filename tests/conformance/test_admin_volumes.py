"""Volumes: told about, reverted, cleared, imported (sheet `admin-api`, sections 2.5 and 7.2)."""

from __future__ import annotations

from dataclasses import replace

from admin_lab import Daemon
from volume_lab import MACHINE, SIZE, News, content, daemon, info, known, on_disk, volume, write

from caisson.admin.registry import Door
from caisson.storage import Pool

__all__ = ["daemon"]

INFO = [
    "pool",
    "vid",
    "size",
    "usage",
    "rw",
    "source",
    "path",
    "save_on_stop",
    "snap_on_start",
    "revisions_to_keep",
    "ephemeral",
    "is_outdated",
]


# --- looking -------------------------------------------------------------------------------


async def test_info_has_exactly_these_rows(daemon: Daemon) -> None:
    """Section 2.5: the bytes of a private and of a borrowed volume."""
    own, borrowed = await info(daemon, "work"), await info(daemon, "work", "root")
    assert list(own) == list(borrowed) == INFO
    assert int(own.pop("usage")) > 0
    assert list(own.values()) == [
        "varlibqubes",
        "appvms/work/private",
        str(SIZE),
        "True",
        "",
        "",
        "True",
        "False",
        "1",
        "False",
        "False",
    ]
    assert borrowed["source"] == "vm-templates/tpl/root"
    assert (borrowed["usage"], borrowed["save_on_stop"], borrowed["snap_on_start"]) == (
        "0",
        "False",
        "True",
    )
    kernel = await info(daemon, "work", "kernel")
    assert (kernel["pool"], kernel["rw"]) == ("linux-kernel", "False")


async def test_disposable_borrows_from_where_an_original_is(daemon: Daemon) -> None:
    """Section 7.2: root of the template's template, private of the template; sizes follow."""
    name = await daemon.ok("admin.vm.CreateDisposable", "base")
    assert (await info(daemon, name, "root"))["source"] == "vm-templates/tpl/root"
    assert (await info(daemon, name))["source"] == "appvms/base/private"
    await daemon.ok("admin.vm.volume.Resize+private", "base", str(SIZE * 2).encode())
    assert (await info(daemon, name))["size"] == str(SIZE * 2)


async def test_borrowed_volume_is_outdated_once_its_source_has_changed(daemon: Daemon) -> None:
    """Only while its qube runs: the next start takes the new content."""
    name = await daemon.ok("admin.vm.Create.DispVM+base", payload=b"name=disp label=red")
    assert name == ""
    await daemon.ok("admin.vm.Start", "disp")
    assert (await info(daemon, "disp"))["is_outdated"] == "False"
    await write(daemon, "base", "news", "x")
    assert (await info(daemon, "disp"))["is_outdated"] == "True"
    assert (await info(daemon, "disp", "root"))["is_outdated"] == "False"
    await daemon.ok("admin.vm.Shutdown+wait", "disp")
    assert (await info(daemon, "disp"))["is_outdated"] == "False"


ALL_METHODS = [
    "Info",
    "ListSnapshots",
    "Clear",
    "CloneFrom",
    "Revert",
    "Resize",
    "CloneTo",
    "Set.rw",
    "Set.ephemeral",
    "Set.revisions_to_keep",
    "Import",
    "ImportWithSize",
]


async def test_volume_that_is_not_there_is_refused_by_every_method(daemon: Daemon) -> None:
    """Section 2: also on the admin qube, which has none."""
    for method in ALL_METHODS:
        payload = b"" if method in {"Info", "ListSnapshots", "Clear", "CloneFrom"} else b"1"
        for name, of in (("work", "nosuch"), ("work", "Private"), ("dom0", "root")):
            found = await daemon.refused(f"admin.vm.volume.{method}+{of}", name, payload)
            assert found == "PermissionDenied"
        assert await daemon.refused(f"admin.vm.volume.{method}", "work", payload) == "ProtocolError"


# --- revert, clear -------------------------------------------------------------------------


async def test_revert_goes_back_and_forth(daemon: Daemon) -> None:
    """Each present state becomes a revision, so that nothing is lost by going back."""
    await write(daemon, "work", "a", "first")
    await write(daemon, "work", "a", "second")
    assert await daemon.ok("admin.vm.volume.ListSnapshots+private", "work") == "2\n"
    assert await daemon.ok("admin.vm.volume.Revert+private", "work", b"2") == ""
    assert content(daemon, "work") == {"a": "first"}
    assert await daemon.ok("admin.vm.volume.ListSnapshots+private", "work") == "3\n"
    await daemon.ok("admin.vm.volume.Revert+private", "work", b"3")
    assert content(daemon, "work") == {"a": "second"}
    assert on_disk(daemon) == known(daemon)


REFUSED_REVERTS = [
    ("private", b"", "ProtocolError"),
    ("private", b"a b", "ProtocolError"),
    ("private", b"../1", "ProtocolError"),
    ("private", b"1\n", "ProtocolError"),
    ("private", b"\xc3\xa4", "ProtocolError"),
    ("private", b"99", "StoragePoolException"),
    ("root", b"1", "StoragePoolException"),
    ("kernel", b"1", "StoragePoolException"),
]


async def test_refused_reverts(daemon: Daemon) -> None:
    """Section 2.5: characters, unknown revisions, volumes without any."""
    for of, payload, error in REFUSED_REVERTS:
        await write(daemon, "work", "a", "first")
        before = volume(daemon, "work")
        assert await daemon.refused(f"admin.vm.volume.Revert+{of}", "work", payload) == error
        assert volume(daemon, "work") == before


async def test_clear_makes_a_private_volume_like_new(daemon: Daemon) -> None:
    """At the same size; what was in it is a revision, and listeners are told."""
    await write(daemon, "work", "a", "first")
    await daemon.ok("admin.vm.volume.Resize+private", "work", str(SIZE + 1).encode())
    news = News(daemon)
    assert await daemon.ok("admin.vm.volume.Clear+private", "work") == ""
    assert news.take() == [
        ("work", "domain-volume-import-begin", [("volume", "private"), ("size", str(SIZE + 1))]),
        ("work", "domain-volume-import-end", [("volume", "private"), ("success", "True")]),
    ]
    assert content(daemon, "work") == {}
    assert (await info(daemon, "work"))["size"] == str(SIZE + 1)
    home = daemon.paths.pool / volume(daemon, "work").layers[0] / "d/home/user"
    assert home.is_dir()
    await daemon.ok("admin.vm.volume.Revert+private", "work", b"2")
    assert content(daemon, "work") == {"a": "first"}
    assert on_disk(daemon) == known(daemon)


async def test_cleared_root_waits_for_content(daemon: Daemon) -> None:
    """A template without a system does not start; going back helps."""
    await daemon.ok("admin.vm.Create.TemplateVM", payload=b"name=own label=black")
    layer = Pool(daemon.paths.pool).new_layer()
    Pool(daemon.paths.pool).seal(layer)
    qube = daemon.qubes.system.qube("own")
    state = replace(volume(daemon, "own", "root"), layers=(layer,))
    await daemon.qubes.commit(daemon.qubes.system.plan_volume(qube, state))
    await daemon.ok("admin.vm.volume.Clear+root", "own")
    assert await daemon.refused("admin.vm.Start", "own") == "StoragePoolException"
    await daemon.ok("admin.vm.volume.Revert+root", "own", b"1")
    await daemon.ok("admin.vm.Start", "own")
    assert await daemon.refused("admin.vm.volume.Clear+root", "own") == "QubesVMNotHaltedError"


NOT_CLEARED = [("work", "root"), ("work", "volatile"), ("work", "kernel"), ("machine", "root")]


async def test_what_keeps_no_content_of_its_own_is_not_cleared(daemon: Daemon) -> None:
    """Snapshots, what is thrown away, kernels, and the machine's own directories."""
    await daemon.ok("admin.vm.CreateInPool.TemplateVM", payload=MACHINE)
    for name, of in NOT_CLEARED:
        before = volume(daemon, name, of)
        assert await daemon.refused(f"admin.vm.volume.Clear+{of}", name) == "StoragePoolException"
        assert volume(daemon, name, of) == before


async def test_volume_in_use_is_left_alone(daemon: Daemon) -> None:
    """Whatever would take layers from under a running or a paused qube."""
    await write(daemon, "work", "a", "first")
    token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "other")).encode()
    await daemon.ok("admin.vm.Start", "work")
    for _ in range(2):
        before = volume(daemon, "work")
        for method, payload, error in (
            ("Revert", b"1", "StoragePoolException"),
            ("Clear", b"", "QubesVMNotHaltedError"),
            ("CloneTo", token, "QubesVMNotHaltedError"),
            ("Set.rw", b"False", "QubesVMNotHaltedError"),
            ("Import", b"", "QubesVMNotHaltedError"),
        ):
            found = await daemon.refused(f"admin.vm.volume.{method}+private", "work", payload)
            assert found == error
            token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "other")).encode()
        assert volume(daemon, "work") == before
        await daemon.ask("admin.vm.Pause", "work")


# --- import --------------------------------------------------------------------------------


async def test_import_says_what_is_missing(daemon: Daemon) -> None:
    """After every other reason to refuse it, on both sockets."""
    refused = "QubesNotImplementedError"
    assert await daemon.refused("admin.vm.volume.Import+private", "work", b"data") == refused
    found = await daemon.refused("admin.vm.volume.ImportWithSize+private", "work", b"4\ndata")
    assert found == refused
    found = await daemon.refused("admin.vm.volume.ImportWithSize+private", "work", b"x\ndata")
    assert found == "ProtocolError"
    assert await daemon.refused("admin.vm.volume.Import+root", "work") == "StoragePoolException"


REFUSED_IMPORTS = [
    ("ImportBegin+private", b"", "QubesNotImplementedError"),
    ("ImportBegin+private", b"100", "QubesNotImplementedError"),
    ("ImportBegin+private", b"x", "ProtocolError"),
    ("ImportBegin+nosuch", b"", "ProtocolError"),
    ("ImportBegin+root", b"", "StoragePoolException"),
    ("ImportEnd+private", b"ok", "QubesNotImplementedError"),
    ("ImportEnd+private", b"fail\nno disk", "QubesNotImplementedError"),
    ("ImportEnd+private", b"perhaps", "ProtocolError"),
    ("ImportEnd+private", b"", "ProtocolError"),
]


async def test_import_on_the_internal_socket(daemon: Daemon) -> None:
    """Section 1.6: the methods are for trusted programs only."""
    for service, payload, error in REFUSED_IMPORTS:
        raw = f"internal.vm.volume.{service} dom0 name work".encode() + b"\0" + payload
        reply = await daemon.send(raw, door=Door.INTERNAL)
        assert reply.split(b"\0")[:2] == [b"2", error.encode()]
        assert (await daemon.send(raw)).startswith(b"2\0ProtocolError\0")
