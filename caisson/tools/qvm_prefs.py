"""`qvm-prefs`: show and set the properties of a qube."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.tools import command, properties


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-prefs",
        "Show and set the properties of a qube.",
        "flags in the listing: - set, D default, U no value\n"
        "exit codes: 0 done; 1 refused; 2 no such property",
    )
    made.add_argument("name", metavar="VMNAME", help="qube")
    properties.add_options(made)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Show or set."""
    return properties.run(arguments, client, properties.Owner(arguments.name))


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
