"""The firewall of qubes, as far as there are no rules yet (specification sheet, section 2.8)."""

from __future__ import annotations

from caisson.admin.registry import Access, Call, Text, To, method
from caisson.errors import CaissonError, NotImplementedHereError
from caisson.model import Change, Klass, firewall
from caisson.model.events import event_of


@method(
    "admin.vm.firewall.Get",
    to=To.NOT_ADMIN,
    help="List the firewall rules of a qube; what none of them matches is dropped.",
)
async def get_rules(call: Call) -> str:
    """List the rules of a qube without any: everything passes."""
    _refuse_remote(call)
    return firewall.listing(firewall.EVERYTHING)


@method(
    "admin.vm.firewall.Set",
    to=To.NOT_ADMIN,
    payload=Text.OPTIONAL,
    access=Access.WRITE,
    help="Set the firewall rules of a qube; for now only the one that lets everything pass.",
)
async def set_rules(call: Call) -> None:
    """Accept the rules that hold anyway; others would be believed to protect."""
    _refuse_remote(call)
    if firewall.parse(call.untrusted_payload) != firewall.EVERYTHING:
        raise NotImplementedHereError(
            "firewall rules cannot be set yet: nothing would enforce them",
            hint=f"take the network away: `qvm-prefs {call.destination.name} netvm ''`",
        )
    await _tell(call)


@method(
    "admin.vm.firewall.Reload",
    to=To.NOT_ADMIN,
    access=Access.EXECUTE,
    help="Put the firewall rules of a qube into force anew.",
)
async def reload_rules(call: Call) -> None:
    """Tell listeners; there are no rules to put into force."""
    _refuse_remote(call)
    await _tell(call)


async def _tell(call: Call) -> None:
    await call.commit(Change(events=(event_of(call.destination, "firewall-changed"),)))


def _refuse_remote(call: Call) -> None:
    if call.destination.klass is Klass.REMOTE:
        raise CaissonError(f"RemoteVM `{call.destination.name}` has no firewall")
