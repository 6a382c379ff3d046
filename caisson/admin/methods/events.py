"""The stream of events (specification sheet, section 3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from caisson.admin.registry import Call, stream_method
from caisson.model import Event
from caisson.names import DOM0

_HIDDEN = (
    "admin-permission:",
    "device-get:",
    "device-list:",
    "device-list-attached:",
    "domain-is-fully-usable",
)
CONNECTED = Event(None, "connection-established", {})


@stream_method(
    "admin.Events",
    help="Tell what happens, as it happens: everything on the admin qube, else about one qube.",
)
async def stream_events(call: Call) -> AsyncGenerator[Event, None]:
    """Tell what happens until the client leaves."""
    with call.qubes.events.subscribe() as events:
        yield CONNECTED
        async for event in events:
            if event.name.startswith(_HIDDEN):
                continue
            if call.destination.name in {DOM0, event.subject} and call.shows(event):
                yield event
