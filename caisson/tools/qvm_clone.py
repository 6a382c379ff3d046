"""`qvm-clone`: copy a qube."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.tools import cloning, command, volumes
from caisson.tools.command import pairs


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-clone",
        "Copy a qube with its properties, tags, features, notes, firewall rules, volumes and\n"
        "assigned devices.",
        "exit codes: 0 copied; 1 not copied, and the new qube is gone again",
    )
    made.add_argument("source", metavar="SOURCE", help="qube to copy")
    made.add_argument("name", metavar="NEWNAME", help="name of the new qube")
    made.add_argument(
        "--class", "-C", dest="klass", metavar="CLASS", help="class (default: that of SOURCE)"
    )
    where = made.add_mutually_exclusive_group()
    where.add_argument("-P", dest="one_pool", metavar="POOL", help="keep all volumes in this pool")
    volumes.add_pool_of_each(where)
    made.add_argument(
        "--ignore-errors", action="store_true", help="tell what cannot be copied, and go on"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Copy it."""
    wish = cloning.Wish(
        arguments.source,
        arguments.name,
        klass=arguments.klass,
        pool=arguments.one_pool,
        pools=dict(pairs(arguments.pools)),
        ignore_errors=arguments.ignore_errors,
    )
    cloning.clone(client, wish)
    return 0


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
