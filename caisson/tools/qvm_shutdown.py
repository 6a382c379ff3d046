"""`qvm-shutdown`: shut qubes down."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.errors import (
    CaissonError,
    NotRunningError,
    NotStartedError,
    QubeInUseError,
    QubeNotFoundError,
    ShutdownTimeoutError,
)
from caisson.tools import command, selection, terminal


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-shutdown",
        "Shut qubes down. With --wait, one that takes too long twice is killed.",
        "exit code: the number of qubes that did not shut down",
    )
    selection.add_many(made, selection.ALL_HERE)
    made.add_argument("--wait", action="store_true", help="wait until they are gone")
    made.add_argument("--force", action="store_true", help="although other qubes use them")
    made.add_argument("--dry-run", action="store_true", help="only tell which")
    made.add_argument(
        "--timeout", metavar="SECONDS", type=float, help="the same as --wait (kept for old scripts)"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Shut them down; those that others use go after the others."""
    qubes = selection.listed(client)
    waiting = arguments.wait or arguments.timeout is not None
    chosen = selection.chosen(arguments, qubes, without=selection.ELSEWHERE)
    left = [name for name in chosen if qubes[name].state != "Halted"]
    if arguments.dry_run:
        print("".join(f"{terminal.cell(name)}\n" for name in left), end="")
        return 0
    failures: dict[str, CaissonError] = {}
    while left:
        outcome = selection.each(
            left,
            lambda name: _shut_down(client, name, force=arguments.force, wait=waiting),
            "shutting down",
        )
        in_use = [name for name, error in outcome.items() if isinstance(error, QubeInUseError)]
        done = [name for name in left if name not in outcome]
        failures |= {n: e for n, e in outcome.items() if n not in in_use}
        if not in_use or not done:
            failures |= {name: outcome[name] for name in in_use}
            break
        if not waiting:
            # What used them is among those that are going: once gone, it is in nobody's way.
            failures |= selection.each(
                done, lambda name: _shut_down(client, name, force=False, wait=True), "waiting for"
            )
        left = in_use
    selection.complain_about_all(failures)
    return min(len(failures), selection.MOST_FAILURES)


def _shut_down(client: Client, name: str, *, force: bool, wait: bool) -> None:
    flags = "+".join(word for word, given in (("force", force), ("wait", wait)) if given)
    try:
        try:
            client.call("admin.vm.Shutdown", flags, name)
        except ShutdownTimeoutError:
            if not wait:
                raise
            terminal.say(f"qube `{name}` takes long to shut down: waiting once more")
            _insist(client, flags, name)
    except (NotStartedError, QubeNotFoundError) as error:
        # It is down already; a disposable is even gone. Paused is not down.
        if isinstance(error, NotRunningError):
            raise


def _insist(client: Client, flags: str, name: str) -> None:
    try:
        client.call("admin.vm.Shutdown", flags, name)
    except ShutdownTimeoutError:
        terminal.say(f"qube `{name}` did not shut down: killing it")
        client.call("admin.vm.Kill", destination=name)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
