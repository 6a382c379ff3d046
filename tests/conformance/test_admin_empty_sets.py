"""Notes, and the right answers for what is empty: firewall, devices, backups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon

from caisson.admin import Services
from caisson.model.limits import MOST_DENIED

MISSING = "QubesNotImplementedError"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with `work`, a RemoteVM `far`, and one backup profile."""
    services = Services(has_backup_profile=lambda name: name == "weekly")
    async with running_daemon(tmp_path, services=services) as running:
        await running.ok("admin.vm.Create.TemplateVM", payload=b"name=tpl label=black")
        await running.ok("admin.vm.Create.AppVM+tpl", payload=b"name=work label=blue")
        await add_remote(running)
        yield running


async def add_remote(daemon: Daemon) -> None:
    """Record a qube of another machine."""
    await daemon.ok("admin.vm.Create.RemoteVM", payload=b"name=far label=red")


# --- notes ---------------------------------------------------------------------------------


async def test_notes(daemon: Daemon) -> None:
    """Section 2.8 and trap 13: free text, sanitised; an empty payload removes it."""
    assert await daemon.ok("admin.vm.notes.Get", "work") == ""
    assert await daemon.ok("admin.vm.notes.Set", "work", "a\tb\nä\x1b\0".encode()) == ""
    assert await daemon.ask("admin.vm.notes.Get", "work") == b"0\0a\tb\n\xc3\xa4__"
    await daemon.ok("admin.vm.notes.Set", "work", b"<%s>`$(x)`")
    assert await daemon.ok("admin.vm.notes.Get", "work") == "<%s>`$(x)`"
    await daemon.ok("admin.vm.notes.Set", "work")
    assert await daemon.ok("admin.vm.notes.Get", "work") == ""


async def test_refused_notes(daemon: Daemon) -> None:
    """Not UTF-8, not for the admin qube, not for a qube of another machine."""
    assert await daemon.refused("admin.vm.notes.Set", "work", b"\xff") == "ProtocolError"
    assert await daemon.refused("admin.vm.notes.Get+x", "work") == "ProtocolError"
    for method in ("admin.vm.notes.Get", "admin.vm.notes.Set"):
        assert await daemon.refused(method) == "ProtocolError"
        assert await daemon.refused(method, "far") == "QubesNotesError"


async def test_removed_qube_takes_its_notes_along(daemon: Daemon) -> None:
    """QSB-050: what comes later under that name starts from nothing."""
    await daemon.ok("admin.vm.notes.Set", "work", b"secret")
    await daemon.ok("admin.vm.Remove", "work")
    await daemon.ok("admin.vm.Create.AppVM+tpl", payload=b"name=work label=blue")
    assert await daemon.ok("admin.vm.notes.Get", "work") == ""


# --- firewall ------------------------------------------------------------------------------


async def test_firewall_without_rules(daemon: Daemon) -> None:
    """Section 2.8: everything passes; saying so again is no change, but listeners are told."""
    assert await daemon.ok("admin.vm.firewall.Get", "work") == "action=accept\n"
    heard = daemon.qubes.events.subscribe()
    assert await daemon.ok("admin.vm.firewall.Set", "work", b"action=accept\n") == ""
    assert await daemon.ok("admin.vm.firewall.Set", "work", b"action=accept") == ""
    assert await daemon.ok("admin.vm.firewall.Reload", "work") == ""
    told = [(event.subject, event.name, dict(event.kwargs)) for event in heard._events]
    assert told == [("work", "firewall-changed", {})] * 3


async def test_rules_that_nothing_enforces_are_refused(daemon: Daemon) -> None:
    """None of them is stored; an empty list means to drop everything, and is one of them."""
    for payload, error in (
        (b"action=drop\n", MISSING),
        (b"action=accept dst4=10.0.0.0/8 proto=tcp dstports=1-2 comment=x y\n", MISSING),
        (b"action=accept\naction=drop\n", MISSING),
        (b"", MISSING),
        (b"\n", "QubesValueError"),
        (b"action=accept\n\n", "QubesValueError"),
        (b"action=maybe\n", "QubesValueError"),
        (b"action=accept dst4=10.0.0.0/64\n", "QubesValueError"),
        (b"action=accept comment=\xc3\xa4\n", "ProtocolError"),
    ):
        assert await daemon.refused("admin.vm.firewall.Set", "work", payload) == error, payload
    assert await daemon.ok("admin.vm.firewall.Get", "work") == "action=accept\n"


