"""Which policy and which system a sub-command speaks about: files, or what is in force."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin import wire
from caisson.admin.client import Client
from caisson.errors import DaemonError
from caisson.paths import Paths

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
        help="the JSON of `internal.GetSystemInfo` (default: the running system)",
    )


def policy_of(arguments: argparse.Namespace, client: Client) -> PolicySet | BrokenPolicy:
    """The policy that the options name; a broken one denies everything, as in the broker."""
    if arguments.policy_dir is None:
        return policy_in_force(client)
    return read_policy(arguments.policy_dir)


def policy_in_force(client: Client) -> PolicySet | BrokenPolicy:
    """The policy by which the broker decides."""
    from caisson.store.policy_files import load_policy

    return load_policy(Paths(Path(client.root)))


def read_policy(path: Path) -> PolicySet | BrokenPolicy:
    """The policy of one directory, or of one file and what it includes."""
    from caisson.errors import PolicyError
    from caisson.policy import BrokenPolicy, parse_policy
    from caisson.store.policy_files import read_policy_directory, read_policy_file

    read = read_policy_directory if path.is_dir() else read_policy_file
    try:
        return parse_policy(read(path))
    except PolicyError as error:
        return BrokenPolicy(error)


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
        return domains_of_json(_asked(client), "the daemon's answer")
    return domains_of_json(path.read_bytes(), f"`{path}`")


def _asked(client: Client) -> bytes:
    if client.qrexec is not None:
        raise DaemonError("the running system is known to the admin qube only")
    request = wire.build_request("internal.GetSystemInfo", "", "dom0", b"")
    path = Paths(Path(client.root)).qubesd_internal
    return wire.parse_reply(b"".join(client.exchange(request, str(path))))
