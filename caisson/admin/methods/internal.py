"""Methods of the internal socket, for trusted programs of the admin qube only."""

from __future__ import annotations

import msgspec

from caisson.admin.registry import Access, Call, Scope, To, method


@method(
    "internal.SuspendPre",
    to=To.ADMIN,
    scope=Scope.INTERNAL,
    access=Access.EXECUTE,
    help="Pause every running qube, before the machine sleeps.",
)
async def fall_asleep(call: Call) -> None:
    """Pause every running qube."""
    await call.qubes.fall_asleep()


@method(
    "internal.SuspendPost",
    to=To.ADMIN,
    scope=Scope.INTERNAL,
    access=Access.EXECUTE,
    help="Let the qubes go on that `internal.SuspendPre` paused.",
)
async def wake_up(call: Call) -> None:
    """Let the qubes go on that were paused for the sleep."""
    await call.qubes.wake_up()


@method(
    "internal.GetSystemInfo",
    to=To.ADMIN,
    scope=Scope.INTERNAL,
    help="Tell all that policy decisions depend on, and how qubes are wired, as JSON.",
)
async def get_system_info(call: Call) -> bytes:
    """Tell all that policy decisions depend on, and how qubes are wired."""
    system = call.qubes.system
    told = system.info(call.qubes.state_of)
    for name, qube in system.qubes.items():
        told[str(name)] |= system.wiring_of(qube)
    return msgspec.json.encode({"domains": told})
