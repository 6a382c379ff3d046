"""Which policy and which system a sub-command speaks about: files, or what is in force."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin import wire
from caisson.admin.client import Client
from caisson.errors import CaissonError, DaemonError
from caisson.paths import Paths
from caisson.tools import terminal

if TYPE_CHECKING:
    from caisson.policy import BrokenPolicy, PolicySet, SystemInfo


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare `--policy-dir` and `--system-info`."""
    parser.add_argument(
        "--policy-dir",
        metavar="DIR",
        type=Path,
        help="a directory of policy files (default: the policy in force)",
    )
    add_system_option(parser)


def add_system_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--system-info`."""
    parser.add_argument(
        "--system-info",
        metavar="FILE",
        type=Path,
        help="qubes, as `caisson policy system-info` prints them (default: the running system)",
    )


def policy_of(arguments: argparse.Namespace, client: Client) -> PolicySet | BrokenPolicy:
    """The policy that the options name; a broken one denies everything, as in the broker.

    Raises:
        CaissonError: as `read_policy`.
    """
    if arguments.policy_dir is None:
        return policy_in_force(client)
    return read_policy(arguments.policy_dir, quiet=arguments.quiet)


def policy_in_force(client: Client) -> PolicySet | BrokenPolicy:
    """The policy by which the broker decides."""
    from caisson.store.policy_files import load_policy

    return load_policy(paths_of(client))


@dataclass(frozen=True)
class _AtRest(Paths):
    """An instance that does not run, and has no `/run/qubes/policy.d` since the last boot."""

    @property
    def policy_dirs(self) -> tuple[Path, Path]:
        """The one that there is, twice: it overrides itself with what it says anyway."""
        etc = super().policy_dirs[1]
        return (etc, etc)


def paths_of(client: Client) -> Paths:
    """The paths of the instance.

    The broker makes `/run/qubes/policy.d` when it starts; till then there is nothing in it.
    """
    paths = Paths(Path(client.root))
    if _is_absent(paths.policy_dirs[0]) and not _is_served(paths.qubesd_internal):
        return _AtRest(paths.root)
    return paths


def _is_absent(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _is_served(path: Path) -> bool:
    """Whether somebody answers at a socket; who may not ask must take it for a yes."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


def read_policy(path: Path, *, quiet: bool) -> PolicySet | BrokenPolicy:
    """The policy of one directory.

    Args:
        path: the directory.
        quiet: do not say that it has no policy files.

    Raises:
        CaissonError: it is no directory: a typo is not a policy that denies everything.
    """
    from caisson.errors import PolicyError
    from caisson.policy import BrokenPolicy, parse_policy
    from caisson.store.policy_files import read_policy_directory

    check_directories([path], quiet=quiet)
    try:
        return parse_policy(read_policy_directory(path))
    except PolicyError as error:
        return BrokenPolicy(error)


def check_directories(paths: Sequence[Path], *, quiet: bool) -> None:
    """Refuse what is no directory of policy files; say so if there are no such files in any.

    Args:
        paths: directories that together are a policy.
        quiet: do not say it.

    Raises:
        CaissonError: one is no directory.
    """
    for path in paths:
        if not path.is_dir():
            raise CaissonError(
                f"`{path}` is no directory of policy files",
                hint="name the directory in which the `.policy` files are",
            )
    if not quiet and not any(map(_has_policies, paths)):
        names = " and ".join(f"`{path}`" for path in paths)
        terminal.say(f"note: no `*.policy` file is in {names}: every call is denied")


def _has_policies(directory: Path) -> bool:
    """Whether policy files are there; what cannot be listed is an error of who reads it."""
    try:
        return any(path.name.endswith(".policy") for path in directory.iterdir())
    except OSError:
        return True


def system_of(arguments: argparse.Namespace, client: Client) -> SystemInfo:
    """The system that the options name.

    Raises:
        CaissonError: the file is missing or malformed, or no daemon answers.
    """
    from caisson.policy import SystemInfo

    return SystemInfo.from_dict(domains_of(arguments, client))


def domains_of(arguments: argparse.Namespace, client: Client) -> dict[str, dict[str, Any]]:
    """The value of `domains` in the system information, as it came.

    Raises:
        CaissonError: as `system_of`.
    """
    from caisson.policy.system import domains_of_json

    path: Path | None = arguments.system_info
    if path is None:
        return running_domains(client)
    return domains_of_json(path.read_bytes(), f"`{path}`")


def running_domains(client: Client) -> dict[str, dict[str, Any]]:
    """The value of `domains` in the information about the running system.

    Raises:
        DaemonError: no daemon answers.
    """
    from caisson.policy.system import domains_of_json

    return domains_of_json(_asked(client), "the daemon's answer")


def _asked(client: Client) -> bytes:
    if client.qrexec is not None:
        raise DaemonError("the running system is known to the admin qube only")
    request = wire.build_request("internal.GetSystemInfo", "", "dom0", b"")
    path = Paths(Path(client.root)).qubesd_internal
    return wire.parse_reply(b"".join(client.exchange(request, str(path))))
