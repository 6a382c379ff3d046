"""`qvm-remove`: remove qubes with all their data."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import CaissonError, QubeInUseError
from caisson.names import DOM0
from caisson.tools import command, inventory, properties, selection, terminal
from caisson.tools.command import FAILURE
from caisson.tools.parallel import at_once
from caisson.tools.properties import Owner


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
    if DOM0 in names:
        raise CaissonError("the admin qube `dom0` cannot be removed")
    if not arguments.force:
        terminal.say("This removes with all their data:\n  " + "\n  ".join(names))
        if not terminal.confirmed("Go on?"):
            terminal.say("nothing was removed")
            return FAILURE
    failed = False
    for name in names:
        try:
            with terminal.Progress(f"removing {name}"):
                client.call("admin.vm.Remove", destination=name)
        except CaissonError as error:
            failed = True
            selection.complain_about(name, error)
            if isinstance(error, QubeInUseError):
                _tell_users(client, name)
    return FAILURE if failed else 0


def _tell_users(client: Client, name: str) -> None:
    """Tell where the qube is used, as far as properties can."""
    qubes = inventory.read(client, properties.REFERENCES).values()
    naming = (qube.name for qube in qubes if name in qube.properties.values())
    owners = [Owner(""), *map(Owner, naming)]
    for owner, uses in zip(owners, at_once(owners, lambda o: _uses(client, o, name)), strict=True):
        for prop in uses:
            of = f"`{prop}` of `{owner.qube}`" if owner.qube else f"the system's `{prop}`"
            terminal.say(f"  used by {of}")


def _uses(client: Client, owner: Owner, name: str) -> list[str]:
    """The properties that name the qube; a qube's default is that of somebody else."""
    try:
        found = properties.read_all(client, owner)
    except CaissonError:
        # It went away meanwhile, or its properties are none of the caller's business.
        return []
    return [
        prop.name
        for prop in found
        if prop.kind == "vm" and prop.text == name and not (owner.qube and prop.default)
    ]


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
