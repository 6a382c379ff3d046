"""Attacks on qubesd by a broker that a hostile qube has taken over, through the socket of calls."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from admin_rig import daemon_rig, exception
from broker_rig import broker_account, until
from dom0_rig import service_rig
from forged_calls import HONEST, Attacker, forged
from hypothesis import given, settings
from hypothesis import strategies as st

from caisson.admin import pipes
from caisson.errors import CaissonError
from caisson.names import DOM0
from caisson.paths import Paths
from caisson.qrexec import AdminCall, AdminCalls, admin_calls
from caisson.qrexec.admin_messages import MOST_CALLS, MOST_OF_ONE, checked, read_handover

pytestmark = pytest.mark.root


class Door:
    """The socket of calls, and what came through it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.served: list[AdminCall] = []

    async def passes(self, source: str = "mgmt") -> bytes:
        """An honest call."""
        attacker = Attacker(self.path)
        attacker.call(source=source)
        answer = await attacker.answer()
        attacker.close()
        return answer

    async def serve(self, call: AdminCall) -> int:
        """Serve a call."""
        self.served.append(call)
        if call.argument == "long":
            await pipes.write_all(call.stdout, bytes(1 << 20), 60)
        if call.argument == "gone":
            await call.gone.wait()
        return 3


@asynccontextmanager
async def door() -> AsyncIterator[Door]:
    """The side of qubesd alone."""
    with tempfile.TemporaryDirectory(prefix="caisson-admin-", dir="/tmp") as root:
        paths, account = Paths(Path(root)), broker_account()
        made = Door(paths.admin_calls)
        calls = AdminCalls(paths, account.pw_uid, account.pw_gid, serve=made.serve)
        calls.bind()
        running = asyncio.create_task(calls.run())
        try:
            yield made
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.wait([running])


def descriptors() -> int:
    """How many this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nobody_but_the_broker_is_heard():
    """Not even root: whoever else can reach the socket has no business there."""
    async with door() as made:
        stranger = Attacker(made.path, identity=contextlib.nullcontext)
        stranger.call()
        assert await stranger.answer() == b""
        stranger.close()
        assert not made.served
        assert await made.passes() == b'{"code":3}'


MESSAGES: list[bytes | dict[str, Any]] = [
    b"{}", b"[]", b"\xff" * 100, b"[" * 60_000, b"x" * 67_001, b"x" * 150_000,
    json.dumps(HONEST).encode()[:-1], json.dumps(HONEST).encode() + b" {}",
    {"source": "dom0"}, {"source": "@adminvm"}, {"source": ""}, {"source": "uuid:" + "0" * 36},
    {"source": "a b"}, {"source": "mgmt\n"}, {"source": 7}, {"source": "x" * 32},
    {"service": "my.Service/"}, {"service": "../my.Service"}, {"service": "admin.X+y"},
    {"service": "admin.vm.List dom0"}, {"service": ""}, {"service": "my.Service\0"},
    {"argument": ""}, {"argument": "x"}, {"argument": "+x y"}, {"argument": "+x\0"},
    {"argument": "+" + "a" * 65_001}, {"argument": None},
    {"target_type": "path"}, {"target_type": ""}, {"requested": ""}, {"requested": "a b"},
    {"requested": "work\n"}, {"requested": "x" * 64}, {"id": "1"}, {"surplus": 1},
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
async def test_a_malformed_message_is_dropped_with_its_descriptors(
    message: bytes | dict[str, Any],
):
    """The connection is closed without an answer, nothing leaks, and the next call passes."""
    raw = message if isinstance(message, bytes) else json.dumps(HONEST | message).encode()
    async with door() as made:
        before = descriptors()
        attacker = Attacker(made.path)
        attacker.ends = [end for _ in range(3) for end in os.pipe()]
        attacker.send(raw, attacker.ends[::2])
        assert await attacker.answer() == b""
        attacker.close()
        assert not made.served
        assert await made.passes() == b'{"code":3}'
        await until(lambda: descriptors() <= before)


def _pipe_ends(count: int) -> list[int]:
    return [end for _ in range(count) for end in os.pipe()]


def _sockets() -> list[int]:
    return [s.detach() for _ in range(2) for s in socket.socketpair()]


def _devices() -> list[int]:
    return [os.open("/dev/null", os.O_RDWR) for _ in range(3)]


def _directory_and_pipes() -> list[int]:
    return [os.open("/", os.O_RDONLY), *_pipe_ends(1)]


ODD: dict[str, tuple[Callable[[], list[int]], int]] = {
    "none": (list, 0),
    "too few": (lambda: _pipe_ends(1), 2),
    "one more": (lambda: _pipe_ends(2), 4),
    "a heap": (lambda: _pipe_ends(100), 200),
    "sockets": (_sockets, 3),
    "devices": (_devices, 3),
    "a directory": (_directory_and_pipes, 3),
}


@pytest.mark.parametrize("kind", ODD)
async def test_only_three_pipes_are_taken(kind: str):
    """Whatever else is sent is closed: nothing of the broker's is read, written or kept."""
    make, count = ODD[kind]
    async with door() as made:
        before = descriptors()
        attacker = Attacker(made.path)
        attacker.ends = make()
        attacker.send(json.dumps(HONEST).encode(), attacker.ends[:count])
        assert await attacker.answer() == b""
        attacker.close()
        assert not made.served
        assert await made.passes() == b'{"code":3}'
        await until(lambda: descriptors() <= before)


