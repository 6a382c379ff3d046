"""The Admin API, bytes in and bytes out, against the real server (sheet `admin-api`)."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from admin_lab import REPORT, SOON, Daemon, running_daemon, until
from structlog.testing import capture_logs

from caisson.admin.registry import Door

NIL = "00000000-0000-0000-0000-000000000000"
DEVICES = b"0\0block\nmic\npci\nusb\n"
ADMIN_LINE = f"dom0 class=AdminVM state=Running uuid={NIL}\n".encode()


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon that knows the admin qube only."""
    async with running_daemon(tmp_path) as running:
        yield running


@pytest.fixture
async def peopled(daemon: Daemon) -> Daemon:
    """A daemon with a template, a qube and a base for disposables."""
    await daemon.populate()
    return daemon


# --- section 1: transport ------------------------------------------------------------------


async def test_request_and_reply_have_exactly_these_bytes(daemon: Daemon) -> None:
    """Section 1.2 and 1.3: what an unmodified client sends and expects."""
    assert await daemon.send(b"admin.vm.List+ dom0 name dom0\0") == b"0\0" + ADMIN_LINE
    assert await daemon.send(b"admin.label.Get+red dom0 name dom0\0") == b"0\x000xcc0000"
    assert await daemon.send(b"admin.deviceclass.List+ dom0 name dom0\0") == DEVICES


@pytest.mark.parametrize(
    "header",
    [
        b"admin.vm.List dom0 name dom0",
        b"admin.vm.List+ dom0 keyword adminvm",
        f"admin.vm.List+ uuid:{NIL} name uuid:{NIL}".encode(),
    ],
)
async def test_other_ways_to_write_the_header(daemon: Daemon, header: bytes) -> None:
    """A missing `+`, the keyword of qrexec, and UUIDs mean the same."""
    assert await daemon.send(header + b"\0") == b"0\0" + ADMIN_LINE


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"admin.vm.List+ dom0 name dom0",
        b"\0",
        b"admin.vm.List+\0",
        b"admin.vm.List+ dom0 name\0",
        b"admin.vm.List+ dom0  name dom0\0",
        b"admin.vm.List+ dom0 keyword anyvm\0",
        b"admin.vm.List+ dom0 other dom0\0",
        b"admin.vm.List+\xff dom0 name dom0\0",
        b"x" * 65_537,
        b"admin.vm.List+ dom0 name dom0\0" + b"x" * 65_536,
        os.urandom(512),
    ],
)
async def test_what_is_no_request_gets_no_answer(daemon: Daemon, raw: bytes) -> None:
    """The connection is dropped, and the next client is served."""
    assert await daemon.send(raw) == b""
    assert await daemon.send(b"admin.vm.List+ dom0 name dom0\0") == b"0\0" + ADMIN_LINE


async def test_longest_request_is_accepted(peopled: Daemon) -> None:
    """65,536 bytes, header and payload together."""
    header = b"admin.vm.notes.Set+ dom0 name work\0"
    reply = await peopled.send(header + b"v" * (65_536 - len(header)))
    assert reply == b"0\0"


async def test_nothing_happens_before_the_request_has_ended(daemon: Daemon) -> None:
    """A request that is complete but not half-closed might still go on."""
    reader, writer = await daemon.connect()
    writer.write(b"admin.vm.feature.Set+seen dom0 name dom0\x00yes")
    await writer.drain()
    # Another whole conversation passes; the first is still open.
    assert await daemon.refused("admin.vm.feature.Get+seen") == "QubesFeatureNotFoundError"
    writer.write(b"!")
    writer.write_eof()
    assert await reader.read() == b"0\0"
    assert await daemon.ok("admin.vm.feature.Get+seen") == "yes!"
    writer.close()


async def test_slow_sender_is_dropped_and_delays_nobody(tmp_path: Path) -> None:
    """A client that never ends its request costs its own connection only."""
    async with running_daemon(tmp_path, request_seconds=0.3) as daemon:
        reader, writer = await daemon.connect()
        writer.write(b"admin.vm.Li")
        assert await daemon.send(b"admin.vm.List+ dom0 name dom0\0") == b"0\0" + ADMIN_LINE
        async with asyncio.timeout(SOON):
            assert await reader.read() == b""
        writer.close()


