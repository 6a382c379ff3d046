"""The Admin API: how people, scripts and the commands drive the daemon.

Room: floor 2. It trusts whoever may open the sockets (root and the group `qubes`) to name the
caller truthfully; it trusts nothing else in a request.
`client` is for the commands; the names exported here are for the daemon.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caisson.admin.piped import PipedCalls
    from caisson.admin.responder import Responder
    from caisson.admin.server import AdminServer
    from caisson.admin.services import Services

__all__ = ["AdminServer", "PipedCalls", "Responder", "Services"]

_MODULES = {
    "AdminServer": "server",
    "PipedCalls": "piped",
    "Responder": "responder",
    "Services": "services",
}


def __getattr__(name: str) -> object:
    # The commands import `caisson.admin.client` and must not pay for the daemon's half.
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"caisson.admin.{_MODULES[name]}"), name)
