"""Clones of volumes and their tokens (sheet `admin-api`, sections 2.5 and 7.3)."""

from __future__ import annotations

from admin_lab import Daemon
from volume_lab import MACHINE, SIZE, News, content, daemon, info, known, on_disk, volume, write

from caisson.admin.copy_tokens import MOST

__all__ = ["daemon"]


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
