"""What the life of a qube needs of the broker, the one door between qubes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from caisson.names import QubeName

DomainInfo = Mapping[str, Any]
"""One entry of `internal.GetSystemInfo` (sheet `qrexec`, section 4.2)."""


class Door(Protocol):
    """The broker as qubesd sees it.

    What the broker has to say comes back through `Running.agent_said` and the functions of
    `Qubes`. A broker that is away is no error: it is told everything when it comes back.
    """

    async def push(self, changed: Mapping[str, DomainInfo], removed: Iterable[str] = ()) -> None:
        """Hand over what changed; returns when the broker decides by it, or when it is gone."""

    async def open_qube(self, name: QubeName) -> Path:
        """Make the directory that the qube will see as `/run/qubes`, and listen in it."""
        ...

    async def close_qube(self, name: QubeName) -> None:
        """Take the qube's socket and sessions away."""

    def admit(self, name: QubeName, pid: int) -> None:
        """Let calls reach the qube's agent, the process `pid`."""

    def reject(self, name: QubeName, pid: int, reason: str) -> None:
        """Hear no more of a process that is not the qube's agent."""


class NoDoor:
    """No broker: for a model without running code in its qubes, as in tests."""

    async def push(self, changed: Mapping[str, DomainInfo], removed: Iterable[str] = ()) -> None:
        """Nobody to tell."""

    async def open_qube(self, name: QubeName) -> Path:
        """No socket to make."""
        return Path("/nonexistent") / name

    async def close_qube(self, name: QubeName) -> None:
        """No socket to take away."""

    def admit(self, name: QubeName, pid: int) -> None:
        """Nobody to admit."""

    def reject(self, name: QubeName, pid: int, reason: str) -> None:
        """Nobody to reject."""
