"""What qubes there are."""

from __future__ import annotations

import asyncio

from caisson.admin.methods.text import listing
from caisson.admin.registry import Call, Scope, To, method
from caisson.model import Klass, Qube
from caisson.names import DOM0

_UNBROKEN = 200
"""So many qubes are judged before others get a turn."""


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
    qubes = shown_qubes(call)
    if call.shows is None:
        return listing(_line(call, qube) for qube in qubes)
    lines: list[str] = []
    for start in range(0, len(qubes), _UNBROKEN):
        shown = call.shows()
        lines += [_line(call, qube) for qube in qubes[start : start + _UNBROKEN] if shown(qube)]
        await asyncio.sleep(0)
    return listing(lines)


def _line(call: Call, qube: Qube) -> str:
    return f"{qube.name} class={qube.klass} state={call.qubes.state_of(qube)} uuid={qube.uuid}"


def shown_qubes(call: Call) -> list[Qube]:
    """The qubes that a call on this destination is about: the admin qube first, then by name."""
    if call.destination.name != DOM0:
        return [call.destination]
    return sorted(call.qubes.system.qubes.values(), key=lambda q: (q.name != DOM0, q.name))
