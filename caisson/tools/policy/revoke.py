"""`caisson policy revoke`: end grants before their time."""

from __future__ import annotations

import argparse
from typing import Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import terminal
from caisson.tools.command import FAILURE, UsageError


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "revoke",
        help="end grants; calls that run already go on",
        epilog="exit codes: 0 all of them are ended; 1 one could not be, the others are; 2 usage",
    )
    made.add_argument("ids", metavar="ID", nargs="*", help="a grant, as `grants` lists it")
    made.add_argument("--all", action="store_true", help="every grant")


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Revoke each, also where another cannot be; exit code 1 if any could not."""
    if arguments.all and arguments.ids:
        raise UsageError("`--all` takes no ids", "it ends every grant: leave one of both out")
    if not arguments.all and not arguments.ids:
        raise UsageError("which grants?", "name their ids, or use `--all`")
    failed = False
    for each in ["all"] if arguments.all else arguments.ids:
        try:
            client.call("caisson.policy.Revoke", each)
        except CaissonError as error:
            terminal.complain(error)
            failed = True
    return FAILURE if failed else 0
