"""The fifteen traps of compatibility (sheet `admin-api`, section 10), one test each."""

from __future__ import annotations

import asyncio
import grp
import re
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon
from conformance.sheet_client import EventReader, EventStream, Listed, Refused, Told, parse_reply

from caisson.admin.registry import Door
from caisson.model.devices import Assignment, Device, DeviceClass, Mode
from caisson.names import QubeName

BOOLEANS = {
    "True": ("1", "yes", "true", "on", "TRUE", "oN", "True"),
    "False": ("0", "no", "false", "off", "FALSE", "No", "False"),
}
ASSIGNMENT_KEYS = {
    "device_id",
    "port_id",
    "devclass",
    "backend_domain",
    "mode",
    "frontend_domain",
}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with `tpl`, `work` and `base`."""
    async with running_daemon(tmp_path) as running:
        await running.populate()
        yield running


@pytest.mark.parametrize(
    ("method", "dest", "payload"),
    [
        ("admin.label.Get+%s%d%(x)s%", "dom0", b""),
        ("admin.vm.property.Get+100%", "work", b""),
        ("admin.vm.property.Set+label", "work", b"50%"),
        ("admin.vm.property.Set+netvm", "work", b"%n"),
        ("admin.vm.property.Set+kernel", "work", b"%"),
        ("admin.vm.feature.Set+%", "work", b"1"),
        ("admin.vm.tag.Set+%c", "work", b""),
        ("admin.vm.Create.AppVM+%", "dom0", b"name=a label=red"),
        ("admin.vm.Create.AppVM", "dom0", b"name=%s label=red"),
        ("admin.vm.Create.AppVM", "dom0", b"%=% name=x label=red"),
        ("admin.vm.List", "%r", b""),
        ("admin.%.List", "dom0", b""),
        ("admin.backup.Info+%", "dom0", b""),
        ("admin.vm.device.block.Attach+dom0+%", "work", b""),
        ("admin.vm.firewall.Set", "work", b"action=%"),
        ("admin.pool.Info+%", "dom0", b""),
    ],
)
async def test_trap_01_refusals_end_in_nul_and_double_percent_signs(
    daemon: Daemon, method: str, dest: str, payload: bytes
) -> None:
    """A client cuts a refusal into five parts, and formats the text of it with `%`."""
    reply = await daemon.ask(method, dest, payload)
    assert reply.startswith(b"2\0")
    assert reply.endswith(b"\0")
    with pytest.raises(Refused) as caught:
        parse_reply(reply)
    assert "%" in caught.value.text
    assert reply.split(b"\0")[2] == b""


async def test_trap_02_lists_that_clients_need_are_whole_lines(daemon: Daemon) -> None:
    """Labels, pools and their facts are never empty; one qube is one line."""
    for method in ("admin.label.List", "admin.pool.List", "admin.vmclass.List"):
        text = await daemon.ok(method)
        assert text.endswith("\n")
        assert "" not in text.split("\n")[:-1]
    for pool in (await daemon.ok("admin.pool.List")).splitlines():
        info = await daemon.ok(f"admin.pool.Info+{pool}")
        assert info.endswith("\n")
        keys = {line.split("=", 1)[0] for line in info.splitlines()}
        assert {"driver", "revisions_to_keep", "ephemeral_volatile"} <= keys
    for name in ("dom0", "tpl", "work", "base"):
        text = await daemon.ok("admin.vm.List", name)
        lines = [line for line in text.split("\n")[:-1] if line.startswith(f"{name} ")]
        assert len(lines) == 1
        assert text.endswith("\n")
        assert name == "dom0" or text == lines[0] + "\n"


async def test_trap_03_words_of_a_listed_qube_hold_no_space(daemon: Daemon) -> None:
    """`NAME class=… state=… uuid=…`, whatever the qube is doing."""
    await daemon.ok("admin.vm.Create.RemoteVM", payload=b"name=far label=red")
    await daemon.ok("admin.vm.Start", "work")
    lines = (await daemon.ok("admin.vm.List")).split("\n")[:-1]
    assert len(lines) == 5
    for line in lines:
        assert re.fullmatch(r"\S+( [a-z_]+=\S+)+", line)
        listed = Listed.parse(line)
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", listed.uuid)
    states = {listed.name: listed.state for listed in map(Listed.parse, lines)}
    assert states["far"] == states["dom0"] == states["work"] == "Running"


async def test_trap_04_no_number_and_no_boolean_is_an_empty_value(daemon: Daemon) -> None:
    """In single answers, in GetAll and in defaults; `None` would be no number."""
    empty = set()
    for owner, prefix in (("work", "admin.vm"), ("base", "admin.vm"), ("dom0", "admin")):
        for line in (await daemon.ok(f"{prefix}.property.GetAll", owner)).splitlines():
            name, _, kind, value = line.split(" ", 3)
            default = await daemon.ok(f"{prefix}.property.GetDefault+{name}", owner)
            for text in (value, default.partition(" ")[2]):
                assert text != "None" or kind == "type=str"
            if kind in {"type=int", "type=bool"} and value == "":
                empty.add(name)
                reply = await daemon.ok(f"{prefix}.property.Get+{name}", owner)
                assert reply == f"default=True {kind} "
    assert {"backup_timestamp", "stubdom_mem"} <= empty


async def test_trap_05_booleans_are_capitalised_in_answers_only(daemon: Daemon) -> None:
    """Every spelling is taken, in any case; without spaces around it."""
    for told, spellings in BOOLEANS.items():
        for spelling in spellings:
            await daemon.ok("admin.vm.property.Set+debug", "work", spelling.encode())
            reply = await daemon.ok("admin.vm.property.Get+debug", "work")
            assert reply == f"default=False type=bool {told}"
            volume = await daemon.ask("admin.vm.volume.Set.rw+private", "work", spelling.encode())
            assert volume == b"0\0"
            info = await daemon.ok("admin.vm.volume.Info+private", "work")
            assert f"\nrw={told}\n" in info
    for wrong in (b" true", b"true\n", b"", b"2", b"y"):
        assert await daemon.refused("admin.vm.property.Set+debug", "work", wrong) == (
            "QubesValueError"
        )


async def test_trap_06_label_colours_start_with_0x(daemon: Daemon) -> None:
    """Those built in, and one of the user's own in whatever case it came."""
    await daemon.ok("admin.label.Create+mint", payload=b"0xAABBCC")
    for label in (await daemon.ok("admin.label.List")).splitlines():
        assert re.fullmatch("0x[0-9a-f]{6}", await daemon.ok(f"admin.label.Get+{label}"))
    for wrong in (b"#aabbcc", b"aabbcc", b"0xabc", b"mint"):
        assert await daemon.refused("admin.label.Create+sage", payload=wrong) == (
            "QubesInvalidLabelValueError"
        )


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("admin.vm.property.Get+nosuch", "QubesNoSuchPropertyError"),
        ("admin.vm.property.GetDefault+nosuch", "QubesNoSuchPropertyError"),
        ("admin.vm.property.Set+nosuch", "QubesNoSuchPropertyError"),
        ("admin.vm.property.Reset+nosuch", "QubesNoSuchPropertyError"),
        ("admin.vm.property.Help+nosuch", "QubesNoSuchPropertyError"),
        ("admin.vm.feature.Get+nosuch", "QubesFeatureNotFoundError"),
        ("admin.vm.feature.CheckWithTemplate+nosuch", "QubesFeatureNotFoundError"),
        ("admin.vm.feature.CheckWithNetvm+nosuch", "QubesFeatureNotFoundError"),
        ("admin.vm.feature.CheckWithAdminVM+nosuch", "QubesFeatureNotFoundError"),
        ("admin.vm.feature.CheckWithTemplateAndAdminVM+nosuch", "QubesFeatureNotFoundError"),
        ("admin.vm.feature.Remove+nosuch", "QubesFeatureNotFoundError"),
        ("admin.vm.tag.Remove+nosuch", "QubesTagNotFoundError"),
    ],
)
async def test_trap_07_what_is_missing_has_its_own_error(
    daemon: Daemon, method: str, error: str
) -> None:
    """Never an empty answer; the type decides what clients do next."""
    assert await daemon.refused(method, "work") == error
    if "property" in method:
        whole = method.replace("admin.vm.", "admin.")
        assert await daemon.refused(whole) == error


