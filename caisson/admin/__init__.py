"""The Admin API: how people, scripts and the commands drive the daemon.

Room: floor 2. It trusts whoever may open the sockets (root and the group `qubes`) to name the
caller truthfully; it trusts nothing else in a request.
`client` is for the commands; `AdminServer` and `Services` are for the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caisson.admin.server import AdminServer
    from caisson.admin.services import Services

__all__ = ["AdminServer", "Services"]


def __getattr__(name: str) -> object:
    # The commands import `caisson.admin.client` and must not pay for the daemon's half.
    if name == "AdminServer":
        from caisson.admin.server import AdminServer  # noqa: PLC0415

        return AdminServer
    if name == "Services":
        from caisson.admin.services import Services  # noqa: PLC0415

        return Services
    raise AttributeError(name)