async def test_a_pipe_that_the_broker_makes_blocking_stops_nobody():
    """The broker keeps a copy of what it sends; its status must not be the one that is used."""
    async with door() as made:
        attacker = Attacker(made.path)
        attacker.call(argument="+long")
        await until(lambda: bool(made.served))
        for end in attacker.ends:
            os.set_blocking(end, True)
        # Room for a part of what is left: with this status, writing it would stop the daemon.
        os.read(attacker.ends[2], 32_768)
        for _ in range(10):
            assert await made.passes() == b'{"code":3}'
        attacker.close()


async def test_a_call_whose_caller_is_gone_already_is_served():
    """Who waits for nothing may be gone before qubesd looks at the pipes."""
    async with door() as made:
        attacker = Attacker(made.path)
        attacker.call()
        for end in attacker.ends:
            os.close(end)
        attacker.ends = []
        assert await attacker.answer() == b'{"code":3}'
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(made.served[0].stdout)
        attacker.close()


async def test_a_second_message_is_not_a_second_call():
    """It counts as hanging up, and what it carries is closed."""
    async with door() as made:
        before = descriptors()
        attacker = Attacker(made.path)
        attacker.call(argument="+gone")
        attacker.send(json.dumps(HONEST).encode(), attacker.ends[:3])
        assert await attacker.answer() == b""
        attacker.close()
        assert [call.argument for call in made.served] == ["gone"]
        await until(lambda: descriptors() <= before)


async def test_calls_in_flight_are_bounded_for_each_qube_and_in_all():
    """What is too much is dropped at once; there is room for every other qube until the end."""
    async with door() as made:
        attackers: list[Attacker] = []

        def begin(source: str) -> None:
            attackers.append(Attacker(made.path))
            attackers[-1].call(source=source, argument="+gone")

        for _ in range(MOST_OF_ONE + 5):
            begin("evil")
        for attacker in attackers[MOST_OF_ONE:]:
            assert await attacker.answer() == b""
        assert len(made.served) == MOST_OF_ONE
        assert await made.passes("mgmt") == b'{"code":3}'
        for number in range(20):
            for _ in range(MOST_OF_ONE):
                begin(f"evil{number}")
            assert await made.passes("mgmt") in {b'{"code":3}', b""}
        waiting = [call for call in made.served if call.argument == "gone"]
        assert len(waiting) <= MOST_CALLS
        for attacker in attackers:
            attacker.close()
        await until(lambda: all(call.gone.is_set() for call in waiting))
        assert await made.passes() == b'{"code":3}'


async def test_connections_that_say_nothing_are_closed(monkeypatch: pytest.MonkeyPatch):
    """More of them than there may be: the honest call waits, and passes."""
    monkeypatch.setattr(admin_calls, "FIRST_MESSAGE_TIMEOUT", 0.1)
    async with door() as made:
        silent = [Attacker(made.path) for _ in range(MOST_CALLS + admin_calls.MOST_SILENT + 50)]
        assert await made.passes() == b'{"code":3}'
        for attacker in silent:
            attacker.close()