async def test_trap_08_starting_what_runs_is_no_error(daemon: Daemon) -> None:
    """Nor what is paused; the admin qube has the error that clients of it wait for."""
    for _ in range(2):
        await daemon.ok("admin.vm.Start", "work")
    await daemon.ok("admin.vm.Pause", "work")
    await daemon.ok("admin.vm.Start", "work")
    assert "power_state=Paused" in await daemon.ok("admin.vm.CurrentState", "work")
    assert await daemon.refused("admin.vm.Start") == "QubesVMNotHaltedError"


async def test_trap_09_stopping_what_is_halted_says_so(daemon: Daemon) -> None:
    """With the one error that commands take for success, also after a first stop."""
    for _ in range(2):
        for method in ("admin.vm.Kill", "admin.vm.Shutdown", "admin.vm.Shutdown+force+wait"):
            assert await daemon.refused(method, "work") == "QubesVMNotStartedError"
        await daemon.ok("admin.vm.Start", "work")
        await daemon.ok("admin.vm.Kill", "work")


async def test_trap_10_a_shutdown_that_waits_ends_when_the_qube_is_gone(daemon: Daemon) -> None:
    """It blocks as long as the qube runs; a disposable is then in no list any more."""
    name = await daemon.ok("admin.vm.CreateDisposable", "base")
    daemon.engine.obeys = False
    await daemon.ok("admin.vm.Start", name)
    waiting = asyncio.create_task(daemon.ask("admin.vm.Shutdown+wait", name))
    while "state=Halting" not in await daemon.ok("admin.vm.List", name):
        pass
    assert not waiting.done()
    for instance in daemon.engine.running.values():
        instance.end()
    assert await waiting == b"0\0"
    assert name not in await daemon.ok("admin.vm.List")


