"""Properties, features, tags, labels and lists over the socket (sheet `admin-api`, section 2)."""

from __future__ import annotations

import pytest
from admin_daemons import daemon, peopled
from admin_lab import Daemon

__all__ = ["daemon", "peopled"]


async def test_lists_that_clients_need_are_never_empty(daemon: Daemon) -> None:
    """Trap 2: and each line is ended."""
    labels = await daemon.ok("admin.label.List")
    assert labels.startswith("red\norange\n")
    assert labels.endswith("black\n")
    pools = await daemon.ok("admin.pool.List")
    assert pools.endswith("\n")
    for pool in pools.splitlines():
        info = await daemon.ok(f"admin.pool.Info+{pool}")
        assert "driver=" in info
        assert info.endswith("\n")


async def test_list_of_one_qube_is_one_line_of_words(peopled: Daemon) -> None:
    """Traps 2 and 3: `NAME class=… state=… uuid=…`, no spaces in values."""
    line = await peopled.ok("admin.vm.List", "work")
    assert line.count("\n") == 1
    name, *words = line.split()
    assert name == "work"
    assert [word.partition("=")[0] for word in words] == ["class", "state", "uuid"]


async def test_all_qubes_are_listed_the_admin_qube_first(peopled: Daemon) -> None:
    """Then by name."""
    lines = (await peopled.ok("admin.vm.List")).splitlines()
    assert [line.split()[0] for line in lines] == ["dom0", "base", "tpl", "work"]


async def test_property_forms(peopled: Daemon) -> None:
    """Traps 4, 5 and section 2.2: no value is empty, booleans are capitalised, and so on."""
    get = "admin.vm.property.Get+"
    assert await peopled.ok(get + "backup_timestamp", "work") == "default=True type=int "
    assert await peopled.ok(get + "netvm", "work") == "default=True type=vm "
    assert await peopled.ok(get + "template", "work") == "default=False type=vm tpl"
    assert await peopled.ok(get + "label", "work") == "default=False type=label blue"
    await peopled.ok("admin.vm.property.Set+debug", "work", b"yEs")
    assert await peopled.ok(get + "debug", "work") == "default=False type=bool True"
    await peopled.ok("admin.vm.property.Reset+debug", "work")
    assert await peopled.ok(get + "debug", "work") == "default=True type=bool False"
    assert await peopled.ok("admin.vm.property.GetDefault+debug", "work") == "type=bool False"
    assert await peopled.ok("admin.vm.property.GetDefault+label", "work") == ""
    assert (await peopled.ok("admin.vm.property.Help+debug", "work")).isascii()
    assert await peopled.ok("admin.property.Get+default_template") == "default=False type=vm tpl"


async def test_all_properties_in_one_answer(peopled: Daemon) -> None:
    """Section 2.2: one line each, what single calls would say, escaped."""
    names = (await peopled.ok("admin.vm.property.List", "work")).splitlines()
    lines = (await peopled.ok("admin.vm.property.GetAll", "work")).splitlines()
    assert [line.split(" ")[0] for line in lines] == names
    for line in lines:
        name, _, text = line.partition(" ")
        assert text == await peopled.ok(f"admin.vm.property.Get+{name}", "work")


@pytest.mark.parametrize(
    ("method", "payload", "error"),
    [
        ("Get+nosuch", b"", "QubesNoSuchPropertyError"),
        ("Set+nosuch", b"", "QubesNoSuchPropertyError"),
        ("Set+name", b"other", "QubesNoSuchPropertyError"),
        ("Set+xid", b"1", "QubesPropertyValueError"),
        ("Set+debug", b"maybe", "QubesValueError"),
        ("Set+memory", b"many", "QubesValueError"),
        ("Set+netvm", b"nosuch", "QubesPropertyValueError"),
        ("Set+label", b"nosuch", "QubesLabelNotFoundError"),
        ("Set+kernelopts", b"\xc3\xa4", "QubesValueError"),
    ],
)
async def test_refused_properties(peopled: Daemon, method: str, payload: bytes, error: str) -> None:
    """Trap 7 and section 2.2: the type of the refusal decides what clients do next."""
    assert await peopled.refused(f"admin.vm.property.{method}", "work", payload) == error


