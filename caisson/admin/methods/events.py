"""The stream of events (specification sheet, section 3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from caisson.admin.bounds import ANSWER_SECONDS
from caisson.admin.registry import Call, stream_method
from caisson.ext import Filter
from caisson.model import ADMIN_UUID, Event

_HIDDEN = (
    "admin-permission:",
    "device-get:",
    "device-list:",
    "device-list-attached:",
    "domain-is-fully-usable",
)
CONNECTED = Event(None, "connection-established", {})


@dataclass(frozen=True, slots=True)
class Wanted:
    """The events of one stream: those of one qube, or all, as far as the caller is shown them.

    Args:
        of: the qube; None for all and the system's own.
        shows: what the caller is shown; None for everything.
    """

    of: UUID | None
    shows: Filter | None

    @classmethod
    def by(cls, call: Call) -> Self:
        """What a call on this destination asks for."""
        uuid = call.destination.uuid
        return cls(None if uuid == ADMIN_UUID else uuid, call.shows)

    def __call__(self) -> Callable[[Event], bool]:
        """What of the next batch of events is wanted."""
        """Look at the rules as they are now; the result says which events are told."""
        shown = None if self.shows is None else self.shows()
        return lambda event: (
            (self.of is None or (event.subject is not None and event.about == self.of))
            and not event.name.startswith(_HIDDEN)
            and (shown is None or shown(event))
        )


@stream_method(
    "admin.Events",
    help="Tell what happens, as it happens: everything on the admin qube, else about one qube.",
)
async def stream_events(call: Call) -> AsyncGenerator[Event, None]:
    """Tell what happens until the client leaves."""
    with call.qubes.events.subscribe(Wanted.by(call), patience=ANSWER_SECONDS) as events:
        yield CONNECTED
        async for event in events:
            yield event