async def test_thousands_of_idle_connections_delay_nobody(daemon: Daemon) -> None:
    """2,000 clients say nothing; the next one is answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8_192), hard))
    try:
        with ExitStack() as stack:
            for _ in range(2_000):
                idle = stack.enter_context(socket.socket(socket.AF_UNIX))
                idle.setblocking(False)
                await asyncio.get_running_loop().sock_connect(idle, str(daemon.paths.qubesd))
            assert await daemon.send(b"admin.vm.List+ dom0 name dom0\0") == b"0\0" + ADMIN_LINE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_running_out_of_descriptors_is_survived(daemon: Daemon) -> None:
    """EMFILE makes clients wait; none is lost, and the daemon lives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(20)]
        spare = os.dup(0)
        os.close(spare)
        with capture_logs() as logs:
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
            try:
                for client in clients:
                    client.setblocking(False)
                    await loop.sock_connect(client, str(daemon.paths.qubesd))
                    await loop.sock_sendall(client, b"admin.vm.List+ dom0 name dom0\0")
                    client.shutdown(socket.SHUT_WR)
                await until(lambda: {"admin.accept-delayed"} & {e["event"] for e in logs})
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(SOON):
            replies = [await loop.sock_recv(client, 4_096) for client in clients]
    assert replies == [b"0\0" + ADMIN_LINE] * 20


async def test_client_that_leaves_early_harms_nobody(daemon: Daemon) -> None:
    """Gone before, during and after its request."""
    for raw in (b"", b"admin.vm.Li", b"admin.vm.List+ dom0 name dom0\0"):
        _, writer = await daemon.connect()
        writer.write(raw)
        writer.close()
    assert await daemon.send(b"admin.vm.List+ dom0 name dom0\0") == b"0\0" + ADMIN_LINE


async def test_sockets_are_for_the_group_only(daemon: Daemon) -> None:
    """Trap 15: whoever may open the socket is believed about SOURCE."""
    for path in (daemon.paths.qubesd, daemon.paths.qubesd_internal):
        assert path.stat().st_mode & 0o007 == 0


async def test_two_daemons_never_share_a_socket(daemon: Daemon) -> None:
    """The second would take the first one's clients away."""
    from caisson.admin import AdminServer  # noqa: PLC0415
    from caisson.errors import DaemonError  # noqa: PLC0415

    with pytest.raises(DaemonError, match="another daemon answers"):
        AdminServer(daemon.qubes, daemon.paths).bind()


# --- section 2: methods --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("admin.no.Such+ dom0 name dom0", "ProtocolError"),
        ("internal.GetSystemInfo+ dom0 name dom0", "ProtocolError"),
        ("admin.vm.List+x dom0 name dom0", "ProtocolError"),
        ("admin.label.Get+ dom0 name dom0", "ProtocolError"),
        ("admin.label.List+ dom0 name work", "ProtocolError"),
        ("admin.vm.List+ dom0 name nosuch", "QubesVMNotFoundError"),
        ("admin.vm.List+ nosuch name dom0", "QubesVMNotFoundError"),
        ("admin.vm.List+ dom0 name no such", "QubesValueError"),
        ("admin.vm.List+ dom0 name -x", "QubesValueError"),
        ("admin.vm.List+ dom0 name uuid:x", "QubesVMInvalidUUIDError"),
        (f"admin.vm.List+ dom0 name uuid:1{NIL[1:]}", "QubesVMNotFoundError"),
        ("admin.vm.List+ work name dom0", "PermissionDenied"),
        ("admin.vm.volume.Info+nosuch dom0 name work", "PermissionDenied"),
    ],
)
async def test_wrong_calls_are_named(peopled: Daemon, header: str, error: str) -> None:
    """Each mistake has its own exception."""
    reply = await peopled.send(header.encode() + b"\0")
    assert reply.split(b"\0")[:3] == [b"2", error.encode(), b""]


