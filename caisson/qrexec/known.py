"""What exists, as qubesd tells it: the state that calls are decided on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from caisson.errors import ValueRefusedError
from caisson.names import DOM0
from caisson.policy import SystemInfo

_log = structlog.get_logger("qrexec")


class Known:
    """All qubes, kept up to date from what is handed over; the same on both sides of the link.

    Args:
        with_infos: keep the entries themselves, too; decisions need `system` only.
    """

    def __init__(self, *, with_infos: bool = True) -> None:
        self._with_infos = with_infos
        self.system = SystemInfo({})
        self.infos: dict[str, Mapping[str, Any]] = {}

    def clear(self) -> None:
        """Nothing exists, until told otherwise."""
        self.system = SystemInfo({})
        self.infos = {}

    @property
    def clockvm(self) -> str | None:
        """The qube that tells the time in place of the admin qube."""
        name = self.infos.get(DOM0, {}).get("clockvm")
        return name if isinstance(name, str) else None

    def take(self, changed: Mapping[str, Mapping[str, Any]], removed: Iterable[str] = ()) -> None:
        """Take a change in; entries are as in `internal.GetSystemInfo`."""
        gone = list(removed)
        for name in gone:
            self.infos.pop(name, None)
        if self._with_infos:
            self.infos.update(changed)
        try:
            self.system = self.system.with_changes(changed, gone)
        except ValueRefusedError:
            self._take_one_by_one(changed, gone)

    def _take_one_by_one(
        self, changed: Mapping[str, Mapping[str, Any]], removed: list[str]
    ) -> None:
        """A qube with malformed information does not exist for decisions; the others do."""
        self.system = self.system.with_changes({}, [*removed, *changed])
        for name, info in changed.items():
            try:
                self.system = self.system.with_changes({name: info})
            except ValueRefusedError as e:
                self.infos.pop(name, None)
                _log.error("a qube is left out", error=str(e))


def identity(system: SystemInfo, target: str) -> str | None:
    """Which qube a target is, or is based on: a name may pass to another qube in the meantime."""
    found = system.find(target.removeprefix("@dispvm:"))
    return None if found is None else found.uuid
