"""Tell the service manager that a daemon is ready (sd_notify's protocol)."""

from __future__ import annotations

import os
import socket


def ready() -> None:
    """Send `READY=1` to the socket that `NOTIFY_SOCKET` names, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", address)
