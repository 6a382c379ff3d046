"""The stream of statistics (specification sheet, section 3.4)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from caisson.admin.bounds import ANSWER_SECONDS
from caisson.admin.methods.events import CONNECTED, Wanted
from caisson.admin.registry import Call, stream_method
from caisson.model import Event


@stream_method(
    "admin.vm.Stats",
    help="Tell what running qubes use, every `stats_interval` seconds: all on the admin qube.",
)
async def stream_stats(call: Call) -> AsyncGenerator[Event, None]:
    """Tell what running qubes use until the client leaves."""
    yield CONNECTED
    async with call.qubes.stats.listen(Wanted.by(call), patience=ANSWER_SECONDS) as events:
        async for event in events:
            yield event