async def test_trap_11_an_assignment_has_the_listed_keys_only(daemon: Daemon) -> None:
    """What is told is made of them, and a payload with any other is refused."""
    for mode in Mode:
        for devclass in DeviceClass:
            device = Device.parse_argument("base+sda+_")
            told = str(Assignment(device, devclass, mode, QubeName("work"), {"read-only": "yes"}))
            keys = re.findall(r"(?:^| )([a-z_-]+)='", told)
            assert {key for key in keys if key[0] != "_"} <= ASSIGNMENT_KEYS
            assert keys[-1] == "_read-only"
    for devclass in DeviceClass:
        for act in ("Assign", "Attach"):
            method = f"admin.vm.device.{devclass}.{act}+base+sda+_"
            reply = await daemon.ask(method, "work", b"device_id='*' vendor='x' mode='required'")
            assert reply.startswith(b"2\0ProtocolError\0")
            assert b"`vendor`" in reply
        for verb in ("Assigned", "Attached", "Available"):
            assert await daemon.ok(f"admin.vm.device.{devclass}.{verb}", "work") == ""


async def test_trap_12_listeners_are_told_at_once_and_by_name(daemon: Daemon) -> None:
    """`connection-established` comes with nothing happening; then `name` and `vm` are given."""

    def connect() -> EventStream:
        return EventStream(daemon.paths.qubesd)  # it insists on the first event itself

    with await asyncio.to_thread(connect) as stream:

        async def told(name: str) -> Told:
            return (await asyncio.to_thread(stream.until, name))[-1]

        await daemon.ok("admin.vm.property.Set+debug", "work", b"1")
        event = await told("property-set:debug")
        assert event.kwargs == {"name": "debug", "newvalue": "True", "oldvalue": "False"}
        await daemon.ok("admin.vm.property.Reset+debug", "work")
        event = await told("property-reset:debug")
        assert (event.subject, event.kwargs["name"]) == ("work", "debug")
        await daemon.ok("admin.property.Set+stats_interval", payload=b"4")
        event = await told("property-set:stats_interval")
        assert (event.subject, event.kwargs["name"]) == ("", "stats_interval")
        await daemon.ok("admin.vm.Create.AppVM", payload=b"name=new label=red")
        assert await told("domain-add") == Told("", "domain-add", {"vm": "new"})
        await daemon.ok("admin.vm.Remove", "new")
        assert await told("domain-delete") == Told("", "domain-delete", {"vm": "new"})


