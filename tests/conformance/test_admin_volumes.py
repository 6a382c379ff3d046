"""Volumes and pools over the Admin API (sheet `admin-api`, sections 2.5, 2.6, 7.2 and 7.3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon

from caisson.admin import Services
from caisson.admin.copy_tokens import MOST
from caisson.admin.registry import Door
from caisson.model import VolumeState
from caisson.names import VolumeName
from caisson.storage import Pool

SIZE = 2 << 30
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


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with `tpl`, `work`, `base` and `other`, a second AppVM."""
    services = Services(
        layer_usage=lambda layer: Pool(tmp_path / "var/lib/qubes/pool").usage(layer),
        pool_space=lambda name: (1000, 10) if name == "varlibqubes" else None,
    )
    async with running_daemon(tmp_path, services=services) as running:
        await running.populate()
        await running.ok("admin.vm.Create.AppVM", payload=b"name=other label=red")
        yield running


def volume(daemon: Daemon, name: str, of: str = "private") -> VolumeState:
    """What the daemon knows of a volume."""
    return daemon.qubes.system.qube(name).volumes[VolumeName(of)]


async def info(daemon: Daemon, name: str, of: str = "private") -> dict[str, str]:
    """What the daemon tells of a volume."""
    lines = (await daemon.ok(f"admin.vm.volume.Info+{of}", name)).splitlines()
    return dict(line.split("=", 1) for line in lines)


async def write(daemon: Daemon, name: str, file: str, text: str) -> None:
    """Let a qube run once and write a file into its private volume."""
    await daemon.ok("admin.vm.Start", name)
    instance = next(i for i in daemon.engine.running.values() if i.name == name)
    assert instance.spec.private is not None
    assert instance.spec.private.upper is not None
    (daemon.paths.pool / instance.spec.private.upper / "d" / file).write_text(text)
    await daemon.ok("admin.vm.Shutdown+wait", name)


def content(daemon: Daemon, name: str) -> dict[str, str]:
    """The files at the top of a private volume that `write` left."""
    files: dict[str, str] = {}
    for layer in reversed(volume(daemon, name).layers):
        tree = daemon.paths.pool / layer / "d"
        files |= {each.name: each.read_text() for each in tree.iterdir() if each.is_file()}
    return files


def on_disk(daemon: Daemon) -> set[str]:
    """Every layer that is there."""
    return {each.name for each in daemon.paths.pool.iterdir() if not each.name.startswith(".")}


def known(daemon: Daemon) -> set[str]:
    """Every layer that some volume needs."""
    from caisson.storage import layers_of  # noqa: PLC0415 - what it is compared with

    qubes = daemon.qubes.system.qubes.values()
    return layers_of(state for qube in qubes for state in qube.volumes.values())


class News:
    """What listeners of the daemon are told, from now on."""

    def __init__(self, daemon: Daemon) -> None:
        self._heard = daemon.qubes.events.subscribe()

    def take(self) -> list[tuple[str | None, str, list[tuple[str, str]]]]:
        """The events since the last look."""
        events = self._heard.take()
        return [(event.subject, event.name, list(event.kwargs.items())) for event in events]


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


MACHINE = b"name=machine label=black pool:root=host"
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


# --- clone ---------------------------------------------------------------------------------


async def test_clone_shares_layers_and_takes_the_size(daemon: Daemon) -> None:
    """Constant time: no layer is made; both go their own ways from then on."""
    await write(daemon, "work", "a", "mine")
    await daemon.ok("admin.vm.volume.Resize+private", "work", str(SIZE + 7).encode())
    before = on_disk(daemon)
    token = await daemon.ok("admin.vm.volume.CloneFrom+private", "work")
    assert len(token) == 32
    assert token.isascii()
    news = News(daemon)
    assert await daemon.ok("admin.vm.volume.CloneTo+private", "other", token.encode()) == ""
    assert news.take() == [
        (
            "other",
            "domain-import-volume",
            [("name", "private"), ("source", "appvms/work/private")],
        )
    ]
    assert on_disk(daemon) == before
    assert volume(daemon, "other").layers == volume(daemon, "work").layers
    assert (await info(daemon, "other"))["size"] == str(SIZE + 7)
    await write(daemon, "other", "b", "theirs")
    await write(daemon, "work", "a", "changed")
    assert content(daemon, "other") == {"a": "mine", "b": "theirs"}
    assert content(daemon, "work") == {"a": "changed"}
    await daemon.ok("admin.vm.Remove", "work")
    assert content(daemon, "other") == {"a": "mine", "b": "theirs"}
    assert on_disk(daemon) == known(daemon)


async def test_clone_of_a_running_qube_is_what_its_last_shutdown_left(daemon: Daemon) -> None:
    """Unless its volume allows no snapshots."""
    await write(daemon, "work", "a", "kept")
    await daemon.ok("admin.vm.Start", "work")
    token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
    await daemon.ok("admin.vm.volume.CloneTo+private", "other", token)
    assert content(daemon, "other") == {"a": "kept"}
    await daemon.ok("admin.vm.Shutdown+wait", "work")
    await daemon.ok("admin.vm.volume.Set.revisions_to_keep+private", "work", b"-1")
    await daemon.ok("admin.vm.Start", "work")
    token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
    found = await daemon.refused("admin.vm.volume.CloneTo+private", "other", token)
    assert found == "QubesVMNotHaltedError"


