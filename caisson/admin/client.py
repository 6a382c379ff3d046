"""The client of the Admin API, as the commands use it: synchronous, and quick to import."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from caisson.admin import wire
from caisson.errors import DaemonError

_CHUNK = 65_536


class Client:
    """Calls the daemon of one instance, as the admin qube.

    Each call opens a connection of its own, so one client serves many threads.

    Args:
        root: the root directory of the instance; by default `CAISSON_ROOT`, else `/`.
    """

    def __init__(self, root: str | None = None) -> None:
        self.root = os.path.abspath(root or os.environ.get("CAISSON_ROOT", "/"))  # noqa: PTH100
        self.socket_path = os.path.join(self.root, "run/qubesd.sock")  # noqa: PTH118

    def call(
        self, method: str, argument: str = "", destination: str = "dom0", payload: bytes = b""
    ) -> bytes:
        """Call a method and wait for its answer, however long it takes.

        Raises:
            CaissonError: the daemon refused; the class tells the reason.
            DaemonError: there is no daemon, or it went away without an answer.
        """
        with self._request(method, argument, destination, payload) as connection:
            reply = b"".join(_received(connection))
        if not reply:
            raise DaemonError(
                f"the daemon gave no answer to `{method}`",
                hint="its log tells why; `caisson doctor` checks the machine",
            )
        return wire.parse_reply(reply)

    def text(
        self, method: str, argument: str = "", destination: str = "dom0", payload: bytes = b""
    ) -> str:
        """Call a method whose answer is text."""
        return self.call(method, argument, destination, payload).decode("utf-8", "backslashreplace")

    def lines(self, method: str, argument: str = "", destination: str = "dom0") -> list[str]:
        """Call a method whose answer is a list, one item a line."""
        return self.text(method, argument, destination).splitlines()

    def events(
        self, method: str = "admin.Events", argument: str = "", destination: str = "dom0"
    ) -> Iterator[wire.Occurrence]:
        """Yield the events of a stream until the daemon ends it."""
        with self._request(method, argument, destination, b"") as connection:
            yield from wire.parse_events(_received(connection))

    @contextmanager
    def _request(
        self, method: str, argument: str, destination: str, payload: bytes
    ) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(self.socket_path)
                connection.sendall(wire.build_request(method, argument, destination, payload))
                connection.shutdown(socket.SHUT_WR)
            except (FileNotFoundError, ConnectionRefusedError):
                raise DaemonError(
                    f"the daemon does not run: nobody answers at `{self.socket_path}`",
                    hint="start it: `sudo caisson up`, or `sudo systemctl start qubesd`",
                ) from None
            except PermissionError:
                raise DaemonError(
                    f"no permission to speak to the daemon at `{self.socket_path}`",
                    hint="use sudo, or join the group: `sudo usermod -aG qubes $USER`",
                ) from None
            except OSError as error:
                raise DaemonError(
                    f"cannot speak to the daemon at `{self.socket_path}`: {error.strerror}"
                ) from None
            yield connection


def _received(connection: socket.socket) -> Iterator[bytes]:
    try:
        while chunk := connection.recv(_CHUNK):
            yield chunk
    except ConnectionError:
        return