async def test_reset_of_a_computed_property_is_no_error(peopled: Daemon) -> None:
    """Clones of qubes reset everything."""
    assert await peopled.ok("admin.vm.property.Reset+xid", "work") == ""


async def test_label_colours_are_hexadecimal_numbers(daemon: Daemon) -> None:
    """Trap 6: `0xrrggbb`, never `#rrggbb`."""
    await daemon.ok("admin.label.Create+mint", payload=b"0xAABBCC")
    assert await daemon.ok("admin.label.Get+mint") == "0xaabbcc"
    assert await daemon.ok("admin.label.Index+mint") == "9"
    await daemon.ok("admin.label.Remove+mint")
    assert await daemon.refused("admin.label.Get+mint") == "QubesLabelNotFoundError"


async def test_features_and_tags(peopled: Daemon) -> None:
    """Trap 7 and section 2.3: missing ones have their own errors; empty is a value."""
    assert await peopled.refused("admin.vm.feature.Get+x", "work") == "QubesFeatureNotFoundError"
    await peopled.ok("admin.vm.feature.Set+x", "tpl", b"of the template")
    assert await peopled.ok("admin.vm.feature.CheckWithTemplate+x", "work") == "of the template"
    await peopled.ok("admin.vm.feature.Set+x", "work")
    assert await peopled.ok("admin.vm.feature.CheckWithTemplate+x", "work") == ""
    assert await peopled.ok("admin.vm.feature.List", "work") == "x\n"
    assert await peopled.refused("admin.vm.feature.Set+x", "work", b"a\nb") == "ProtocolError"
    assert await peopled.refused("admin.vm.feature.Set+a,b", "work") == "ProtocolError"
    assert await peopled.refused("admin.vm.tag.Remove+x", "work") == "QubesTagNotFoundError"
    assert await peopled.refused("admin.vm.tag.Set+x.y", "work") == "QubesInvalidTagError"
    await peopled.ok("admin.vm.tag.Set+b", "work")
    await peopled.ok("admin.vm.tag.Set+a", "work")
    await peopled.ok("admin.vm.tag.Set+a", "work")
    tags = (await peopled.ok("admin.vm.tag.List", "work")).splitlines()
    assert tags == sorted(tags)
    assert {"a", "b", "created-by-dom0"} <= set(tags)
    assert await peopled.ok("admin.vm.tag.Get+a", "work") == "1"
    assert await peopled.ok("admin.vm.tag.Get+c", "work") == "0"


async def test_volumes(peopled: Daemon) -> None:
    """Section 2.5: the rows and their order."""
    assert await peopled.ok("admin.vm.volume.List", "work") == "root\nprivate\nvolatile\nkernel\n"
    assert await peopled.ok("admin.vm.volume.List") == ""
    info = dict(
        line.split("=", 1)
        for line in (await peopled.ok("admin.vm.volume.Info+root", "work")).splitlines()
    )
    assert list(info)[:7] == ["pool", "vid", "size", "usage", "rw", "source", "path"]
    assert info["source"] == "vm-templates/tpl/root"
    assert (info["snap_on_start"], info["save_on_stop"]) == ("True", "False")


# --- methods of our own --------------------------------------------------------------------


async def test_bulk_list_tells_properties_of_all_qubes(peopled: Daemon) -> None:
    """One call instead of one a qube; what a class does not have is left out."""
    import json  # noqa: PLC0415

    found = json.loads(await peopled.ok("caisson.vm.List+label+netvm+template+.tags"))
    work = next(qube for qube in found if qube["name"] == "work")
    assert work["properties"] == {"label": "blue", "netvm": None, "template": "tpl"}
    assert "created-by-dom0" in work["tags"]
    dom0 = found[0]
    assert (dom0["name"], dom0["properties"]) == ("dom0", {"label": "black"})
    assert await peopled.refused("caisson.vm.List+no;such") == "QubesValueError"
