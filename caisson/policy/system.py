"""What a decision may know of the system: an immutable snapshot of all qubes.

Specification sheet `qrexec`, section 4.2 (`internal.GetSystemInfo`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import msgspec

from caisson.errors import ValueRefusedError
from caisson.names import shown
from caisson.policy.tokens import is_admin_qube

_MOST_OWN = 256
"""More changes than that are worth a new large layer."""


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
    """An immutable snapshot; `with_changes` makes the next one, at the cost of what changed.

    Args:
        domains: the qubes by name.
    """

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self._names = _Layers(dict(domains), {})
        self._uuids = _Layers(_by_uuid(domains.values()), {})

    @cached_property
    def domains(self) -> Mapping[str, Domain]:
        """The qubes by name."""
        return MappingProxyType(self._names.whole())

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

        Raises:
            ValueRefusedError: as `from_dict`.
        """
        fresh = {name: _domain(name, info) for name, info in changed.items()}
        names = dict.fromkeys(removed) | fresh
        former = filter(None, map(self._names.get, names))
        made = SystemInfo({})
        made._names = self._names.over(names)
        made._uuids = self._uuids.over(dict.fromkeys(_by_uuid(former)) | _by_uuid(fresh.values()))
        return made

    def changes_since(self, former: SystemInfo) -> list[tuple[Domain | None, Domain | None]] | None:
        """The qubes that differ, each as it was and as it is; None if that is not quickly said."""
        return self._names.changes_since(former._names)

    def find(self, reference: str) -> Domain | None:
        """The qube of a name or `uuid:` form; None if there is none."""
        found = self._names.get(reference)
        if found is None:
            found = (
                self._names.get("dom0") if is_admin_qube(reference) else self._uuids.get(reference)
            )
        return found


class _Layers:
    """Domains by some key, in two layers: a large one that snapshots share, and a small one.

    Args:
        shared: never changed again.
        own: what differs; None for what is gone.
    """

    def __init__(self, shared: dict[str, Domain], own: dict[str, Domain | None]) -> None:
        self._shared = shared
        self._own = own

    def get(self, key: str) -> Domain | None:
        """The domain, if there is one."""
        return self._own[key] if key in self._own else self._shared.get(key)

    def over(self, changes: dict[str, Domain | None]) -> _Layers:
        """The same with changes, None for what is gone."""
        layers = _Layers(self._shared, self._own | changes)
        return layers if len(layers._own) <= _MOST_OWN else _Layers(layers.whole(), {})

    def changes_since(self, former: _Layers) -> list[tuple[Domain | None, Domain | None]] | None:
        """What differs; None if the two share nothing."""
        if self._shared is not former._shared:
            return None
        pairs = ((former.get(key), self.get(key)) for key in self._own.keys() | former._own.keys())
        return [(old, new) for old, new in pairs if old is not new]

    def whole(self) -> dict[str, Domain]:
        """All domains."""
        whole = self._shared | self._own
        return {key: domain for key, domain in whole.items() if domain is not None}


def domains_of_json(text: bytes, where: str) -> dict[str, dict[str, Any]]:
    """The value of `domains` in the JSON of `internal.GetSystemInfo`, as it came.

    Args:
        text: the JSON.
        where: where it comes from, for the error.

    Raises:
        ValueRefusedError: it is not shaped like that.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, dict[str, dict[str, Any]]])["domains"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        missing = isinstance(error, KeyError)
        reason = "the key `domains` is missing" if missing else str(error)
        raise ValueRefusedError(
            f"{where} is not system information: {reason}",
            hint='it has the form `{"domains": {NAME: {…}}}`, as `internal.GetSystemInfo` gives it',
        ) from None


def _by_uuid(domains: Iterable[Domain]) -> dict[str, Domain]:
    return {f"uuid:{domain.uuid}": domain for domain in domains if domain.uuid}


def _domain(name: str, info: Mapping[str, Any]) -> Domain:
    try:
        domain = msgspec.convert({**info, "name": name}, Domain)
    except (msgspec.ValidationError, TypeError) as e:
        raise ValueRefusedError(
            f"system information about `{shown(str(name))}` is malformed: {e}",
            hint="it must be as `internal.GetSystemInfo` gives it",
        ) from None
    if not name:
        raise _no_name(name, name)
    # A qube that is called like a token could not be told from what the token stands for.
    for reference in (name, domain.default_dispvm, domain.relayvm):
        if reference and (reference[0] in "@*" or reference.startswith("uuid:")):
            raise _no_name(name, reference)
    return domain


def _no_name(name: str, reference: str) -> ValueRefusedError:
    return ValueRefusedError(
        f"system information about `{shown(name)}` is malformed: `{shown(reference)}` is not the "
        "name of a qube",
        hint="it must be as `internal.GetSystemInfo` gives it",
    )
