"""`caisson policy graph`: a picture of who may call whom."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import terminal
from caisson.tools.policy import drawing, inputs

if TYPE_CHECKING:
    from caisson.policy import PolicySet
    from caisson.policy.graph import Filter

FORMATS = ("dot", "svg", "png", "pdf")


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser("graph", help="draw who may call whom")
    inputs.add_options(made)
    for option, what in (
        ("--service", "of this service"),
        ("--source", "by this qube"),
        ("--target", "to this qube"),
    ):
        made.add_argument(
            option,
            metavar="SERVICE" if option == "--service" else "VMNAME",
            action="append",
            help=f"only calls {what}; repeat for several",
        )
    made.add_argument(
        "--no-ask", action="store_true", help="leave out what a person is asked about"
    )
    made.add_argument("--deny", action="store_true", help="draw what a rule denies, too")
    made.add_argument(
        "--each", action="store_true", help="a box for every qube, also for those that are alike"
    )
    made.add_argument(
        "--format", choices=FORMATS, help="default: by the name of the output, else dot"
    )
    made.add_argument("--output", "-o", metavar="FILE", type=Path, help="default: standard output")


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Draw."""
    from caisson.policy import graph

    policy = unbroken(arguments, client)
    system = inputs.system_of(arguments, client)
    found = graph.rows(
        policy.rules,
        system,
        wanted(arguments, ask=not arguments.no_ask, deny=arguments.deny),
    )
    bundles = graph.bundles(found)
    boxes = graph.boxes(bundles, alike=not arguments.each)
    if not found and not arguments.quiet:
        terminal.say("no call of this kind is possible")
    drawn = drawing.bundled(boxes, bundles, system)
    drawing.write(drawn, arguments.output, arguments.format or _form(arguments.output))
    return 0


def unbroken(arguments: argparse.Namespace, client: Client) -> PolicySet:
    """The policy that the options name.

    Raises:
        PolicyError: it is broken, so that there is nothing to draw.
    """
    from caisson.policy import BrokenPolicy

    policy = inputs.policy_of(arguments, client)
    if isinstance(policy, BrokenPolicy):
        raise policy.error
    return policy


def wanted(arguments: argparse.Namespace, *, ask: bool, deny: bool) -> Filter:
    """What the options ask to be drawn."""
    from caisson.policy import Action
    from caisson.policy.graph import Filter

    actions = {Action.ALLOW}
    actions |= {Action.ASK} if ask else set()
    actions |= {Action.DENY} if deny else set()
    return Filter(arguments.service, arguments.source, arguments.target, actions)


def _form(output: Path | None) -> str:
    suffix = "" if output is None else output.suffix.removeprefix(".")
    if not suffix or suffix in FORMATS:
        return suffix or "dot"
    raise CaissonError(
        f"`.{suffix}` is no format of a picture", hint=f"use {', '.join(FORMATS)}, or `--format`"
    )
