"""What services of the admin qube give to those who may call them, for the analysis of flows."""

from __future__ import annotations

from caisson.admin.methods import METHODS
from caisson.admin.registry import Access, Scope
from caisson.policy.flow import Power

# What a qube may do hangs on these, or devices carry data from another qube to it.
_RIGHTS = (
    "admin.vm.tag.",
    "admin.vm.property.",
    "admin.vm.feature.",
    "admin.vm.device.",
)


def power(service: str) -> Power:
    """What a service gives to its caller, if the admin qube runs it; unknown ones give all."""
    method = METHODS.methods.get(service)
    if method is None:
        return Power.CHANGES if service.startswith(("admin.", "policy.")) else Power.NONE
    if method.scope is Scope.POLICY:
        return Power.NONE if method.access is Access.READ else Power.CHANGES
    if method.scope not in {Scope.GLOBAL, Scope.LOCAL}:
        # Qubes are refused, or (`MISC`) tell of themselves; by one, of their template.
        return Power.NOTES if service == "qubes.NotifyUpdates" else Power.NONE
    if method.access is Access.READ:
        return Power.READS
    if method.scope is Scope.GLOBAL or service.startswith(_RIGHTS):
        return Power.CHANGES
    return Power.USES


def powerful() -> frozenset[str]:
    """The services that give anything, by name."""
    return frozenset(name for name in METHODS.methods if power(name) is not Power.NONE)
