"""How long it takes to plug a qube to its network qube: python tests/bench/network_plug.py [N].

Not a test: numbers depend on the machine and on what else it does.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from network_lab import laboratory

from caisson.network import Endpoint

SAMPLES = 50


async def timed(what: str, ends: list[Endpoint], act: Callable[[Endpoint], Awaitable[None]]):
    """Do something to each qube in turn and print how long it took."""
    took = []
    for end in ends:
        start = time.perf_counter()
        await act(end)
        took.append((time.perf_counter() - start) * 1000)
    p99 = sorted(took)[max(0, round(len(took) * 0.99) - 1)]
    print(  # noqa: T201
        f"{what:24} n={len(took):5} p50={statistics.median(took):7.2f} ms p99={p99:7.2f} ms"
    )


async def main(count: int) -> None:
    """Plug `count` qubes to one network qube."""
    async with laboratory() as lab:
        network, net = lab.network(), lab.box("sys-net", 1)
        await network.prepare(net.endpoint)
        ends = [lab.box(f"client-{qid}", qid).endpoint for qid in range(2, count + 2)]
        last = ends[-SAMPLES:]
        await timed("plug", ends[:-SAMPLES], lambda end: network.plug(end, net.endpoint))
        await timed("plug, the last ones", last, lambda end: network.plug(end, net.endpoint))
        await timed("plug again (adopt)", last, lambda end: network.plug(end, net.endpoint))
        await timed("forget", last, lambda end: network.forget(end, net.endpoint))
        await timed("unplug", last, lambda end: network.unplug(end, net.endpoint))


if __name__ == "__main__":
    asyncio.run(main(max(SAMPLES + 1, int(sys.argv[1]) if len(sys.argv) > 1 else 0)))
