"""The stream of statistics (specification sheet, section 3.4)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from caisson.admin.methods.events import CONNECTED
from caisson.admin.registry import Call, stream_method
from caisson.model import Event
from caisson.names import DOM0


@stream_method(
    "admin.vm.Stats",
    help="Tell what running qubes use, every `stats_interval` seconds: all on the admin qube.",
)
async def stream_stats(call: Call) -> AsyncGenerator[Event, None]:
    """Tell what running qubes use until the client leaves."""
    yield CONNECTED
    async with call.qubes.stats.listen() as events:
        async for event in events:
            if call.destination.name in {DOM0, event.subject} and call.shows(event):
                yield event
