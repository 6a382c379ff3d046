"""`qvm-pause`: freeze running qubes."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.tools import command, selection


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser("qvm-pause", "Freeze running qubes.", "exit code: the number of failures")
    selection.add_many(made, "all running qubes but the admin qube and RemoteVMs")
    made.add_argument("--suspend", "-S", action="store_true", help="suspend to RAM instead")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Freeze running qubes."""
    names = selection.chosen(
        arguments, selection.listed(client), states=("Running",), without=selection.ELSEWHERE
    )
    method = "admin.vm.Suspend" if arguments.suspend else "admin.vm.Pause"
    doing = "suspending" if arguments.suspend else "pausing"
    return selection.failures_of(names, lambda name: client.call(method, destination=name), doing)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