async def test_internal_methods_have_their_own_socket(peopled: Daemon) -> None:
    """What policy decisions depend on is for trusted programs only."""
    reply = await peopled.send(b"internal.GetSystemInfo+ dom0 name dom0\0", door=Door.INTERNAL)
    assert reply.startswith(b'0\0{"domains":{"dom0":')
    reply = await peopled.send(b"admin.vm.List+ dom0 name dom0\0", door=Door.INTERNAL)
    assert reply.startswith(b"2\0ProtocolError\0")


async def test_refusal_ends_in_nul_and_doubles_percent_signs(daemon: Daemon) -> None:
    """Trap 1: an unmodified client formats the text with `%`."""
    reply = await daemon.ask("admin.label.Get+%s%")
    assert reply.endswith(b"\0")
    assert reply.count(b"\0") == 4
    assert b"%%s%%" in reply


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


@pytest.mark.parametrize(
    ("method", "payload", "error"),
    [
        ("Create.AppVM", b"name=work label=red", "QubesVMAlreadyExistsError"),
        ("Create.AppVM+nosuch", b"name=new label=red", "QubesVMNotFoundError"),
        ("Create.AppVM", b"name=new label=nosuch", "QubesLabelNotFoundError"),
        ("Create.AppVM", b"name=new label=1", "QubesInvalidLabelError"),
        ("Create.AppVM", b"name=-new label=red", "QubesValueError"),
        ("Create.AppVM", b"name=new", "ProtocolError"),
        ("Create.AppVM", b"name=new label=red label=red", "ProtocolError"),
        ("Create.AppVM", b"name=new label=red pool=layers", "ProtocolError"),
        ("Create.AppVM", b"name=new label=red extra=1", "ProtocolError"),
        ("Create.AppVM", b"name=new  label=red", "ProtocolError"),
        ("Create.AppVM", b"name=n\xc3\xa9 label=red", "ProtocolError"),
        ("Create.AppVM", b"", "ProtocolError"),
        ("Create.TemplateVM+tpl", b"name=new label=red", "ProtocolError"),
        ("Create.AdminVM", b"name=new label=red", "QubesException"),
        ("Create.DispVM+work", b"name=new label=red", "QubesValueError"),
        ("CreateInPool.AppVM", b"name=new label=red pool=nosuch", "QubesException"),
        ("CreateInPool.AppVM", b"name=new label=red", "ProtocolError"),
        ("CreateInPool.AppVM", b"name=new label=red pool=layers pool:root=layers", "ProtocolError"),
    ],
)
async def test_refused_creations_leave_nothing(
    peopled: Daemon, method: str, payload: bytes, error: str
) -> None:
    """Section 2.4."""
    assert await peopled.refused(f"admin.vm.{method}", payload=payload) == error
    assert await peopled.refused("admin.vm.List", "new") == "QubesVMNotFoundError"


async def test_life_of_a_qube(peopled: Daemon) -> None:
    """Traps 8 and 9: what is no error to start twice, and what is to stop twice."""
    await peopled.ok("admin.vm.Start", "work")
    await peopled.ok("admin.vm.Start", "work")
    state = await peopled.ok("admin.vm.CurrentState", "work")
    words = dict(word.split("=") for word in state.split(" "))
    assert list(words) == ["mem", "mem_static_max", "cputime", "power_state"]
    assert words["power_state"] == "Running"
    assert await peopled.refused("admin.vm.Remove", "work") == "QubesVMNotHaltedError"
    await peopled.ok("admin.vm.Pause", "work")
    assert "power_state=Paused" in await peopled.ok("admin.vm.CurrentState", "work")
    assert await peopled.refused("admin.vm.Pause", "work") == "QubesVMNotRunningError"
    assert await peopled.refused("admin.vm.Shutdown", "work") == "QubesVMNotRunningError"
    await peopled.ok("admin.vm.Unpause", "work")
    assert await peopled.refused("admin.vm.Unpause", "work") == "QubesVMNotPausedError"
    assert await peopled.refused("admin.vm.Shutdown+now", "work") == "ProtocolError"
    await peopled.ok("admin.vm.Shutdown+wait", "work")
    assert "state=Halted" in await peopled.ok("admin.vm.List", "work")
    assert await peopled.refused("admin.vm.Shutdown", "work") == "QubesVMNotStartedError"
    assert await peopled.refused("admin.vm.Kill", "work") == "QubesVMNotStartedError"
    await peopled.ok("admin.vm.Remove", "work")
    assert await peopled.refused("admin.vm.List", "work") == "QubesVMNotFoundError"


