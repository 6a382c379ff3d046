"""Tags."""

from __future__ import annotations

from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Text, method
from caisson.model import limits
from caisson.names import Tag


@method("admin.vm.tag.List", help="List the tags of a qube.")
async def list_tags(call: Call) -> str:
    """List the tags of a qube, sorted."""
    return listing(sorted(call.destination.tags))


@method(
    "admin.vm.tag.Get", argument=Text.REQUIRED, help="Tell whether a qube has a tag: `1` or `0`."
)
async def get_tag(call: Call) -> str:
    """Tell whether a qube has a tag."""
    return "1" if Tag.parse(call.untrusted_argument) in call.destination.tags else "0"


@method(
    "admin.vm.tag.Set",
    argument=Text.REQUIRED,
    access=Access.WRITE,
    help=f"Give a qube a tag of at most {limits.LONGEST_TAG} characters, "
    f"and at most {limits.MOST_TAGS} tags.",
)
async def set_tag(call: Call) -> None:
    """Give a qube a tag; it may have it already."""
    change = call.qubes.system.plan_tag(call.destination, call.untrusted_argument, call.origin.name)
    await call.commit(change)


@method(
    "admin.vm.tag.Remove",
    argument=Text.REQUIRED,
    access=Access.WRITE,
    help="Take a tag from a qube.",
)
async def remove_tag(call: Call) -> None:
    """Take a tag from a qube."""
    change = call.qubes.system.plan_untag(
        call.destination, call.untrusted_argument, call.origin.name
    )
    await call.commit(change)
