"""Policy files as the commands read and write them, in the admin qube and in a management qube."""

from __future__ import annotations

import os
from typing import NamedTuple, Self

from caisson.admin.client import Client
from caisson.errors import ProtocolError
from caisson.names import PolicyFileName
from caisson.tools import terminal

_PREFIX = "include/"


class Named(NamedTuple):
    """A file as a person names it: `30-user`, or `include/web`."""

    name: PolicyFileName
    included: bool

    @classmethod
    def parse(cls, untrusted: str) -> Self:
        """The file of that name.

        Raises:
            InvalidPolicyNameError: files cannot have that name.
        """
        included = untrusted.startswith(_PREFIX)
        return cls(PolicyFileName.parse(untrusted.removeprefix(_PREFIX)), included)

    def __str__(self) -> str:
        """The name as it was given."""
        return f"{_PREFIX}{self.name}" if self.included else self.name

    def method(self, verb: str) -> str:
        """The method that does `verb` to the file."""
        return f"policy.include.{verb}" if self.included else f"policy.{verb}"


class PolicyFiles:
    """The policy files of an instance, through the daemon that owns them.

    Args:
        client: speaks to the daemon.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def names(self, *, included: bool) -> list[str]:
        """The names of all policies, or of all included files."""
        method = "policy.include.List" if included else "policy.List"
        return self._call(method).decode("utf-8", "backslashreplace").splitlines()

    def read(self, file: Named) -> tuple[str, bytes]:
        """The token of a file, which a change of it needs, and its content.

        Raises:
            PolicyFileNotFoundError: it does not exist.
        """
        token, newline, content = self._call(file.method("Get"), file.name).partition(b"\n")
        if not newline:
            raise ProtocolError("the daemon's answer has no token")
        self._warn(file)
        return token.decode("ascii", "backslashreplace"), content

    def replace(self, file: Named, token: str, content: bytes) -> None:
        """Replace or make a file, if it is what the token says.

        Raises:
            PolicyAdminError: the class says why; nothing was changed.
        """
        self._call(file.method("Replace"), file.name, token.encode() + b"\n" + content)
        self._warn(file)

    def remove(self, file: Named, token: str) -> None:
        """Remove a file, if it is what the token says.

        Raises:
            PolicyAdminError: the class says why; nothing was changed.
        """
        self._call(file.method("Remove"), file.name, token.encode())
        self._warn(file)

    def _call(self, method: str, argument: str = "", payload: bytes = b"") -> bytes:
        content, told = self._client.service(method, argument, payload)
        if told:
            terminal.say(told.decode("utf-8", "backslashreplace").rstrip("\n"))
        return content

    def _warn(self, file: Named) -> None:
        """Say so where the file decides nothing; in a management qube the service itself does."""
        if self._client.qrexec is not None or file.included:
            return
        over = os.path.join(self._client.root, "run/qubes/policy.d", f"{file.name}.policy")  # noqa: PTH118
        if os.path.isfile(over):  # noqa: PTH113 - pathlib would double the start-up time
            terminal.say(
                f"warning: `{over}` takes the place of this file, which decides nothing as long "
                "as that one is there"
            )
