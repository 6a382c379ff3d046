"""Labels."""

from __future__ import annotations

from caisson.admin.methods.text import listing
from caisson.admin.registry import Call, Scope, Text, To, method
from caisson.errors import LabelNotFoundError
from caisson.model import Label
from caisson.names import LabelName, shown


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
    return _label(call).color


@method(
    "admin.label.Index",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    help="Tell the number of a label.",
)
async def get_index(call: Call) -> str:
    """Tell the number of a label."""
    return str(_label(call).index)


def _label(call: Call) -> Label:
    # `LabelName` would refuse digits alone, which here are just a label that does not exist.
    label = call.qubes.system.labels.get(LabelName(call.untrusted_argument))
    if label is None:
        known = ", ".join(f"`{name}`" for name in call.qubes.system.labels)
        raise LabelNotFoundError(
            f"label `{shown(call.untrusted_argument)}` does not exist", hint=f"use one of {known}"
        )
    return label
