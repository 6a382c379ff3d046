"""Attacks on the broker from inside a qube, over the qube's own socket."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from broker_rig import PATIENCE, REPORT, Peer, Rig, broker_account, broker_rig, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caisson.names import QubeName

pytestmark = pytest.mark.root

ALLOW = "* * @anyvm @anyvm allow\n"
IMPOSTOR = """
import os, socket, sys
os.setresuid(4242, 4242, 4242)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.send(b"H1\\0" + sys.argv[2].encode())
print(s.recv(100)[:1].decode(), flush=True)
"""


def impostor(rig: Rig, qube: str) -> str:
    """Another process of the qube claims to be its agent; what it is told."""
    result = subprocess.run(
        [sys.executable, "-c", IMPOSTOR, rig.socket(qube), REPORT.decode()],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        # The directory of sockets is closed to other users: the impostor is in the qube.
        cwd=rig.socket(qube).parent,
    )
    return result.stdout.strip() or result.stderr


def open_descriptors(rig: Rig) -> int:
    """How many descriptors the broker holds."""
    return len(list(Path(f"/proc/{rig.process.pid}/fd").iterdir()))


def flood(rig: Rig, qube: str) -> subprocess.Popen[bytes]:
    """A process of the qube that connects and sends as fast as it can."""
    return subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(rig.socket(qube))], stdout=subprocess.PIPE
    )


async def passes(rig: Rig, agent: Any) -> float:
    """Make one honest call; gives its duration in seconds."""
    started = time.perf_counter()
    client = await rig.call("work", "vault", "my.Honest")
    service = await agent.next_call()
    await service.end(0)
    message, descriptors = await client.receive()
    for descriptor in descriptors:
        os.close(descriptor)
    assert message == b"A"
    assert (await client.receive())[0] == b"X0"
    client.close()
    return time.perf_counter() - started


async def test_impostor_of_the_agent_is_not_served():
    """Who the agent is the kernel says, not the process; it would get all the qube's calls."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        rig.socket("vault").parent.parent.chmod(0o711)
        assert await asyncio.to_thread(impostor, rig, "vault") == "N"
        await passes(rig, agent)


async def test_crowd_of_impostors_does_not_keep_the_agent_out():
    """They fill their own queue; the agent's turn comes."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        await rig.add("vault")
        rig.genuine.clear()
        await rig.link.open_qube(QubeName("vault"))
        crowd = [Peer(rig.socket("vault")) for _ in range(60)]
        for peer in crowd:
            await peer.send(b"H1\0" + REPORT)
        for peer in crowd:
            assert (await peer.receive())[0][:1] in {b"N", b""}
            peer.close()
        rig.genuine.add(os.getpid())
        await passes(rig, await rig.agent("vault"))


async def test_exit_code_of_another_qubes_call_is_ignored():
    """An agent ends its own calls only, whatever number it sends."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        evil = await rig.run("evil")
        vault = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        service = await vault.next_call()
        for number in range(service.id - 3, service.id + 3):
            await evil.peer.send(b"X%d\x000" % number)
        await asyncio.sleep(0)
        await passes_between(rig, evil)
        await service.end(9)
        assert (await client.receive())[0] == b"A"
        assert (await client.receive())[0] == b"X9"


async def test_an_agent_tells_once_how_the_set_up_of_its_qube_went():
    """The number reaches qubesd with the kernel's process id; saying it again ends the session."""
    async with broker_rig(ALLOW) as rig:
        evil = await rig.run("evil")
        await evil.peer.send(b"U3")
        await until(lambda: rig.set_up == [("evil", os.getpid(), 3)])
        await evil.peer.send(b"U2")
        await until(lambda: rig.gone == ["evil"])
        assert len(rig.set_up) == 1


async def passes_between(rig: Rig, agent: Any) -> None:
    """What the agent sent before has been read when its next call has ended."""
    client = await rig.call("work", "evil", "my.Marker")
    await (await agent.next_call()).end(0)
    assert (await client.receive())[0] == b"A"
    assert (await client.receive())[0] == b"X0"


