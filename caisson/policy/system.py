"""What a decision may know of the system: an immutable snapshot of all qubes.

Specification sheet `qrexec`, section 4.2 (`internal.GetSystemInfo`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from caisson.errors import ValueRefusedError
from caisson.names import shown
from caisson.policy.tokens import is_admin_qube


class Domain(msgspec.Struct, frozen=True):
    """One qube, as `internal.GetSystemInfo` tells it."""

    name: str
    type: str = ""
    uuid: str | None = None
    tags: frozenset[str] = frozenset()
    internal: str | bool | None = None
    template_for_dispvms: bool = False
    default_dispvm: str | None = None
    icon: str | None = None
    label: str | None = None
    guivm: str | None = None
    relayvm: str | None = None
    transport_rpc: str | None = None
    power_state: str | None = None


class SystemInfo:
    """An immutable snapshot; `with_changes` makes the next one.

    Args:
        domains: the qubes by name.
    """

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        own = dict(domains)
        self._keep(own, {f"uuid:{d.uuid}": d for d in own.values() if d.uuid})

    def _keep(self, domains: dict[str, Domain], by_uuid: dict[str, Domain]) -> None:
        self._domains = domains
        self._by_uuid = by_uuid
        self.domains: Mapping[str, Domain] = MappingProxyType(domains)

    @classmethod
    def from_dict(cls, domains: Mapping[str, Mapping[str, Any]]) -> SystemInfo:
        """The snapshot that the value of `domains` in `internal.GetSystemInfo` describes.

        Raises:
            ValueRefusedError: it is not shaped like that; names the qube.
        """
        return cls({name: _domain(name, info) for name, info in domains.items()})

    def with_changes(
        self, changed: Mapping[str, Mapping[str, Any]], removed: Iterable[str] = ()
    ) -> SystemInfo:
        """A snapshot in which some qubes are changed or new, and some are gone.

        Copies two tables and derives nothing anew: a change costs little among 10,000 qubes.

        Raises:
            ValueRefusedError: as `from_dict`.
        """
        fresh = {name: _domain(name, info) for name, info in changed.items()}
        domains, by_uuid = self._domains.copy(), self._by_uuid.copy()
        for name in (*removed, *fresh):
            former = domains.pop(name, None)
            if former is not None and by_uuid.get(f"uuid:{former.uuid}") is former:
                del by_uuid[f"uuid:{former.uuid}"]
        domains |= fresh
        by_uuid |= {f"uuid:{d.uuid}": d for d in fresh.values() if d.uuid}
        made = SystemInfo({})
        made._keep(domains, by_uuid)
        return made

    def find(self, reference: str) -> Domain | None:
        """The qube of a name or `uuid:` form; None if there is none."""
        found = self.domains.get(reference)
        if found is None:
            found = (
                self.domains.get("dom0")
                if is_admin_qube(reference)
                else self._by_uuid.get(reference)
            )
        return found

    def is_disposable_template(self, reference: str) -> bool:
        """Whether disposables can be made from the qube of this name or `uuid:` form."""
        found = self.find(reference)
        return found is not None and found.template_for_dispvms


def _by_uuid(domains: Iterable[Domain]) -> dict[str, Domain]:
    return {f"uuid:{domain.uuid}": domain for domain in domains if domain.uuid}


def _domain(name: str, info: Mapping[str, Any]) -> Domain:
    try:
        return msgspec.convert({**info, "name": name}, Domain)
    except (msgspec.ValidationError, TypeError) as e:
        raise ValueRefusedError(
            f"system information about `{shown(str(name))}` is malformed: {e}",
            hint="it must be as `internal.GetSystemInfo` gives it",
        ) from None
