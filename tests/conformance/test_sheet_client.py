"""What unmodified commands do, driven by a client that was written from the sheet alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from admin_lab import Daemon, running_daemon
from conformance import sheet_tools as tools
from conformance.sheet_client import (
    UNSET,
    Cache,
    EventStream,
    Refused,
    SheetClient,
    Told,
    over_socket,
)

T = TypeVar("T")
COMPUTED = ("property-reset:xid", "property-reset:stubdom_xid", "property-reset:start_time")


class Desk:
    """The client, in a thread of its own as the daemon lives in this one."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.client = SheetClient(over_socket(daemon.paths.qubesd))

    async def do(self, act: Callable[..., T], *args: object, **more: object) -> T:
        """Run one of the commands."""
        return await asyncio.to_thread(act, self.client, *args, **more)

    async def heard(
        self, act: Callable[..., object], *args: object, dest: str = "dom0", **more: object
    ) -> list[Told]:
        """The events that one of the commands brings about."""

        def listen() -> list[Told]:
            with EventStream(self.daemon.paths.qubesd, dest) as stream:
                act(self.client, *args, **more)
                self.client.call(dest, "admin.vm.feature.Set", "x-heard", "1")
                told = stream.until("domain-feature-set:x-heard")
            return [each for each in told if not each.name.endswith(":x-heard")]

        return await asyncio.to_thread(listen)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A client of a daemon with `tpl`, `work` and `base`."""
    async with running_daemon(tmp_path) as daemon:
        await daemon.populate()
        yield Desk(daemon)


@contextmanager
def refusal(name: str, kind: str) -> Iterator[None]:
    """What is refused with that type, which the client knows as that kind."""
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.name == name
    assert caught.value.is_a(kind)


def names(told: list[Told]) -> list[str]:
    """The events by their names."""
    return [each.name for each in told]


# --- looking ---------------------------------------------------------------------------------


async def test_qvm_ls_shows_every_property_of_every_qube(desk: Desk) -> None:
    """Classes, states and the values that its tables are made of."""
    table = await desk.do(tools.qvm_ls)
    assert {name: (row["class"], row["state"]) for name, row in table.items()} == {
        "dom0": ("AdminVM", "Running"),
        "tpl": ("TemplateVM", "Halted"),
        "work": ("AppVM", "Halted"),
        "base": ("AppVM", "Halted"),
    }
    work = table["work"]
    assert (work["name"], work["label"], work["template"], work["netvm"]) == (
        "work",
        "blue",
        "tpl",
        None,
    )
    assert (work["debug"], work["provides_network"], work["memory"]) == (False, False, 400)
    assert work["backup_timestamp"] is UNSET
    await desk.do(tools.qvm_start, "work")
    named = await desk.do(tools.qvm_ls, "work")
    assert named["work"]["state"] == "Running"


@pytest.mark.parametrize("owner", ["work", "tpl", "dom0", None])
async def test_properties_one_by_one_and_at_once_are_the_same(
    desk: Desk, owner: str | None
) -> None:
    """`qvm-prefs` and `qubes-prefs`: list, get, and help of one paragraph for each."""
    values = await desk.do(tools.prefs, owner)
    for name, value in values.items():
        assert await desk.do(tools.prefs_get, owner, name) == value
    helps = await desk.do(tools.prefs_help, owner)
    assert set(helps) == set(values)
    assert not [name for name, text in helps.items() if not text or "\n" in text]


async def test_a_value_of_two_lines_is_the_same_in_every_answer(desk: Desk) -> None:
    """Line breaks and backslashes survive GetAll (section 2.2)."""
    text = "a\\n b\nc\\\\"
    await desk.do(tools.prefs_set, "work", "kernelopts", text)
    values = await desk.do(tools.prefs, "work")
    # Without a kernel there are no options by default; what is stored is told all the same.
    assert values["kernelopts"].value == text
    assert (await desk.do(tools.prefs_get, "work", "kernelopts")).value == text


async def test_properties_are_set_and_reset(desk: Desk) -> None:
    """`qvm-prefs VM PROP VALUE`, `-D`; the same with `qubes-prefs`."""
    for owner, name, value, told in (
        ("work", "debug", True, True),
        ("work", "memory", 500, 500),
        ("work", "default_dispvm", "base", "base"),
        ("work", "default_dispvm", "None", None),
        ("work", "label", "green", "green"),
        (None, "default_dispvm", "base", "base"),
        (None, "stats_interval", 5, 5),
        (None, "check_updates_vm", False, False),
    ):
        await desk.do(tools.prefs_set, owner, name, value)
        found = await desk.do(tools.prefs_get, owner, name)
        assert (found.default, found.value) == (False, told)
    for owner, name, told in (
        ("work", "debug", False),
        ("work", "memory", 400),
        ("work", "default_dispvm", "base"),
        (None, "default_dispvm", None),
        (None, "stats_interval", 3),
    ):
        await desk.do(tools.prefs_reset, owner, name)
        found = await desk.do(tools.prefs_get, owner, name)
        assert (found.default, found.value) == (True, told)


async def test_what_clients_probe_for_is_refused_as_they_expect(desk: Desk) -> None:
    """Section 4: what a refusal is a kind of decides how the commands go on."""
    with refusal("QubesNoSuchPropertyError", "AttributeError"):
        await desk.do(tools.prefs_get, "tpl", "template")
    with refusal("QubesNoSuchPropertyError", "AttributeError"):
        await desk.do(tools.prefs_set, "work", "qid", 3)
    with refusal("QubesPropertyValueError", "ValueError"):
        await desk.do(tools.prefs_set, "work", "xid", 3)
    with refusal("QubesLabelNotFoundError", "KeyError"):
        await desk.do(tools.prefs_set, "work", "label", "mauve")
    with refusal("QubesTagNotFoundError", "KeyError"):
        await asyncio.to_thread(desk.client.call, "work", "admin.vm.tag.Remove", "x")
    with refusal("QubesVMNotFoundError", "KeyError"):
        await asyncio.to_thread(desk.client.qubes, "nosuch")
    with refusal("QubesVMAlreadyExistsError", "QubesException"):
        await desk.do(tools.qvm_create, "work", "red")


# --- life ------------------------------------------------------------------------------------

CREATED = ["domain-add", "domain-create-on-disk"]
STARTED = [
    "domain-pre-start",
    "domain-verify-files",
    "domain-pre-spawn",
    *COMPUTED,
    "domain-spawn",
    "domain-qdb-create",
    "domain-pre-unpaused",
    "domain-unpaused",
    "domain-start",
]
STOPPED = ["domain-stopped", *COMPUTED, "domain-shutdown"]
REMOVED = ["domain-pre-delete", "domain-delete", "domain-remove-from-disk"]


async def test_a_qube_from_its_creation_to_its_removal(desk: Desk) -> None:
    """Each step tells its events in the order of section 3.3, and the cache of a client follows."""
    cache = Cache()
    props = {"memory": "500", "netvm": ""}
    told = await desk.heard(tools.qvm_create, "new", "red", template="tpl", props=props)
    for each in told:
        cache.hear(each)
    order = [name for name in names(told) if name in CREATED]
    assert order == CREATED
    assert cache.qubes == {"new"}
    sets = [each for each in told if each.name == "property-set:memory"]
    assert sets == [Told("new", "property-set:memory", sets[0].kwargs)]
    assert sets[0].kwargs == {"name": "memory", "newvalue": "500", "oldvalue": "400"}
    for act, args, expected, state in (
        (tools.qvm_start, (), STARTED, "Running"),
        (tools.qvm_pause, (), ["domain-pre-paused", "domain-paused"], "Paused"),
        (tools.qvm_unpause, (), ["domain-pre-unpaused", "domain-unpaused"], "Running"),
        (tools.qvm_shutdown, ("wait",), ["domain-pre-shutdown", *STOPPED], "Halted"),
        (tools.qvm_shutdown, ("wait",), [], "Halted"),
        (tools.qvm_start, (), STARTED, "Running"),
        (tools.qvm_kill, (), STOPPED, "Halted"),
        (tools.qvm_kill, (), [], "Halted"),
    ):
        told = await desk.heard(act, "new", *args)
        assert names(told) == expected
        assert {each.subject for each in told} <= {"new"}
        for each in told:
            cache.hear(each)
        assert cache.states.get("new") == state
        assert (await asyncio.to_thread(desk.client.state, "new")) == state
    told = await desk.heard(tools.qvm_remove, "new")
    assert names(told) == REMOVED
    assert told[1] == Told("", "domain-delete", {"vm": "new"})


async def test_a_start_is_told_with_what_listeners_read_of_it(desk: Desk) -> None:
    """`start_guid` is one and the same; `True` would tell a GUI daemon to keep away."""
    told = {each.name: each.kwargs for each in await desk.heard(tools.qvm_start, "work")}
    assert list(told["domain-pre-start"]) == ["start_guid", "mem_required"]
    guids = {
        told[name].get("start_guid")
        for name in ("domain-pre-start", "domain-pre-spawn", "domain-spawn", "domain-start")
    }
    assert len(guids) == 1
    assert guids.isdisjoint({None, "True"})
    assert told["property-reset:xid"] == {"name": "xid"}


async def test_a_listener_on_one_qube_hears_of_nothing_else(desk: Desk) -> None:
    """The same stream, called on the qube."""
    told = await desk.heard(tools.qvm_start, "work", dest="work")
    assert names(told) == STARTED
    told = await desk.heard(tools.qvm_start, "base", dest="work")
    assert told == []


@pytest.mark.parametrize(
    ("prop", "error"),
    [
        ("netvm", "QubesVMInUseError"),
        ("audiovm", "QubesVMInUseError"),
        ("guivm", "QubesVMError"),
    ],
)
async def test_a_qube_that_running_ones_need_is_shut_down_by_force_only(
    desk: Desk, prop: str, error: str
) -> None:
    """`qvm-shutdown` tries again what is in use, and does not what the GUI needs (section 2.4)."""
    await desk.do(tools.prefs_set, "base", "provides_network", True)
    await desk.do(tools.prefs_set, "work", prop, "base")
    await desk.do(tools.qvm_start, "base")
    await desk.do(tools.qvm_start, "work")
    with refusal(error, "QubesVMError"):
        await desk.do(tools.qvm_shutdown, "base", "wait")
    assert await asyncio.to_thread(desk.client.state, "base") == "Running"
    await desk.do(tools.qvm_shutdown, "base", "force", "wait")
    assert await asyncio.to_thread(desk.client.state, "base") == "Halted"
    await desk.do(tools.qvm_shutdown, "work", "wait")


async def test_a_start_that_fails_is_told_and_leaves_a_halted_qube(desk: Desk) -> None:
    """`domain-start-failed` with its reason; the cache of a client is right again."""
    await asyncio.to_thread(
        desk.client.call, "work", "admin.vm.feature.Set", "prohibit-start", "because"
    )

    def start(client: SheetClient) -> None:
        with refusal("QubesException", "QubesException"):
            tools.qvm_start(client, "work")

    cache = Cache()
    told = await desk.heard(start)
    for each in told:
        cache.hear(each)
    assert told[-1].name == "domain-start-failed"
    assert told[-1].kwargs["reason"]
    assert cache.states["work"] == "Halted"
    assert await asyncio.to_thread(desk.client.state, "work") == "Halted"


# --- services, disposables -------------------------------------------------------------------


async def test_what_qvm_run_asks_before_it_runs_anything(desk: Desk) -> None:
    """For a halted, a running and a paused qube, and for the admin qube."""
    await asyncio.to_thread(desk.client.call, "tpl", "admin.vm.feature.Set", "vmexec", "1")
    assert await desk.do(tools.before_service, "work", gui=True, root=True) == "user"
    assert await asyncio.to_thread(desk.client.state, "work") == "Running"
    await desk.do(tools.before_service, "work")
    await desk.do(tools.qvm_pause, "work", "Suspend")
    await desk.do(tools.before_service, "work")
    assert await asyncio.to_thread(desk.client.state, "work") == "Running"
    feature = await asyncio.to_thread(desk.client.feature, "work", "vmexec", "CheckWithTemplate")
    assert feature == "1"
    with refusal("QubesVMNotHaltedError", "QubesVMError"):
        await asyncio.to_thread(desk.client.call, "dom0", "admin.vm.Start")


@pytest.mark.parametrize("template", ["base", ""])
async def test_a_disposable_lives_for_one_service(desk: Desk, template: str) -> None:
    """`qvm-run --dispvm`, with a template and with the default; nothing of it stays."""
    await desk.do(tools.prefs_set, None, "default_dispvm", "base")
    name = await desk.do(tools.in_disposable, template)
    listed = await asyncio.to_thread(desk.client.qubes)
    assert (listed[name].klass, listed[name].state) == ("DispVM", "Running")
    told = await desk.heard(tools.after_disposable, name)
    assert names(told) == [*STOPPED, *REMOVED]
    assert name not in await asyncio.to_thread(desk.client.qubes)


# --- clone, remove ---------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["", "varlibqubes"])
async def test_a_clone_is_whole(desk: Desk, pool: str) -> None:
    """Properties, features, tags, notes, firewall and private volume; defaults stay defaults."""
    await desk.do(
        tools.qvm_create,
        "full",
        "orange",
        template="tpl",
        props={
            "provides_network": "True",
            "memory": "300",
            "default_user": "alice",
            "template_for_dispvms": "True",
            "kernelopts": "quiet\nsplash",
            "devices_denied": "u03****p0c03**",
            "include_in_backups": "False",
            "guivm": "work",
            "default_dispvm": "",
        },
    )
    for method, arg, payload in (
        ("admin.vm.feature.Set", "service.cups", "1"),
        ("admin.vm.feature.Set", "empty", ""),
        ("admin.vm.tag.Set", "mine", ""),
        ("admin.vm.notes.Set", "", "dear diary\n\u00fc"),
        ("admin.vm.volume.Resize", "private", str(3 << 30)),
    ):
        await asyncio.to_thread(desk.client.call, "full", method, arg, payload)
    await desk.do(tools.qvm_clone, "full", "copy", pool=pool)

    def sight(name: str) -> tuple[object, ...]:
        client = desk.client
        values = client.get_all(name)
        own = {"name", "qid", "uuid", "ip", "gateway", "visible_ip"}
        return (
            {key: value for key, value in values.items() if key not in own},
            {key: client.feature(name, key) for key in client.lines(name, "admin.vm.feature.List")},
            client.lines(name, "admin.vm.tag.List"),
            client.call(name, "admin.vm.notes.Get"),
            client.text(name, "admin.vm.firewall.Get"),
            tools.volume_info(client, name, "private")["size"],
        )

    full, copy = await asyncio.to_thread(lambda: (sight("full"), sight("copy")))
    assert copy == full
    await desk.do(tools.qvm_start, "copy")


@pytest.mark.parametrize("source", ["tpl", "work", "alone", "disposable"])
async def test_every_class_of_qube_can_be_cloned(desk: Desk, source: str) -> None:
    """What cannot be set again is refused as what clients skip, or told as a default."""
    await desk.do(tools.qvm_create, "alone", "red", klass="StandaloneVM")
    await desk.do(tools.qvm_create, "disposable", "red", klass="DispVM", template="base")
    if source == "alone":
        # A standalone qube is made of a template's root; what it is made of here is empty.
        await asyncio.to_thread(_fill_root, desk.client, source)
    await desk.do(tools.qvm_clone, source, "copy")
    listed = await asyncio.to_thread(desk.client.qubes)
    assert listed["copy"].klass == listed[source].klass


def _fill_root(client: SheetClient, name: str) -> None:
    token = client.text("tpl", "admin.vm.volume.CloneFrom", "root")
    client.call(name, "admin.vm.volume.CloneTo", "root", token)


async def test_removal_of_a_qube_in_use_tells_what_to_change(desk: Desk) -> None:
    """The look-up of `qvm-remove` finds each property that the daemon refused because of."""
    await desk.do(tools.prefs_set, None, "default_dispvm", "base")
    await desk.do(tools.prefs_set, "work", "default_dispvm", "base")
    await desk.do(tools.qvm_create, "disposable", "red", klass="DispVM", template="base")
    found = await desk.do(tools.qvm_remove, "base")
    assert set(found) == {
        (None, "default_dispvm"),
        ("work", "default_dispvm"),
        ("disposable", "template"),
    }
    await desk.do(tools.qvm_remove, "disposable")
    await desk.do(tools.prefs_reset, "work", "default_dispvm")
    await desk.do(tools.prefs_reset, None, "default_dispvm")
    assert await desk.do(tools.qvm_remove, "base") == []
    with refusal("QubesVMNotFoundError", "KeyError"):
        await asyncio.to_thread(desk.client.qubes, "base")


async def test_removal_of_what_runs_is_refused(desk: Desk) -> None:
    """It is no dependency, so that the command does not look for any."""
    await desk.do(tools.qvm_start, "work")
    with refusal("QubesVMNotHaltedError", "QubesVMError"):
        await desk.do(tools.qvm_remove, "work")
