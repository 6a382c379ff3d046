"""The system as a whole."""

from __future__ import annotations

import asyncio

from caisson.admin.registry import Access, Call, Scope, To, method
from caisson.model import System
from caisson.store import qubes_xml_write
from caisson.store.qubes_xml import Description, Domain

_SLICE = 100
_TRIES = 3


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
    described = await _described(call.qubes.system)
    return await asyncio.to_thread(qubes_xml_write.write, described)


async def _described(system: System) -> Description:
    """What one moment looks like, with room for other calls as long as they change nothing."""
    for _ in range(_TRIES):
        began = system.applied
        domains: list[Domain] = []
        for qube in qubes_xml_write.in_order(system):
            if len(domains) % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
                if system.applied != began:
                    break
            domains.append(qubes_xml_write.describe_qube(system, qube))
        else:
            return qubes_xml_write.described(system, domains)
    return qubes_xml_write.describe(system)
