"""Read tables of expected decisions, and the policy and the system that they name.

Trusts who wrote the table as much as who wrote the policy; `caisson.policy.table` judges the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caisson.errors import ValueRefusedError
from caisson.names import ServiceArgument, ServiceName
from caisson.policy import Decision, PolicySet, Request, SystemInfo, decide, parse_policy
from caisson.policy.system import domains_of_json
from caisson.policy.table import Table, TableError, parse_table, system_of
from caisson.store.policy_files import read_policy_directory

LARGEST_TABLE = 16 * 1024 * 1024


def read_table(path: Path) -> Table:
    """The table in a file.

    Raises:
        TableError: there is none, or it cannot be used.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_TABLE + 1)
        if len(text) > LARGEST_TABLE:
            raise TableError(f"it is larger than {LARGEST_TABLE} bytes")
        return parse_table(text.decode())
    except OSError as error:
        raise TableError(f"it cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise TableError("it is not UTF-8") from None


def policy_of(table: Table, path: Path) -> PolicySet | None:
    """The policy that a table names; None if it names none.

    Args:
        table: the table.
        path: where the table is.

    Raises:
        PolicyError: the policy does not load.
    """
    if table.policy_dir is None:
        return None
    return read_policy(path.parent / table.policy_dir)


def system_info_of(table: Table, path: Path) -> SystemInfo | None:
    """The system that a table names or states; None if it does neither.

    Args:
        table: the table.
        path: where the table is.

    Raises:
        TableError: the file cannot be read, or is no system information.
    """
    if not isinstance(table.system, str):
        return table.system
    return read_system(path.parent / table.system)


def read_policy(directory: Path) -> PolicySet:
    """The policy in a directory.

    Raises:
        PolicyError: it does not load.
    """
    return parse_policy(read_policy_directory(directory))


def read_system(path: Path) -> SystemInfo:
    """The system that a JSON file tells of, as `internal.GetSystemInfo` gives it.

    Raises:
        TableError: the file cannot be read, or is no system information.
    """
    try:
        return SystemInfo.from_dict(domains_of_json(path.read_bytes(), f"`{path}`"))
    except ValueRefusedError as error:
        raise TableError(error.message, error.hint) from None
    except (OSError, ValueError) as error:
        raise TableError(f"`system` cannot be read: {error}") from None


class PolicyUnderTest:
    """A policy on a system, for tests in Python.

    Args:
        policy: the policy.
        system: the system.
    """

    def __init__(self, policy: PolicySet, system: SystemInfo) -> None:
        self.policy = policy
        self.system = system

    @classmethod
    def load(cls, directory: Path, system: Path | Mapping[str, Any]) -> PolicyUnderTest:
        """The policy in a directory, on a system.

        Args:
            directory: of policy files.
            system: a file with the JSON of `internal.GetSystemInfo`; or the qubes by name, each
                with what is not the default (`docs/guides/test-a-policy.md`).

        Raises:
            PolicyError: the policy does not load.
            TableError: the system is malformed.
        """
        found = read_system(system) if isinstance(system, Path) else system_of(system)
        return cls(read_policy(directory), found)

    def decide(
        self, source: str, target: str, service: str, *, requested_source: str = ""
    ) -> Decision:
        """Decide one call.

        Args:
            source: the calling qube.
            target: whom it names; empty or `@default` for none.
            service: the service, with `+` and its argument if there is one.
            requested_source: the RemoteVM that the source, its relay, speaks for.

        Raises:
            ValueRefusedError: the service is none.
        """
        name, _, argument = service.partition("+")
        return decide(
            Request(
                ServiceName.parse(name),
                ServiceArgument.parse(argument),
                source,
                target,
                requested_source,
            ),
            self.policy,
            self.system,
        )
