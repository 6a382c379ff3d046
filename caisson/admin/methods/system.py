"""The system as a whole."""

from __future__ import annotations

import asyncio

from caisson.admin.registry import Access, Call, Scope, To, method
from caisson.store import qubes_xml_write


@method(
    "caisson.system.Export",
    to=To.ADMIN,
    scope=Scope.TRUSTED,
    access=Access.READ,
    help="Tell all that the model holds, as a `qubes.xml`.",
)
async def export(call: Call) -> bytes:
    """Tell all that the model holds, as a `qubes.xml`; what volumes contain is no part of it."""
    # What is described is one moment; writing it down takes longer, and holds up nobody.
    described = qubes_xml_write.describe(call.qubes.system)
    return await asyncio.to_thread(qubes_xml_write.write, described)
