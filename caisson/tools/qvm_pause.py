"""`qvm-pause`: freeze running qubes."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.tools import command, selection

_MOST_FAILURES = 125


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser("qvm-pause", "Freeze running qubes.", "exit code: the number of failures")
    selection.add_many(made)
    made.add_argument("--suspend", "-S", action="store_true", help="suspend to RAM instead")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Freeze running qubes."""
    names = selection.chosen(arguments, selection.listed(client))
    method = "admin.vm.Suspend" if arguments.suspend else "admin.vm.Pause"
    failures = selection.each(names, lambda name: client.call(method, destination=name))
    for name, error in failures.items():
        selection.complain_about(name, error)
    return min(len(failures), _MOST_FAILURES)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
