"""Events of the Admin API, byte by byte, and their listeners (sheet `admin-api`, section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from admin_daemons import daemon, peopled
from admin_lab import SOON, Daemon, running_daemon, until
from structlog.testing import capture_logs

__all__ = ["daemon", "peopled"]


async def _event(reader: asyncio.StreamReader) -> list[str]:
    async with asyncio.timeout(SOON):
        frame = await reader.readuntil(b"\0\0")
        if frame == b"1\0\0":
            frame += await reader.readuntil(b"\0\0")
    assert frame.startswith(b"1\0")
    return frame[2:-2].decode().split("\0")


async def test_events_arrive_as_they_happen(peopled: Daemon) -> None:
    """Traps 12 and 14: connected at once; other calls go on; `name` and `vm` are told."""
    reader, writer = await peopled.connect()
    writer.write(b"admin.Events+ dom0 name dom0\0")
    writer.write_eof()
    assert await _event(reader) == ["", "connection-established"]
    await peopled.ok("admin.vm.property.Set+memory", "work", b"500")
    events = [await _event(reader), await _event(reader)]
    assert [e[:4] for e in events] == [
        ["work", "property-pre-set:memory", "name", "memory"],
        ["work", "property-set:memory", "name", "memory"],
    ]
    await peopled.ok("admin.vm.Create.AppVM", payload=b"name=new label=red")
    while (event := await _event(reader))[1] != "domain-add":
        pass
    assert event == ["", "domain-add", "vm", "new"]
    writer.close()


async def test_first_event_has_exactly_these_bytes(daemon: Daemon) -> None:
    """Section 1.3: an empty subject, no keys, and the NUL that ends the event."""
    reader, writer = await daemon.connect()
    writer.write(b"admin.Events+ dom0 name dom0\0")
    writer.write_eof()
    expected = b"1\0\0connection-established\0\0"
    async with asyncio.timeout(SOON):
        assert await reader.readexactly(len(expected)) == expected
    writer.close()


async def test_events_of_one_qube(peopled: Daemon) -> None:
    """Called on a qube, only what is about it is told."""
    reader, writer = await peopled.connect()
    writer.write(b"admin.Events+ dom0 name work\0")
    writer.write_eof()
    assert await _event(reader) == ["", "connection-established"]
    await peopled.ok("admin.vm.tag.Set+x", "base")
    await peopled.ok("admin.vm.tag.Set+y", "work")
    assert (await _event(reader))[:2] == ["work", "domain-tag-add:y"]
    writer.close()


async def test_listener_that_leaves_is_forgotten_without_waiting_for_an_event(
    daemon: Daemon,
) -> None:
    """Otherwise listeners pile up in a quiet system."""
    bus = daemon.qubes.events
    own = bus.listeners  # the extensions
    connections = []
    for _ in range(10):
        reader, writer = await daemon.connect()
        writer.write(b"admin.Events+ dom0 name dom0\0")
        writer.write_eof()
        await _event(reader)
        connections.append(writer)
    assert bus.listeners == own + 10
    for writer in connections:
        writer.close()
    await until(lambda: bus.listeners == own)


async def test_daemon_stops_although_somebody_listens(tmp_path: Path) -> None:
    """An open stream is cut off without a word of complaint, and a request under way too."""
    with capture_logs() as logs:
        async with running_daemon(tmp_path) as daemon:
            listener, writer = await daemon.connect()
            writer.write(b"admin.Events+ dom0 name dom0\0")
            writer.write_eof()
            await _event(listener)
            silent, other = await daemon.connect()
        assert await listener.read() == b""
        assert await silent.read() == b""
        writer.close()
        other.close()
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_building_a_template_tells_its_progress_in_events_only(tmp_path: Path) -> None:
    """An unmodified reader of events is never shown another frame in the middle."""
    from caisson.admin import Services  # noqa: PLC0415
    from caisson.errors import StorageError  # noqa: PLC0415

    async def build(recipe: str) -> AsyncIterator[str]:
        yield "fetching"
        if recipe == "broken":
            raise StorageError("disk full", hint="make room")

    services = Services(build_template=build, recipes=("good", "broken"))
    async with running_daemon(tmp_path, services=services) as daemon:
        connected = b"1\0\0connection-established\0\0"
        progress = b"1\0\0template-progress\0recipe\0%b\0text\0fetching\0\0"
        built = b"1\0\0template-built\0recipe\0good\0\0"
        failed = (
            b"1\0\0template-failed\0recipe\0broken\0type\0StoragePoolException\0"
            b"message\0disk full\nhint: make room\0\0"
        )
        reply = await daemon.ask("caisson.template.Build+good")
        assert reply == connected + progress % b"good" + built
        reply = await daemon.ask("caisson.template.Build+broken")
        assert reply == connected + progress % b"broken" + failed
        assert await daemon.refused("caisson.template.Build+other") == "ProtocolError"
