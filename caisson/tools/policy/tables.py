"""The policy and the system of a table of expected decisions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from caisson.admin.client import Client
from caisson.errors import PolicyError
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.policy import BrokenPolicy, PolicySet, SystemInfo
    from caisson.policy.table import Table


def inputs_of(
    table: Table, path: Path, arguments: argparse.Namespace, client: Client
) -> tuple[PolicySet | BrokenPolicy, SystemInfo]:
    """What the options name, else what the table names, else what is in force.

    Raises:
        TableError: the system of the table cannot be read.
    """
    from caisson.store import policy_tables

    policy = _policy_of(table, path) if arguments.policy_dir is None else None
    system = None
    if arguments.system_info is None:
        system = policy_tables.system_info_of(table, path)
    return (
        policy or inputs.policy_of(arguments, client),
        system or inputs.system_of(arguments, client),
    )


def _policy_of(table: Table, path: Path) -> PolicySet | BrokenPolicy | None:
    from caisson.policy import BrokenPolicy
    from caisson.store import policy_tables

    try:
        return policy_tables.policy_of(table, path)
    except PolicyError as error:
        return BrokenPolicy(error)
