"""The transport of the Admin API, bytes in and bytes out (sheet `admin-api`, section 1)."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from admin_daemons import daemon, peopled
from admin_lab import SOON, Daemon, running_daemon, until
from structlog.testing import capture_logs

from caisson.admin.registry import Door

__all__ = ["daemon", "peopled"]

NIL = "00000000-0000-0000-0000-000000000000"
DEVICES = b"0\0block\nmic\npci\nusb\n"
ADMIN_LINE = f"dom0 class=AdminVM state=Running uuid={NIL}\n".encode()


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
    async with running_daemon(tmp_path, request_seconds=1.0) as daemon:
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
