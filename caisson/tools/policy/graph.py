"""`caisson policy graph`: a picture of who may call whom."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import terminal
from caisson.tools.policy import drawing, inputs, names

if TYPE_CHECKING:
    from caisson.policy import PolicySet, SystemInfo
    from caisson.policy.graph import Filter

FORMATS = ("dot", "svg", "png", "pdf")

_KEYWORDS = ("@default", "@dispvm")
_DISPOSABLE = "@dispvm:"


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "graph",
        help="draw who may call whom",
        epilog="exit codes: 0 it is drawn, also if no call is possible; 1 the policy does not "
        "load, there is no such qube, or a refusal; 2 usage",
    )
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
        wanted(arguments, policy, system, ask=not arguments.no_ask, deny=arguments.deny),
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


def wanted(
    arguments: argparse.Namespace, policy: PolicySet, system: SystemInfo, *, ask: bool, deny: bool
) -> Filter:
    """What the options ask to be drawn; on stderr, which services no rule names.

    Raises:
        QubeNotFoundError: there is no such qube.
    """
    from caisson.policy import Action
    from caisson.policy.graph import Filter

    actions = {Action.ALLOW}
    actions |= {Action.ASK} if ask else set()
    actions |= {Action.DENY} if deny else set()
    sources, targets = arguments.source, arguments.target
    if not arguments.quiet:
        names.note_unnamed(arguments.service or (), policy.rules)
    return Filter(
        arguments.service,
        sources and [names.qube(each, system) for each in sources],
        targets and [name for each in targets for name in _ends(each, system)],
        actions,
    )


def _ends(target: str, system: SystemInfo) -> tuple[str, ...]:
    """What a call to a target may be drawn to: where it goes, or if denied, what was asked for."""
    if target in _KEYWORDS:
        return (target,)
    base = target.removeprefix(_DISPOSABLE)
    if base != target:
        return (_DISPOSABLE + names.qube(base, system),)
    return (target, names.qube(target, system))


def _form(output: Path | None) -> str:
    suffix = "" if output is None else output.suffix.removeprefix(".")
    if not suffix or suffix in FORMATS:
        return suffix or "dot"
    raise CaissonError(
        f"`.{suffix}` is no format of a picture", hint=f"use {', '.join(FORMATS)}, or `--format`"
    )
