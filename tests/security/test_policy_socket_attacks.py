"""What a hostile program of the group `qubes` tries at the sockets for decisions."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_rig import PATIENCE, Rig, broker_rig, exchange, policy_query, prompt_agent, until

from caisson.qrexec.answering import MOST_CONNECTIONS
from caisson.qrexec.directories import policy_links
from caisson.qrexec.link import address
from caisson.qrexec.turns import MOST_WAITING

pytestmark = pytest.mark.root

POLICY = "my.Allowed * @anyvm vault allow\nmy.Asked * @anyvm vault ask\n"
GOOD = policy_query("my.Allowed")


async def is_served(rig: Rig) -> bool:
    """Whether an honest request is answered."""
    return b"result=allow\n" in await exchange(rig.paths.policy_socket, GOOD)


@contextlib.contextmanager
def connections(path: Path, count: int) -> Iterator[list[socket.socket]]:
    """Connections that say nothing."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(address(path))
            sock.settimeout(PATIENCE)
            made.append(sock)
        yield made


MALFORMED = [
    b"\n",
    b"\n\n",
    GOOD.replace(b"source=work\n", b""),
    GOOD.replace(b"source=work\n", b"source=work\nsource=work\n"),
    GOOD.replace(b"source=work\n", b"source=work\nowner=me\n"),
    GOOD.replace(b"source=work\n", b"source=work\nsource\n"),
    GOOD.replace(b"source=work", b"source=@anyvm"),
    GOOD.replace(b"source=work", b"source=work\0vault"),
    GOOD.replace(b"source=work", b"source=\xff\xfe"),
    GOOD.replace(b"source=work", b"source=\x1b[2Jwork"),
    GOOD.replace(b"source=work", b"source=" + b"w" * 64),
    GOOD.replace(b"=vault", b"=vault\r"),
    GOOD.replace(b"my.Allowed", b"my.Allowed+a b"),
    GOOD.replace(b"my.Allowed", b"+my.Allowed"),
    GOOD.replace(b"\n\n", b"\njust_evaluate=True\n\n"),
    GOOD + b"source=work\n",
    GOOD[:-1],
]


async def test_a_malformed_request_gets_no_answer():
    """Missing, double, unknown and bad keys, other bytes than ASCII, escapes, NULs, leftovers."""
    async with broker_rig(POLICY) as rig:
        await rig.add("work")
        await rig.add("vault")
        for request in MALFORMED:
            assert await exchange(rig.paths.policy_socket, request, end=True) == b"", request
        assert await is_served(rig)
        log = rig.log.read_bytes()
        assert b"\x1b" not in log
        assert b"a request is not answered" in log


async def test_a_giant_line_is_not_kept():
    """Nobody reads to the end of what is longer than any request."""
    async with broker_rig(POLICY) as rig:
        await rig.add("work")
        await rig.add("vault")
        for path in (rig.paths.policy_socket, rig.paths.services / "policy.EvalSimple"):
            assert await exchange(path, b"source=" + b"w" * (8 << 20)) == b""
        assert await is_served(rig)


async def test_a_malformed_evaluation_gets_no_answer():
    """Another service's name, too many words, a payload with more than two names."""
    async with broker_rig(POLICY) as rig:
        await rig.add("work")
        await rig.add("vault")
        path = rig.paths.services / "policy.EvalSimple"
        good = b"policy.EvalSimple+my.Allowed dom0 name dom0\0work\0vault"
        assert await exchange(path, good, end=True) == b"result=allow\n"
        for request in (
            b"",
            good.replace(b"Simple", b"GUI"),
            good.replace(b"+my.Allowed", b""),
            good.replace(b" dom0 name", b" name"),
            good.replace(b" dom0 name", b" do\x1bm0 name"),
            good.replace(b"\0work", b"work"),
            good + b"\0",
            good + b"\n",
            good.replace(b"vault", b"vault\xff"),
            good.replace(b"work", b"w" * 32),
            good.replace(b"vault", b"v" * 64),
            good + b" " * 70_000,
        ):
            assert await exchange(path, request, end=True) == b"", request[:80]
        assert b"\x1b" not in rig.log.read_bytes()


async def test_silent_connections_do_not_lock_others_out():
    """As many as are served at once, and more: each is hung up on after a while."""
    async with broker_rig(POLICY) as rig:
        await rig.add("work")
        await rig.add("vault")
        with connections(rig.paths.policy_socket, MOST_CONNECTIONS + 8) as silent:
            assert await is_served(rig)
            assert silent[0].recv(1) == b""


async def test_a_flood_of_requests_is_answered_or_hung_up_on():
    """Two hundred at once, and as many that leave at once: the broker serves on."""
    async with broker_rig(POLICY) as rig:
        await rig.add("work")
        await rig.add("vault")
        with connections(rig.paths.policy_socket, 200) as gone:
            for sock in gone:
                sock.send(GOOD)
        replies = await asyncio.gather(
            *(exchange(rig.paths.policy_socket, GOOD) for _ in range(200))
        )
        assert all(b"result=allow\n" in reply for reply in replies)
        lines = rig.log.read_text().count("decided for a client")
        assert lines < len(rig.audit())


async def test_questions_leave_room_for_what_needs_none():
    """Many qubes that ask at once would else hold all connections until the person has answered."""
    async with broker_rig(POLICY) as rig:
        names = [f"work{n}" for n in range(20)]
        for name in ("work", "vault", *names):
            await rig.add(name)
        async with prompt_agent(rig, lambda _: None):
            asking = [
                asyncio.create_task(
                    exchange(rig.paths.policy_socket, policy_query("my.Asked", source=name))
                )
                for name in names * 8
            ]
            try:
                await until(lambda: sum(task.done() for task in asking) > len(asking) // 2)
                assert await is_served(rig)
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)


async def test_one_qube_cannot_bury_the_questions_of_another():
    """Its own questions wait for each other, and too many of them are denied."""
    async with broker_rig(POLICY) as rig, prompt_agent(rig, lambda _: None) as questions:
        for name in ("work", "other", "vault"):
            await rig.add(name)
        buried = MOST_WAITING + 6
        with connections(rig.paths.policy_socket, buried) as many:
            for sock in many:
                sock.send(policy_query("my.Asked"))
            denied = [await rig.audited(ended="denied", service="my.Asked")]
            await until(lambda: len(rig.audit()) == buried - MOST_WAITING - 1)
            assert "too many questions" in denied[0]["reason"]
            with connections(rig.paths.policy_socket, 1) as (honest,):
                honest.send(policy_query("my.Asked", source="other"))
                await until(lambda: len(questions) == 2)
                assert [question["source"] for question in questions] == ["work", "other"]


def connecting(path: Path, **identity: object) -> int:
    """Connect as somebody else; the error's number."""
    code = f"import socket; print(socket.socket(socket.AF_UNIX).connect_ex({str(path)!r}))"
    done = subprocess.run(
        # The checkout and its Python may lie where only root may enter.
        ["/usr/bin/python3", "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd="/",
        **identity,
    )
    return int(done.stdout)


async def test_only_root_and_the_group_reach_the_sockets():
    """A qube's or a daemon's user of the machine learns nothing of the policy."""
    async with broker_rig(POLICY) as rig:
        somebody = {"user": 54321, "group": 54321}
        group = rig.paths.policy_sockets.stat().st_gid
        for link in policy_links(rig.paths):
            assert connecting(link, **somebody, extra_groups=[]) == errno.EACCES
            assert connecting(link, **somebody, extra_groups=[group]) == 0
            assert connecting(link) == 0
