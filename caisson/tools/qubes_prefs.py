"""`qubes-prefs`: show and set the properties of the system as a whole."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.tools import command, properties


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qubes-prefs",
        "Show and set the properties of the system as a whole.",
        "flags in the listing: - set, D default, U no value\n"
        "exit codes: 0 done; 1 refused; 2 no such property",
    )
    properties.add_options(made)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Show or set."""
    return properties.run(arguments, client, properties.Owner(""))


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
