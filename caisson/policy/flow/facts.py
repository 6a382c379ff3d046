"""What is known of one system: qubes as policy sees them, and how they are wired.

`internal.GetSystemInfo` of Caisson tells the wiring under keys of its own. Upstream's does not:
then only calls can be followed, and `Facts.complete` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from caisson.errors import ValueRefusedError
from caisson.names import shown
from caisson.policy.system import Domain, SystemInfo

_WIRING = ("netvm", "template", "provides_network")


class Qube(msgspec.Struct, frozen=True):
    """A qube and its wiring.

    `created_tags` are those that its feature `tag-created-vm-with` gives to what it makes, and
    `guivm-NAME` where its feature `set-created-guivm` says so.
    """

    domain: Domain
    netvm: str | None = None
    template: str | None = None
    provides_network: bool = False
    created_tags: frozenset[str] = frozenset()


class _Wiring(msgspec.Struct):
    netvm: str | None = None
    template: str | None = None
    provides_network: bool = False
    created_tags: frozenset[str] = frozenset()


class Facts(msgspec.Struct, frozen=True):
    """All qubes by name; `complete`: the wiring of all of them is known."""

    qubes: Mapping[str, Qube]
    system: SystemInfo
    complete: bool

    @classmethod
    def from_dict(cls, domains: Mapping[str, Mapping[str, Any]]) -> Facts:
        """The facts in the value of `domains` in `internal.GetSystemInfo`.

        Raises:
            ValueRefusedError: it is malformed; names the qube.
        """
        domains = {"dom0": {"type": "AdminVM"}, **domains}  # there always is one
        system = SystemInfo.from_dict(domains)
        return cls(
            {name: _qube(domain, domains[name]) for name, domain in system.domains.items()},
            system,
            complete=all(
                key in info for name, info in domains.items() for key in _WIRING if name != "dom0"
            ),
        )


def _qube(domain: Domain, info: Mapping[str, Any]) -> Qube:
    try:
        wiring = msgspec.convert(info, _Wiring)
    except msgspec.ValidationError as error:
        raise ValueRefusedError(
            f"the wiring of `{shown(domain.name)}` is malformed: {error}",
            hint="`netvm` and `template` are names or null, `provides_network` is true or false",
        ) from None
    return Qube(domain, wiring.netvm, wiring.template, wiring.provides_network, wiring.created_tags)