MALFORMED = [
    b"", b"C", b"C\0", b"Cvault", b"Cvault\0my.Service", b"Cvault\0my.Service\0e\0",
    b"Cvault\0my.Service\0z", b"Cvault\0\0", b"Cvault\0+arg\0", b"Cvault\0my Service\0",
    b"Cvault\0my/../Service\0", b"Cvault\0my.Service+a/b\0", b"Cvault\0my.Service\n\0",
    b"C" + b"v" * 64 + b"\0my.Service\0", b"Cva ult\0my.Service\0", b"Cvault\0my.\xc3\xa9\0",
    b"Cvault\0" + b"s" * 256 + b"\0", b"Cvault\0s+" + b"a" * 65_001 + b"\0", b"C@\0\0",
    b"Dvault\0\0true", b"Jvault\0\0true", b"H", b"H1", b"H1\0", b"H1\0{", b"Hx\0{}", b"H1\0[]",
    b"H1\0" + b"[" * 60_000, b'H1\0{"barriers":{"a":{"up":1}}}', b"X1\x000", b"W", b"A", b"R",
    b"S1\0\0s\0v\0", b"\0", b"\xff" * 66_000, b"Z" * 66_001, b"C" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("message", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_message_is_refused_and_harms_nobody(message: bytes):
    """Malformed and huge requests: the answer is no, and the next honest call passes."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        peer = rig.client("work")
        await peer.send(message)
        assert (await peer.receive())[0] in {b"R", b""}
        await passes(rig, agent)
        assert rig.process.poll() is None


async def test_random_messages_never_end_the_broker():
    """Property: whatever datagram arrives, each side gets an end, and honest calls pass."""
    field = st.one_of(
        st.sampled_from([b"vault", b"my.Service", b"e", b"1", b"0", b"{}", REPORT, b"@dispvm"]),
        st.binary(max_size=40),
    )
    message = st.builds(
        lambda kind, fields: kind + b"\0".join(fields),
        st.sampled_from([b"C", b"D", b"H", b"X", b"J", b"\0", b"\xff"]),
        st.lists(field, max_size=6),
    )
    async with broker_rig("") as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        path = str(rig.socket("work"))
        rig.genuine.clear()

        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
        @given(message)
        def attack(datagram: bytes) -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(path)
                sock.send(datagram)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(100)[:1] in {b"R", b"N", b"E", b""}

        await asyncio.to_thread(attack)
        rig.policy(ALLOW)
        await passes(rig, agent)


async def test_agent_that_sends_nonsense_loses_its_session_alone():
    """Even an admitted agent is not trusted."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        for nonsense in (b"Xa\x001", b"X1\x00256", b"X1", b"H1\0{}", b"\xff" * 100):
            evil = await rig.run("evil")
            await evil.peer.send(nonsense)
            assert (await evil.peer.receive())[0] == b""
            await passes(rig, agent)


async def test_descriptors_from_a_qube_are_refused_and_closed():
    """A qube cannot push descriptors into the broker, nor exhaust it with them."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await passes(rig, agent)
        before = open_descriptors(rig)
        read, write = os.pipe()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write] * 50))]
        for _ in range(20):
            peer = rig.client("work")
            peer.sock.sendmsg([b"Cvault\0my.Service\0"], rights)
            assert (await peer.receive())[0] == b""
        os.close(write)
        # If the broker held a copy of the write end, this would not be the end of the pipe.
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.to_thread(os.read, read, 1) == b""
        os.close(read)
        await passes(rig, agent)
        await until(lambda: open_descriptors(rig) <= before)


async def test_silent_connection_is_closed():
    """Who connects and says nothing is sent away after ten seconds; others do not wait."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        silent = [rig.client("work") for _ in range(10)]
        await passes(rig, agent)
        for peer in silent:
            with pytest.raises(BlockingIOError):
                peer.sock.recv(1)  # the others were served before it was sent away
        async with asyncio.timeout(PATIENCE):
            assert [(await peer.receive())[0] for peer in silent] == [b""] * 10


async def test_endless_talker_is_cut_off():
    """After its request a client has nothing to say: the second message ends the session."""
    async with broker_rig(ALLOW) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        client = await rig.call("work", "vault", "my.Service")
        service = await agent.next_call()
        await client.send(b"more")
        messages = [(await client.receive())[0] for _ in range(2)]
        assert messages == [b"A", b""]
        with pytest.raises(BrokenPipeError):
            client.sock.send(b"and more")
        service.close()
        await passes(rig, agent)


async def test_flood_of_one_qube_neither_loses_nor_delays_anothers_calls():
    """Thousands of connections and calls of one qube; a call of another takes its usual time."""
    async with broker_rig("* * evil @anyvm ask\n* * work vault allow\n") as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.add("evil")
        await rig.link.open_qube(QubeName("evil"))
        quiet = sorted([await passes(rig, agent) for _ in range(40)])
        attack = flood(rig, "evil")
        try:
            assert attack.stdout is not None
            await asyncio.to_thread(attack.stdout.readline)
            busy = sorted([await passes(rig, agent) for _ in range(100)])
        finally:
            attack.kill()
            attack.wait()
            attack.stdout.close()
        # Generous: both share this machine's cores with the flood itself and with other programs.
        # Behind the flood's thousands of connections a call would wait for seconds.
        assert busy[50] < 20 * quiet[20] + 0.5


FLOOD = """
import resource, socket, sys, threading
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
messages = [b"Cvault\\0my.Flood\\0", b"", b"\\xff" * 1000, b"Cvault\\0a+" + b"a" * 60000 + b"\\0"]
print("up", flush=True)
kept = []
n = 0
while True:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(0.05)
    try:
        s.connect(sys.argv[1])
        s.send(messages[n % 4]) if n % 4 != 1 else None
    except OSError:
        pass
    kept.append(s)
    n += 1
    if len(kept) > 5000:
        for old in kept[:2500]:
            old.close()
        del kept[:2500]
"""


async def test_qube_that_takes_all_it_can_leaves_room_for_others():
    """With few descriptors in all, a greedy qube gets its share, and another still connects."""
    async with broker_rig(ALLOW, limit=600) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.run("evil")
        greedy = []
        for _ in range(400):
            peer = rig.client("evil")
            await peer.send(b"Cvault\0my.Service\0")
            greedy.append(peer)
        taken = 0
        while True:
            try:
                (await agent.next_call(1.0)).close()
            except TimeoutError:
                break
            taken += 1
        assert 20 < taken < 350
        client = await rig.call("work", "vault", "my.Honest")
        service = await agent.next_call()
        assert service.descriptor == "my.Honest+"
        await service.end(0)
        message, descriptors = await client.receive()
        assert message == b"A"
        for descriptor in descriptors:
            os.close(descriptor)


async def test_callers_that_never_take_their_pipes_leave_room_for_others():
    """Descriptors that lie unread count for the whole broker: each qube gets a share of that."""
    async with broker_rig(ALLOW, limit=1200) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        await rig.run("evil")
        evil = await rig.agent("evil")
        greedy = [await rig.call("work", "evil", "my.Service") for _ in range(300)]
        answered = 0
        with contextlib.suppress(TimeoutError):
            while True:
                (await evil.next_call(1.0)).close()
                answered += 1
        assert 50 < answered < 200
        await rig.run("other")
        client = await rig.call("other", "vault", "my.Honest")
        await (await agent.next_call()).end(0)
        message, descriptors = await client.receive()
        assert message == b"A"
        for descriptor in descriptors:
            os.close(descriptor)
        assert greedy


@pytest.mark.parametrize(
    "service",
    [
        "my.\x1b[2J",
        "my.\x1b]0;title\x07",
        "my.\nlevel='error'",
        "my.\x9b31m",
        "\u202emy",
        "my.\x7f",
    ],
)
async def test_escape_sequences_in_names_reach_no_terminal_and_no_log(service: str):
    """QSB-087 and its kind: what a qube sends is never shown raw."""
    async with broker_rig("") as rig:
        await rig.run("work")
        peer = rig.client("work")
        await peer.send(f"Cvault\0{service}\0".encode())
        assert (await peer.receive())[0] == b"R"
        peer = rig.client("work")
        await peer.send(f"C{service}\0my.Service\0".encode("latin-1", "replace"))
        assert (await peer.receive())[0] == b"R"
        await until(lambda: len(rig.audit()) == 2)
        for file in (rig.paths.audit, rig.log):
            raw = file.read_bytes()
            assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in raw), file
            for line in raw.splitlines():
                assert line.startswith((b'{"time":', b"timestamp="))


@pytest.mark.parametrize("argument", ["", "a", "+", "a+b", "-", "..", "a" * 65_000, "a_b.c-d"])
async def test_argument_that_policy_judges_is_the_one_that_the_service_gets(argument: str):
    """QSB-038: the very same bytes; nothing is replaced, cut or completed in between."""
    policy = f"my.Service +{argument} work vault allow\n"
    async with broker_rig(policy) as rig:
        await rig.run("work")
        agent = await rig.run("vault")
        plus = f"+{argument}" if argument else ""
        client = await rig.call("work", "vault", f"my.Service{plus}")
        service = await agent.next_call()
        assert service.descriptor == f"my.Service+{argument}"
        service.close()
        client.close()
        other = await rig.call("work", "vault", f"my.Service+{argument[:100]}x")
        assert (await other.receive())[0] == b"R"


async def test_long_arguments_do_not_bury_the_audit_log():
    """A long text is cut in the record, which keeps its length and hash."""
    async with broker_rig("") as rig:
        await rig.run("work")
        client = await rig.call("work", "vault", "my.Service+" + "a" * 60_000)
        assert (await client.receive())[0] == b"R"
        record = await rig.audited(service="my.Service")
        assert record["argument_length"] == 60_001
        assert len(json.dumps(record)) < 4096


async def test_stranger_cannot_speak_on_the_link():
    """Only the broker's user is heard by qubesd."""
    async with broker_rig("") as rig:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, str(rig.paths.link))
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(sock, b'{"type":"AgentGone","name":"work"}\n')
                assert await loop.sock_recv(sock, 100) == b""
        assert rig.gone == []
        assert rig.link.connected


