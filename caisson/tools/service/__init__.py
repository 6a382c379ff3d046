"""`caisson service …`: write services and try them without a qube, one module a sub-command.

Each module has `add(actions)`, which declares its command line and imports nothing heavy, and
`run(arguments, client)`. Services are run by `qrexec-run-service`, as agents run them.
"""

from __future__ import annotations

import argparse
from types import ModuleType

from caisson.admin.client import Client
from caisson.tools import command
from caisson.tools.service import call, new

_MODULES: dict[str, ModuleType] = {"call": call, "new": new}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = command.add_actions(parser, "ACTION", "service_action", required=True)
    for module in _MODULES.values():
        module.add(actions)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Do what the sub-command says."""
    code: int = _MODULES[arguments.service_action].run(arguments, client)
    return code
