"""`qvm-check`: tell whether qubes exist and are in a state."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from caisson.admin.client import Client
from caisson.errors import QubeNotFoundError
from caisson.tools import command, inventory, selection, terminal
from caisson.tools.command import FAILURE
from caisson.tools.selection import Listed

SOME = 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-check",
        "Tell whether qubes exist, and whether they are running, paused, templates or networked.",
        "exit codes: 0 all; 1 none; 3 some",
    )
    selection.add_many(made)
    asked = made.add_mutually_exclusive_group()
    asked.add_argument("--running", action="store_true", help="are they running?")
    asked.add_argument("--paused", action="store_true", help="are they paused?")
    asked.add_argument("--template", action="store_true", help="are they templates?")
    asked.add_argument("--networked", action="store_true", help="do they have a network?")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Look, tell, and answer by exit code."""
    qubes = selection.listed(client)
    names = selection.chosen(arguments, qubes) if arguments.all else _wanted(arguments, qubes)
    known = [qubes[name] for name in names if name in qubes]
    networked = _networked(client, names) if arguments.networked else set[str]()
    fitting = [qube.name for qube in known if _fits(arguments, qube, networked)]
    if not arguments.quiet:
        for name in names:
            answer = "yes" if name in fitting else "no"
            print(terminal.harmless(f"{name}: {answer}"))
    if not fitting:
        return FAILURE
    return 0 if len(fitting) == len(names) else SOME


def _wanted(arguments: argparse.Namespace, qubes: dict[str, Listed]) -> list[str]:
    """The names asked about; here a name that no qube has is an answer, not an error."""
    names: dict[str, None] = {}
    for pattern in arguments.names:
        try:
            names.update(dict.fromkeys(selection.matching([pattern], qubes)))
        except QubeNotFoundError:
            names[pattern] = None
    if not names:
        selection.chosen(arguments, qubes)
    return list(names)


def _fits(arguments: argparse.Namespace, qube: Listed, networked: set[str]) -> bool:
    if arguments.running:
        # As unmodified clients see it: a paused qube runs too (sheet, section 2.4).
        return qube.state not in {"Halted", "NA"}
    if arguments.paused:
        return qube.state == "Paused"
    if arguments.template:
        return qube.klass == "TemplateVM"
    if arguments.networked:
        return qube.name in networked
    return True


def _networked(client: Client, names: Collection[str]) -> set[str]:
    qubes = inventory.read(client, ("netvm",), only=names).values()
    return {qube.name for qube in qubes if qube.properties.get("netvm")}


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
