"""`qvm-kill`: stop qubes at once."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import NotRunningError, NotStartedError, QubeNotFoundError
from caisson.tools import command, selection


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-kill", "Stop qubes at once; unsaved work is lost.", "exit code: the number of failures"
    )
    selection.add_many(made, selection.ALL_HERE)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Stop qubes at once; unsaved work is lost."""
    names = selection.chosen(arguments, selection.listed(client), without=selection.ELSEWHERE)

    def kill(name: str) -> None:
        try:
            client.call("admin.vm.Kill", destination=name)
        except (NotStartedError, QubeNotFoundError) as error:
            # It is down already; a disposable is even gone.
            if isinstance(error, NotRunningError):
                raise

    return selection.failures_of(names, kill, "killing")


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