async def test_admin_qube_is_never_started_or_stopped(daemon: Daemon) -> None:
    """Trap 8: this very error tells clients that the admin qube is there."""
    assert await daemon.refused("admin.vm.Start") == "QubesVMNotHaltedError"
    assert await daemon.refused("admin.vm.Shutdown") == "QubesVMError"
    assert await daemon.refused("admin.vm.Kill") == "QubesVMError"
    assert await daemon.refused("admin.vm.Remove") == "QubesVMInUseError"


async def test_disposable_is_gone_after_its_shutdown(peopled: Daemon) -> None:
    """Trap 10: once `Shutdown+wait` returns, `List` does not tell of it any more."""
    name = await peopled.ok("admin.vm.CreateDisposable", "base")
    assert name.startswith("disp")
    await peopled.ok("admin.vm.Start", name)
    assert "class=DispVM state=Running" in await peopled.ok("admin.vm.List", name)
    await peopled.ok("admin.vm.Shutdown+wait", name)
    assert await peopled.refused("admin.vm.List", name) == "QubesVMNotFoundError"


async def test_disposable_of_the_caller(peopled: Daemon) -> None:
    """Called on the admin qube, the disposable is based on the caller's own default."""
    await peopled.ok("admin.vm.property.Set+default_dispvm", "work", b"base")
    peopled.policy.text = "admin.vm.CreateDisposable * work * allow target=dom0\n"
    reply = await peopled.ask("admin.vm.CreateDisposable", payload=b"uuid", source="work")
    assert reply.startswith(b"0\0uuid:")
    tags = await peopled.ok("admin.vm.tag.List", reply[2:].decode())
    assert {"created-by-work", "disp-created-by-work"} <= set(tags.splitlines())
    assert await peopled.refused("admin.vm.CreateDisposable+x", "base") == "PermissionDenied"
    assert await peopled.refused("admin.vm.CreateDisposable", "base", b"x") == "ProtocolError"


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


# --- section 3: events ---------------------------------------------------------------------


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


# --- section 10: concurrency ---------------------------------------------------------------


async def test_long_operation_delays_nobody(peopled: Daemon) -> None:
    """Trap 14: one client waits for a shutdown, others go on."""
    peopled.engine.obeys = False
    await peopled.ok("admin.vm.Start", "work")
    waiting = asyncio.create_task(peopled.ask("admin.vm.Shutdown+wait", "work"))
    while "state=Halting" not in await peopled.ok("admin.vm.List", "work"):
        pass
    assert await peopled.ok("admin.label.Index+red") == "1"
    assert not waiting.done()
    await peopled.ok("admin.vm.Kill", "work")
    assert await waiting == b"0\0"


async def test_operation_goes_on_without_its_client(peopled: Daemon) -> None:
    """Section 1.3: a client that disconnects does not cancel what it began."""
    started: list[object] = []
    peopled.engine.on_start = started.append
    _, writer = await peopled.connect()
    writer.write(b"admin.vm.Start+ dom0 name work\0")
    writer.write_eof()
    await until(lambda: started)
    writer.close()
    await writer.wait_closed()
    # A whole other conversation later the agent answers, and the start is brought to its end.
    assert "state=Transient" in await peopled.ok("admin.vm.List", "work")
    instance = started[0]
    peopled.qubes.running.agent_said(instance.name, instance.pid, REPORT)
    async with asyncio.timeout(SOON):
        while "state=Running" not in await peopled.ok("admin.vm.List", "work"):
            pass


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
