"""`qvm-remove`: remove qubes with all their data."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import CaissonError, QubeInUseError
from caisson.tools import command, selection, terminal
from caisson.tools.command import FAILURE
from caisson.tools.properties import decode_line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-remove",
        "Remove qubes with all their data.",
        "exit codes: 0 all removed; 1 one or more were not",
    )
    selection.add_many(made)
    made.add_argument("--force", "-f", action="store_true", help="do not ask")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Ask, then remove."""
    names = selection.chosen(arguments, selection.listed(client))
    if not names:
        return 0
    if not arguments.force:
        terminal.say("This removes with all their data:\n  " + "\n  ".join(names))
        if not terminal.confirmed("Go on?"):
            terminal.say("nothing was removed")
            return FAILURE
    failed = False
    for name in names:
        try:
            client.call("admin.vm.Remove", destination=name)
        except CaissonError as error:
            failed = True
            selection.complain_about(name, error)
            if isinstance(error, QubeInUseError):
                _tell_users(client, name)
    return FAILURE if failed else 0


def _tell_users(client: Client, name: str) -> None:
    """Tell where the qube is used, as far as properties can."""
    uses = [
        f"the system's `{prop.name}`"
        for prop in map(decode_line, client.lines("admin.property.GetAll"))
        if prop.kind == "vm" and prop.text == name
    ]
    for qube in selection.listed(client):
        for line in client.lines("admin.vm.property.GetAll", destination=qube):
            prop = decode_line(line)
            if prop.kind == "vm" and prop.text == name and not prop.default:
                uses.append(f"`{prop.name}` of `{qube}`")
    for use in uses:
        terminal.say(f"  used by {use}")


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
