"""Methods of the internal socket, for trusted programs of the admin qube only."""

from __future__ import annotations

import msgspec

from caisson.admin.registry import Call, Scope, To, method


@method(
    "internal.GetSystemInfo",
    to=To.ADMIN,
    scope=Scope.INTERNAL,
    help="Tell all that policy decisions depend on, as JSON.",
)
async def get_system_info(call: Call) -> bytes:
    """Tell all that policy decisions depend on."""
    return msgspec.json.encode({"domains": call.qubes.system.info(call.qubes.state_of)})