TEXT = st.one_of(st.sampled_from(["dom0", "admin.", "+", "name", "keyword"]), st.text(max_size=40))


@settings(max_examples=500)
@given(st.one_of(st.binary(), st.fixed_dictionaries({k: TEXT | st.integers() for k in HONEST})))
def test_any_message_is_a_checked_call_or_a_refusal(message: bytes | dict[str, Any]):
    """Property: no other exception, and never a call in the name of the admin qube."""
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    try:
        source, service, argument = checked(read_handover(raw))
    except CaissonError:
        return
    assert source != DOM0
    assert service.startswith(("admin.", "qubes."))
    assert " " not in f"{source}{service}{argument}"


async def test_a_broker_cannot_give_a_qube_a_right_that_the_policy_does_not():
    """Qubesd judges each call by the policy itself: by source, service, argument and target."""
    policy = """\
admin.vm.List    *     mgmt  dom0  allow
admin.vm.tag.Set +good mgmt  work  allow target=dom0
admin.vm.tag.Set +bad  mgmt  work  allow
admin.vm.Remove  *     mgmt  work  deny
"""
    async with daemon_rig(policy, "mgmt", "work", "evil") as daemon:
        tag = {"service": "admin.vm.tag.Set", "requested": "work"}
        for changed in (
            {"source": "evil"},
            {"source": "nowhere"},
            {"service": "admin.vm.Remove", "requested": "work"},
            {"service": "admin.vm.Remove", "requested": "evil"},
            {**tag, "argument": "+evil"},
            {**tag, "argument": "+bad"},
            {**tag, "argument": "+good", "requested": "mgmt"},
            {**tag, "argument": "+good", "source": "evil"},
            {"requested": "adminvm", "target_type": "name"},
        ):
            code, frame, _ = await forged(daemon, **changed)
            assert code == b'{"code":0}', changed
            assert exception(frame) in {"PermissionDenied", "QubesVMNotFoundError"}, changed
        assert await forged(daemon, source="dom0") == (b"", b"", b"")
        assert await daemon.ask("admin.vm.tag.Get+good", "work") == b"0\x000"
        assert set(daemon.qubes.system.qubes) >= {"mgmt", "work", "evil"}
        done = await forged(daemon, **tag, argument="+good")
        assert done == (b'{"code":0}', b"0\0", b"")
        assert await daemon.ask("admin.vm.tag.Get+good", "work") == b"0\x001"


async def test_a_broker_starts_no_service_that_the_policy_does_not_allow():
    """Programs of the admin qube too: by source, argument and target."""
    policy = "my.Mark +good work @adminvm allow\nmy.Mark +far work other allow\n"
    async with service_rig(policy, "work", "other") as admin:
        admin.lay("my.Mark", 'echo "$QREXEC_REMOTE_DOMAIN $1"')
        allowed = {"service": "my.Mark", "source": "work", "argument": "+good"}
        for changed in (
            {"source": "other"},
            {"source": "nowhere"},
            {"argument": "+bad"},
            {"argument": "+far"},
            {"argument": "+far", "requested": "other"},
            {"service": "my.Other"},
        ):
            assert await forged(admin, **allowed | changed) == (b'{"code":126}', b"", b""), changed
        assert await forged(admin, **allowed) == (b'{"code":0}', b"work good\n", b"")


async def test_a_caller_in_the_name_of_the_admin_qube_is_refused_by_the_server_too():
    """Were the door to let it through: `* * * * allow` is no right of dom0's for anybody else."""
    async with daemon_rig("* * * * allow\n", "mgmt") as daemon:
        in_read, in_write, out_read, out_write, err_read, err_write = ends = _pipe_ends(3)
        for end in ends:
            fcntl.fcntl(end, fcntl.F_SETFL, os.O_NONBLOCK)
        os.close(in_write)
        call = AdminCall(
            DOM0, "admin.vm.List", "", "name", "dom0",  # type: ignore[arg-type]
            in_read, out_write, err_write, asyncio.Event(),
        )  # fmt: skip
        assert await daemon.piped.serve(call) == 0
        assert exception(os.read(out_read, 1_000)) == "PermissionDenied"
        for end in (in_read, out_read, out_write, err_read, err_write):
            os.close(end)
