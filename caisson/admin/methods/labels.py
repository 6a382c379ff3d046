"""Labels."""

from __future__ import annotations

from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Scope, Text, To, method


@method("admin.label.List", to=To.ADMIN, scope=Scope.GLOBAL, help="List the labels.")
async def list_labels(call: Call) -> str:
    """List the labels, by index."""
    labels = sorted(call.qubes.system.labels.values(), key=lambda label: label.index)
    return listing(label.name for label in labels)


@method(
    "admin.label.Get",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    help="Tell the colour of a label.",
)
async def get_color(call: Call) -> str:
    """Tell the colour of a label as `0xrrggbb`."""
    return call.qubes.system.label(call.untrusted_argument).color


@method(
    "admin.label.Index",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    help="Tell the number of a label.",
)
async def get_index(call: Call) -> str:
    """Tell the number of a label."""
    return str(call.qubes.system.label(call.untrusted_argument).index)


@method(
    "admin.label.Create",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Create a label; the payload is its colour, `0xrrggbb`.",
)
async def create(call: Call) -> None:
    """Create a label."""
    change = call.qubes.system.plan_create_label(call.untrusted_argument, call.untrusted_text)
    await call.commit(change)


@method(
    "admin.label.Remove",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Remove a label that no qube has.",
)
async def remove(call: Call) -> None:
    """Remove a label."""
    await call.commit(call.qubes.system.plan_remove_label(call.untrusted_argument))
