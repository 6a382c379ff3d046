"""`qvm-unpause`: let paused qubes go on."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.tools import command, selection

_MOST_FAILURES = 125


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-unpause", "Let paused qubes go on.", "exit code: the number of failures"
    )
    selection.add_many(made)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Let paused qubes go on."""
    qubes = selection.listed(client)

    def unpause(name: str) -> None:
        suspended = qubes[name].state == "Suspended"
        client.call("admin.vm.Resume" if suspended else "admin.vm.Unpause", destination=name)

    failures = selection.each(selection.chosen(arguments, qubes), unpause)
    for name, error in failures.items():
        selection.complain_about(name, error)
    return min(len(failures), _MOST_FAILURES)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
