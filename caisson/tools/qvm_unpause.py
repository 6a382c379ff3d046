"""`qvm-unpause`: let paused qubes go on."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.tools import command, selection


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-unpause", "Let paused or suspended qubes go on.", "exit code: the number of failures"
    )
    selection.add_many(made, "all paused and suspended qubes")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Let paused qubes go on."""
    qubes = selection.listed(client)
    names = selection.chosen(arguments, qubes, states=("Paused", "Suspended"))

    def unpause(name: str) -> None:
        suspended = qubes[name].state == "Suspended"
        client.call("admin.vm.Resume" if suspended else "admin.vm.Unpause", destination=name)

    return selection.failures_of(names, unpause, "unpausing")


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
