"""`qvm-kill`: stop qubes at once."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import NotStartedError, QubeNotFoundError
from caisson.tools import command, selection


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-kill", "Stop qubes at once; unsaved work is lost.", "exit code: the number of failures"
    )
    selection.add_many(made)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Stop qubes at once; unsaved work is lost."""
    names = selection.chosen(arguments, selection.listed(client))

    def kill(name: str) -> None:
        try:
            client.call("admin.vm.Kill", destination=name)
        except (NotStartedError, QubeNotFoundError):
            # It is down already; a disposable is even gone.
            return

    return selection.failures_of(names, kill, "killing")


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
