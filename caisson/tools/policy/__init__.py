"""`caisson policy …`: ask, test and change what qubes may do, one module a sub-command.

Each module has `add(actions)`, which declares its command line and imports nothing heavy, and
`run(arguments, client)`. Nothing here decides anything: `caisson.policy` does.
"""

from __future__ import annotations

import argparse
from types import ModuleType

from caisson.admin.client import Client
from caisson.tools import command
from caisson.tools.policy import (
    decide,
    diff,
    explain,
    grant,
    grants,
    graph,
    reach,
    revoke,
    system_info,
    test,
)

_MODULES: dict[str, ModuleType] = {
    "decide": decide,
    "diff": diff,
    "explain": explain,
    "grant": grant,
    "grants": grants,
    "graph": graph,
    "reach": reach,
    "revoke": revoke,
    "system-info": system_info,
    "test": test,
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = command.add_actions(parser, "ACTION", "policy_action", required=True)
    for module in _MODULES.values():
        module.add(actions)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Do what the sub-command says."""
    code: int = _MODULES[arguments.policy_action].run(arguments, client)
    return code
