"""Tell the service manager that a daemon is ready (sd_notify's protocol)."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """Opens the socket that `NOTIFY_SOCKET` names, if there is one, while it can be reached.

    A daemon that gives up its privileges makes it before it does.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        path = os.environ.pop("NOTIFY_SOCKET", "")
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                self._socket.connect("\0" + path[1:] if path.startswith("@") else path)

    def ready(self) -> None:
        """Send `READY=1`."""
        if self._socket is not None:
            with contextlib.suppress(OSError), self._socket:
                self._socket.send(b"READY=1")
            self._socket = None
