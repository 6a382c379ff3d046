"""Whoever may mark qubes must not lock the broker out by how much there is to tell it."""

from __future__ import annotations

import pytest
from broker_rig import Peer, Rig, broker_rig, info

from caisson.model.limits import LONGEST_TAG, MOST_TAGS
from caisson.qrexec.link import LONGEST_LINE, encode_domain

pytestmark = pytest.mark.root

POLICY = "* * work @tag:open allow target=dom0\n"
TAGS = tuple(f"{number:0{LONGEST_TAG}}" for number in range(MOST_TAGS))


async def verdict(client: Peer) -> bytes:
    """How the broker decides; dom0 has no service that could run."""
    return (await client.receive())[0][:1]


async def marked(rig: Rig) -> None:
    """As many marks as the model allows, on so many qubes that no line holds them."""
    size = len(encode_domain(info("q", tags=TAGS)))
    fresh = {f"q{n}": info(f"q{n}", tags=TAGS) for n in range(LONGEST_LINE // size + 2)}
    rig.domains |= fresh
    await rig.link.push(fresh)


async def test_marks_beyond_a_line_of_the_link_lock_nobody_out():
    """They arrive, and again after the broker or qubesd was started anew: calls are decided."""
    async with broker_rig(POLICY) as rig:
        await rig.run("work")
        await rig.add("vault", tags=("open",))
        assert await verdict(await rig.call("work", "vault", "my.Service")) == b"E"
        await marked(rig)
        assert rig.link.connected
        await rig.add("other", tags=("open",))
        assert await verdict(await rig.call("work", "other", "my.Service")) == b"E"
        await rig.kill_broker()
        rig.start_broker()
        await rig.ready()
        await rig.agent("work")
        assert await verdict(await rig.call("work", "vault", "my.Service")) == b"E"
        assert await verdict(await rig.call("work", "q1", "my.Service")) == b"R"
        await rig.link.push({}, [name for name in rig.domains if name.startswith("q")])
        assert await verdict(await rig.call("work", "vault", "my.Service")) == b"E"


async def test_a_qube_that_takes_a_line_by_itself_is_left_out_alone():
    """Marked before there were bounds: it is no target until it has less, the others are."""
    async with broker_rig(POLICY) as rig:
        await rig.run("work")
        await rig.add("vault", tags=("open",))
        await rig.add("heavy", tags=("open", *("t" * 1024 + str(n) for n in range(17_000))))
        assert await verdict(await rig.call("work", "vault", "my.Service")) == b"E"
        assert await verdict(await rig.call("work", "heavy", "my.Service")) == b"R"
        assert rig.link.system_info.find("heavy") is None
        await rig.add("heavy", tags=("open",))
        assert await verdict(await rig.call("work", "heavy", "my.Service")) == b"E"
