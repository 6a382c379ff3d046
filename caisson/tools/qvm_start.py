"""`qvm-start`: start qubes."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import NotHaltedError
from caisson.tools import command, selection
from caisson.tools.command import FAILURE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-start",
        "Start qubes and wait until they are ready.",
        "exit codes: 0 all started; 1 one or more did not",
    )
    selection.add_many(made)
    made.add_argument(
        "--skip-if-running", action="store_true", help="a qube that runs already is no error"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Start them."""
    qubes = selection.listed(client)
    skip = arguments.skip_if_running or arguments.all

    def start(name: str) -> None:
        if qubes[name].state != "Halted":
            if skip:
                return
            raise NotHaltedError(
                f"qube `{name}` is already {qubes[name].state.lower()}",
                hint="`--skip-if-running` makes this no error",
            )
        client.call("admin.vm.Start", destination=name)

    failures = selection.each(selection.chosen(arguments, qubes), start)
    for name, error in failures.items():
        selection.complain_about(name, error)
    return FAILURE if failures else 0


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
