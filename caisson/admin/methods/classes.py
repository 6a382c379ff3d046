"""What qubes there are."""

from __future__ import annotations

from caisson.admin.methods.text import listing
from caisson.admin.registry import Call, Scope, To, method
from caisson.model import Klass, Qube
from caisson.names import DOM0


@method(
    "admin.vmclass.List",
    to=To.ADMIN,
    scope=Scope.GLOBAL,
    help="List the classes of qubes.",
)
async def list_classes(_call: Call) -> str:
    """List the classes of qubes."""
    return listing(Klass)


@method(
    "admin.vm.List",
    scope=Scope.GLOBAL,
    help="List qubes with their class, state and UUID: all on the admin qube, else the one.",
)
async def list_qubes(call: Call) -> str:
    """List all qubes, or the one."""
    return listing(
        f"{qube.name} class={qube.klass} state={call.qubes.state_of(qube)} uuid={qube.uuid}"
        for qube in shown_qubes(call)
        if call.shows(qube)
    )


def shown_qubes(call: Call) -> list[Qube]:
    """The qubes that a call on this destination is about: the admin qube first, then by name."""
    if call.destination.name != DOM0:
        return [call.destination]
    return sorted(call.qubes.system.qubes.values(), key=lambda q: (q.name != DOM0, q.name))