async def test_firewall_is_for_qubes_of_this_machine(daemon: Daemon) -> None:
    """Neither the admin qube nor a RemoteVM has one."""
    for method in ("Get", "Set", "Reload"):
        payload = b"action=accept\n" if method == "Set" else b""
        found = await daemon.refused(f"admin.vm.firewall.{method}", payload=payload)
        assert found == "ProtocolError"
        found = await daemon.refused(f"admin.vm.firewall.{method}", "far", payload)
        assert found == "QubesException"


# --- devices -------------------------------------------------------------------------------

CLASSES = ("block", "mic", "pci", "usb")
DEVICE = "sys-usb+1-1+0951+1666+_+u080650"
MANY = b"".join(b"b%06x" % number for number in range(MOST_DENIED))
PAYLOAD = b"device_id='0951:1666:*:u080650' port_id='1-1' backend_domain='sys-usb'"


async def test_device_classes_and_their_empty_lists(daemon: Daemon) -> None:
    """Section 2.7: for every class and every qube, whatever the port."""
    assert await daemon.ok("admin.deviceclass.List") == "block\nmic\npci\nusb\n"
    for devclass in CLASSES:
        for name in ("work", "dom0", "far"):
            prefix = f"admin.vm.device.{devclass}"
            for method in ("Available", "Available+sda1", "Assigned", "Attached+sys-usb+1-1"):
                assert await daemon.ok(f"{prefix}.{method}", name) == ""
        for method in ("Available+a/b", "Available+a+b", "Assigned+a", "Attached+-x+1"):
            assert await daemon.refused(f"{prefix}.{method}", "work") == "ProtocolError"
    assert await daemon.refused("admin.vm.device.floppy.Available", "work") == "ProtocolError"


async def test_devices_that_nobody_has(daemon: Daemon) -> None:
    """Section 2.7: each call has its own answer to a device that is not there."""
    auto = PAYLOAD + b" mode='auto-attach'"
    for devclass in CLASSES:
        prefix = f"admin.vm.device.{devclass}"
        for method, payload, error in (
            (f"Assign+{DEVICE}", auto, "ProtocolError"),
            (f"Assign+{DEVICE}", PAYLOAD + b" mode='manual'", "QubesValueError"),
            (f"Assign+{DEVICE}", PAYLOAD, "QubesValueError"),
            (f"Assign+{DEVICE}", auto + b" _x='1'", "QubesValueError"),
            (f"Assign+{DEVICE}", auto + b" x='1'", "ProtocolError"),
            (f"Assign+{DEVICE}", auto + b" frontend_domain='other'", "ProtocolError"),
            (f"Assign+{DEVICE}", b"", "ProtocolError"),
            ("Assign", auto, "ProtocolError"),
            (f"Assign+{DEVICE}", b"mode='x'", "QubesUnrecognizedDeviceAssignmentMode"),
            (f"Attach+{DEVICE}", b"", "QubesVMNotRunningError"),
            (f"Attach+{DEVICE}", b"nonsense", "ProtocolError"),
            (f"Unassign+{DEVICE}", b"", "DeviceNotAssigned"),
            (f"Detach+{DEVICE}", b"", "DeviceNotAssigned"),
            ("Detach+sys-usb+1-1", b"", "DeviceNotAssigned"),
            ("Unassign+sys-usb", b"", "ProtocolError"),
            (f"Set.assignment+{DEVICE}", b"required", "QubesValueError"),
            (f"Set.assignment+{DEVICE}", b"x", "QubesUnrecognizedDeviceAssignmentMode"),
            (f"Set.assignment+{DEVICE}", b"manual", "QubesUnrecognizedDeviceAssignmentMode"),
            ("Set.assignment+x", b"required", "ProtocolError"),
        ):
            found = await daemon.refused(f"{prefix}.{method}", "work", payload)
            assert found == error, (method, payload)
        found = await daemon.refused(f"{prefix}.Assign+{DEVICE}", "far", auto)
        assert found == "QubesException"
        assert await daemon.refused(f"{prefix}.Attach+{DEVICE}") == "ProtocolError"