async def test_other_users_of_the_machine_cannot_reach_a_qubes_socket():
    """Somebody who could connect there would speak as the qube."""
    async with broker_rig("") as rig:
        await rig.run("work")
        code = (
            "import os,socket,sys; os.setgroups([]); os.setresgid(4242,4242,4242);"
            "os.setresuid(4242,4242,4242); s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n"
            "for p in sys.argv[1:]:\n"
            " try: s.connect(p); print('in')\n"
            " except PermissionError: print('out')\n"
        )
        paths = [rig.socket("work"), rig.paths.dom0_socket, rig.paths.link, rig.paths.prompt_agent]
        result = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *map(str, paths), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await result.communicate()
        assert output.split() == [b"out"] * 4


async def test_broken_link_message_does_not_end_qubesd():
    """A broker that was taken over is an attacker of qubesd: what it sends is checked."""
    async with broker_rig("") as rig:
        await rig.kill_broker()
        code = (
            "import os,socket,sys,pwd; a=pwd.getpwnam(sys.argv[2]); os.setgroups([]);"
            "os.setresgid(a.pw_gid,a.pw_gid,a.pw_gid); os.setresuid(a.pw_uid,a.pw_uid,a.pw_uid)\n"
            'for line in (b\'nonsense\', b\'{}\', b\'{"type":"AgentGone","name":"../x"}\','
            '  b\'{"type":"Request","id":1,"op":"rm","name":"x","source":"y"}\','
            "  b'[' * 100000, b'\\xff\\xfe', b'9' * (17 << 20)):\n"
            " s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            " try:\n"
            "  s.sendall(line + b'\\n')\n"
            "  while s.recv(65536): pass\n"
            " except ConnectionError: pass\n"
        )
        attacker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(rig.paths.link), broker_account().pw_name
        )
        async with asyncio.timeout(60):
            assert await attacker.wait() == 0
        assert rig.gone == []
        rig.start_broker()
        await rig.ready()
        await rig.run("work")
