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
    """Tell what happens until the client leaves.

    Each event is judged when it happens: later the qube that it is about may be gone.
    """

    def wanted(event: Event) -> bool:
        about = call.destination.name in {DOM0, event.subject}
        return about and not event.name.startswith(_HIDDEN) and call.shows(event)

    with call.qubes.events.subscribe(wanted) as events:
        yield CONNECTED
        async for event in events:
            yield event