async def test_root_of_the_machine_is_cloned_as_what_it_is(daemon: Daemon) -> None:
    """The clone shows the machine's directories too, from the pool that does; and back again."""
    await daemon.ok("admin.vm.CreateInPool.TemplateVM", payload=MACHINE)
    await daemon.ok("admin.vm.Create.TemplateVM", payload=b"name=own label=black")
    token = (await daemon.ok("admin.vm.volume.CloneFrom+root", "machine")).encode()
    await daemon.ok("admin.vm.volume.CloneTo+root", "own", token)
    found = await info(daemon, "own", "root")
    assert (found["pool"], found["revisions_to_keep"]) == ("host", "0")
    assert volume(daemon, "own", "root").layers == volume(daemon, "machine", "root").layers
    await daemon.ok("admin.vm.Start", "own")


async def test_the_machines_directories_never_replace_private_data(daemon: Daemon) -> None:
    """A slip in the name of a volume must not cost a home directory."""
    await daemon.ok("admin.vm.CreateInPool.TemplateVM", payload=MACHINE)
    before = volume(daemon, "work", "private")
    token = (await daemon.ok("admin.vm.volume.CloneFrom+root", "machine")).encode()
    found = await daemon.refused("admin.vm.volume.CloneTo+private", "work", token)
    assert found == "StoragePoolException"
    assert volume(daemon, "work", "private") == before


async def test_kernels_are_cloned_without_doing_anything(daemon: Daemon) -> None:
    """Section 7.3: they are not the qubes' own; but nothing else fits in."""
    token = (await daemon.ok("admin.vm.volume.CloneFrom+kernel", "work")).encode()
    before = volume(daemon, "other", "kernel")
    await daemon.ok("admin.vm.volume.CloneTo+kernel", "other", token)
    assert volume(daemon, "other", "kernel") == before
    for source, target in (("kernel", "private"), ("private", "kernel"), ("volatile", "private")):
        token = (await daemon.ok(f"admin.vm.volume.CloneFrom+{source}", "work")).encode()
        found = await daemon.refused(f"admin.vm.volume.CloneTo+{target}", "other", token)
        assert found == "StoragePoolException"


async def test_clone_into_what_is_not_kept_is_refused(daemon: Daemon) -> None:
    """A snapshot has the content of its source."""
    for of in ("root", "volatile"):
        token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
        found = await daemon.refused(f"admin.vm.volume.CloneTo+{of}", "other", token)
        assert found == "StoragePoolException"


UNKNOWN = "QubesVolumeCopyTokenNotFoundError"


async def test_token_is_good_once_even_if_the_copy_fails(daemon: Daemon) -> None:
    """Section 2.5; white space around it does not matter."""
    clone = "admin.vm.volume.CloneTo+private"
    token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
    await daemon.ok(clone, "other", b"\n " + token + b"\n")
    assert await daemon.refused(clone, "other", token) == UNKNOWN
    token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
    found = await daemon.refused("admin.vm.volume.CloneTo+root", "other", token)
    assert found == "StoragePoolException"
    assert await daemon.refused(clone, "other", token) == UNKNOWN
    assert await daemon.refused(clone, "other", b"0" * 32) == UNKNOWN
    assert await daemon.refused(clone, "other", b"\xff") == "ProtocolError"
    token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
    await daemon.ok("admin.vm.Remove", "work")
    assert await daemon.refused(clone, "other", token) == "QubesVMNotFoundError"


async def test_token_is_good_for_its_caller_alone(daemon: Daemon) -> None:
    """Nobody copies with the right of somebody else, nor takes a token away from them."""
    daemon.policy.text = "admin.vm.volume.CloneTo * base base allow target=dom0\n"
    token = (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
    reply = await daemon.ask("admin.vm.volume.CloneTo+private", "base", token, source="base")
    assert reply.split(b"\0")[1].decode() == UNKNOWN
    await daemon.ok("admin.vm.volume.CloneTo+private", "base", token)


async def test_callers_cannot_pile_up_tokens(daemon: Daemon) -> None:
    """The oldest one gives way to one more than the limit."""
    tokens = [
        (await daemon.ok("admin.vm.volume.CloneFrom+private", "work")).encode()
        for _ in range(MOST + 1)
    ]
    assert len(set(tokens)) == len(tokens)
    assert await daemon.refused("admin.vm.volume.CloneTo+private", "other", tokens[0]) == UNKNOWN
    for token in tokens[1:]:
        await daemon.ok("admin.vm.volume.CloneTo+private", "other", token)


# --- settings ------------------------------------------------------------------------------


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


# --- pools ---------------------------------------------------------------------------------


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