async def test_unknown_device_says_why_there_is_none(daemon: Daemon) -> None:
    """The hint names what this version lacks."""
    reply = await daemon.ask(f"admin.vm.device.usb.Attach+{DEVICE}")
    assert b"no qube of this version hands out devices yet" in reply


async def test_denied_interfaces_are_a_property(daemon: Daemon) -> None:
    """Section 2.7: sorted, each once; read and written as the property is."""
    prefix = "admin.vm.device.denied"
    assert await daemon.ok(f"{prefix}.List", "work") == ""
    assert await daemon.ok(f"{prefix}.Add", "work", b"u03****p020000") == ""
    await daemon.ok(f"{prefix}.Add", "work", b"b******u03****")
    await daemon.ok(f"{prefix}.Add", "work")
    assert await daemon.ok(f"{prefix}.List", "work") == "b******\np020000\nu03****"
    found = await daemon.ok("admin.vm.property.Get+devices_denied", "work")
    assert found == "default=False type=str b******p020000u03****"
    heard = daemon.qubes.events.subscribe()
    await daemon.ok(f"{prefix}.Remove", "work", b"p020000m******")
    assert await daemon.ok(f"{prefix}.List", "work") == "b******\nu03****"
    assert [event.name for event in heard._events] == [
        "property-pre-set:devices_denied",
        "property-set:devices_denied",
    ]
    await daemon.ok(f"{prefix}.Remove", "work", b"all")
    assert await daemon.ok(f"{prefix}.List", "work") == ""
    assert await daemon.ok(f"{prefix}.Add", "dom0", b"u03****") == ""


async def test_refused_denials(daemon: Daemon) -> None:
    """Section 2.7: length, duplicates, characters."""
    for method in ("Add", "Remove"):
        for payload, error in (
            (b"u03***", "QubesValueError"),
            (b"u03****u03****", "ProtocolError"),
            (b"x03****", "QubesPropertyValueError"),
            (b"u03***\xe4", "ProtocolError"),
            (MANY + b"c******", "QubesValueError"),
        ):
            found = await daemon.refused(f"admin.vm.device.denied.{method}", "work", payload)
            assert found == error
    assert await daemon.refused("admin.vm.device.denied.List", "far") == "QubesException"


async def test_a_qube_is_kept_from_so_many_interfaces(daemon: Daemon) -> None:
    """Those of one call and those that are there count together."""
    prefix = "admin.vm.device.denied"
    assert await daemon.ok(f"{prefix}.Add", "work", MANY) == ""
    assert await daemon.refused(f"{prefix}.Add", "work", b"u******") == "QubesValueError"
    assert await daemon.ok(f"{prefix}.Remove", "work", MANY[:7]) == ""
    assert await daemon.ok(f"{prefix}.Add", "work", b"u******") == ""


# --- backup --------------------------------------------------------------------------------


async def test_backups(daemon: Daemon) -> None:
    """Section 2.8: bad, missing and existing profiles; and nothing to cancel."""
    for method in ("Execute", "Info"):
        for profile, error in (
            ("", "ProtocolError"),
            ("../weekly", "ProtocolError"),
            ("daily", "QubesBackupProfileNotFoundError"),
            ("weekly", MISSING),
        ):
            assert await daemon.refused(f"admin.backup.{method}+{profile}") == error
    assert await daemon.refused("admin.backup.Cancel+weekly") == "QubesException"
    assert await daemon.refused("admin.backup.Cancel+a/b") == "ProtocolError"
    assert await daemon.refused("admin.backup.Info+weekly", "work") == "ProtocolError"
