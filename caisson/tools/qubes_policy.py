"""`qubes-policy`: list, read, replace and remove policy files."""

from __future__ import annotations

import argparse
import sys

from caisson.admin.client import Client
from caisson.tools import command, terminal
from caisson.tools.command import UsageError
from caisson.tools.policy_files import Named, PolicyFiles


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qubes-policy",
        "List, read, replace and remove policy files.\n"
        "What would keep the policy from loading is refused; a change counts for the next call.",
        "exit codes: 0 done; 1 refused, and nothing was changed",
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", "-l", action="store_true", help="print the names of all files")
    what.add_argument("--get", "-g", action="store_true", help="print a file")
    what.add_argument(
        "--replace", "-r", action="store_true", help="replace or make a file, from standard input"
    )
    what.add_argument("--remove", "--delete", "-d", action="store_true", help="remove a file")
    made.add_argument(
        "--token",
        metavar="TOKEN",
        default="any",
        help="change the file only if it is still this: `new` (there is none), or `sha256:` and "
        "the SHA-256 of its content (default: any)",
    )
    made.add_argument(
        "name", metavar="POLICY", nargs="?", help="file: `30-user`, or `include/NAME`; no suffix"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Do what the option says.

    Raises:
        UsageError: a name is missing, or has no meaning.
    """
    files = PolicyFiles(client)
    if arguments.list:
        if arguments.name is not None:
            raise UsageError("`--list` takes no name")
        for included in (False, True):
            prefix = "include/" if included else ""
            for name in files.names(included=included):
                print(f"{prefix}{terminal.cell(name)}")
        return 0
    if arguments.name is None:
        raise UsageError("the name of the file is missing")
    file = Named.parse(arguments.name)
    if arguments.get:
        terminal.emit(files.read(file)[1])
    elif arguments.replace:
        files.replace(file, arguments.token, sys.stdin.buffer.read())
    else:
        files.remove(file, arguments.token)
    return 0


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