async def test_trap_13_empty_rules_and_empty_notes_are_well_formed(daemon: Daemon) -> None:
    """Notes go; no rules at all are rules that drop everything, whether or not those can be set."""
    await daemon.ok("admin.vm.notes.Set", "work", b"remember")
    assert await daemon.ok("admin.vm.notes.Get", "work") == "remember"
    await daemon.ok("admin.vm.notes.Set", "work")
    assert await daemon.ok("admin.vm.notes.Get", "work") == ""
    reply = await daemon.ask("admin.vm.firewall.Set", "work")
    assert reply == b"0\0" or reply.startswith(b"2\0QubesNotImplementedError\0")
    rules = await daemon.ok("admin.vm.firewall.Get", "work")
    assert rules == ("" if reply == b"0\0" else "action=accept\n")
    await daemon.ok("admin.vm.firewall.Set", "work", b"action=accept\n")


async def test_trap_14_clients_in_parallel_do_not_wait_for_each_other(daemon: Daemon) -> None:
    """Listeners and long operations are open while hundreds of short calls are answered."""
    daemon.engine.obeys = False
    for name in ("work", "base"):
        await daemon.ok("admin.vm.Start", name)
    streams = [await asyncio.to_thread(EventStream, daemon.paths.qubesd) for _ in range(5)]
    long = [
        asyncio.create_task(daemon.ask("admin.vm.Shutdown+wait", name)) for name in ("work", "base")
    ]
    try:
        reads = [daemon.ok("admin.vm.property.GetAll", "work") for _ in range(50)]
        writes = [daemon.ok(f"admin.vm.tag.Set+t{number}", "tpl") for number in range(50)]
        await asyncio.gather(*reads, *writes)
        assert not any(task.done() for task in long)
        await daemon.ok("admin.vm.tag.Set+last", "tpl")
        for stream in streams:
            told = await asyncio.to_thread(stream.until, "domain-tag-add:last")
            added = {each.name for each in told} & {f"domain-tag-add:t{n}" for n in range(50)}
            assert len(added) == 50
    finally:
        for instance in daemon.engine.running.values():
            instance.end()
        for stream in streams:
            stream.close()
    assert await asyncio.gather(*long) == [b"0\0", b"0\0"]


async def test_trap_15_sockets_are_for_root_and_the_group_only(daemon: Daemon) -> None:
    """Whoever may open one is believed about SOURCE: mode 0660 and group `qubes`, else 0600."""
    group = None
    with suppress(KeyError):
        group = grp.getgrnam("qubes").gr_gid
    for door in Door:
        found = (daemon.paths.qubesd.parent / door.value).stat()
        assert stat.S_ISSOCK(found.st_mode)
        mode = stat.S_IMODE(found.st_mode)
        if found.st_gid == group:
            assert mode == 0o660
        else:
            assert mode == 0o600


def test_reader_of_events_insists_on_whole_frames(tmp_path: Path) -> None:
    """The client that these tests rely on takes no other frame, and no half of one."""
    path = tmp_path / "frames"
    for raw in (b"0\0", b"2\0X\0\0x\0", b"1\0\0domain-add\0vm\0", b"1\0\0x", b"1"):
        path.write_bytes(raw)
        with path.open("rb") as stream, pytest.raises(AssertionError):
            EventReader(stream).read()
    path.write_bytes(b"1\0\0domain-add\0vm\0a\0\0" + b"1\0a\0x\0k\0\0\0")
    with path.open("rb") as stream:
        reader = EventReader(stream)
        assert reader.read() == Told("", "domain-add", {"vm": "a"})
        assert reader.read() == Told("a", "x", {"k": ""})
        assert reader.read() is None
