"""Notes about qubes (specification sheet, section 2.8)."""

from __future__ import annotations

from caisson.admin.registry import Access, Call, Text, To, method
from caisson.errors import NotesError
from caisson.model import Klass


@method("admin.vm.notes.Get", to=To.NOT_ADMIN, help="Tell the notes about a qube.")
async def get_notes(call: Call) -> str:
    """Tell the notes; nothing where there are none."""
    if call.destination.klass is Klass.REMOTE:
        raise NotesError(f"RemoteVM `{call.destination.name}` has no notes")
    return call.destination.notes


@method(
    "admin.vm.notes.Set",
    to=To.NOT_ADMIN,
    payload=Text.OPTIONAL,
    access=Access.WRITE,
    help="Set the notes about a qube; an empty payload removes them.",
)
async def set_notes(call: Call) -> None:
    """Set the notes, with what is unsafe to show replaced by `_`."""
    await call.commit(call.qubes.system.plan_notes(call.destination, call.untrusted_payload))
