"""How a service is run by hand: by the program that agents are, with their environment."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caisson.errors import CaissonError
from caisson.names import QubeName, ServiceArgument, ServiceName, UserName
from caisson.paths import AGENT_BINARY

SERVICES = Path("etc/qubes-rpc")
SETTINGS = Path("etc/qubes/rpc-config")
CALLER = "caller"
"""Who calls where nobody is named."""

_NAME = "qrexec-run-service"
_TCP = "/dev/tcp/"
# A name that is too long for a file is none of a service made for its argument.
_ABSENT = (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Command:
    """What runs a service: a program, its arguments with the name it goes by, its environment."""

    program: Path
    argv: tuple[str, ...]
    environment: Mapping[str, str]


def command(
    descriptor: str,
    *,
    services: Path,
    settings: Path,
    source: str = CALLER,
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Command:
    """The command that runs `SERVICE[+ARGUMENT]`, as if another qube had called it.

    Args:
        descriptor: the service, with `+` and its argument if there is one.
        services: the directory of services.
        settings: the directory of their settings; it need not be there.
        source: the qube that seems to call.
        user: who runs it; None: who we are.
        environment: what it has beside what services have.

    Raises:
        CaissonError: a name is none, or the agent is not built.
    """
    name, _, text = descriptor.partition("+")
    service, argument = ServiceName.parse(name), ServiceArgument.parse(text)
    caller = QubeName.parse(source)
    for directory in (services, settings):
        if ":" in str(directory):
            raise CaissonError(
                f"`{directory}` contains a `:`, which separates directories",
                hint="choose another directory",
            )
    if not AGENT_BINARY.is_file():
        raise CaissonError(f"`{AGENT_BINARY}` is missing", hint="build it: `script/setup`")
    as_user = () if user is None else ("--user", UserName.parse(user))
    # A call between qubes always has a `+`, at least an empty argument.
    argv = (_NAME, *as_user, "--", f"{service}+{argument}", caller)
    places = {
        "QREXEC_SERVICE_PATH": str(services.absolute()),
        "QUBES_RPC_CONFIG_PATH": str(settings.absolute()),
    }
    return Command(AGENT_BINARY, argv, {"PATH": _PATH} | dict(environment or {}) | places)


def offers(descriptor: str, services: Path) -> bool:
    """Whether `SERVICE[+ARGUMENT]` is in the directory, by its argument or without.

    Raises:
        CaissonError: a name is none.
    """
    name, _, text = descriptor.partition("+")
    service, argument = ServiceName.parse(name), ServiceArgument.parse(text)
    return any(_serves(services / file) for file in (f"{service}+{argument}", service))


def _serves(path: Path) -> bool:
    """Whether something of that name may serve a call; the agent looks closer at what it is."""
    try:
        # The text of a link may be a TCP service, and lead nowhere.
        return path.exists() or str(path.readlink()).startswith(_TCP)
    except OSError as error:
        # What cannot be looked at is for the agent to explain.
        return error.errno not in _ABSENT
