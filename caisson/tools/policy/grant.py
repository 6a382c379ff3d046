"""`caisson policy grant`: let a qube call a service of another for a while."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.names import shown
from caisson.tools import terminal
from caisson.tools.command import UsageError
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.policy import Decision

_DURATION = re.compile(r"([0-9]{1,9})([smh])")
_UNITS = {"s": 1, "m": 60, "h": 60 * 60}
_LONGEST = 24 * 60 * 60
_EVERY = "*"


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "grant",
        help="let a qube call a service for a while, whatever the policy says; prints an id",
    )
    made.add_argument("source", metavar="SOURCE", help="the calling qube")
    made.add_argument(
        "target",
        metavar="TARGET",
        help="the qube it may call, `@dispvm`, `@dispvm:QUBE`, or `@default` with `--target`",
    )
    made.add_argument(
        "service",
        metavar="SERVICE[+ARG]",
        help="the service, with just this argument; `+*` for any. Never `*`, `admin.*`, "
        "`policy.*` or `internal.*`, nor any of `dom0`: administration is delegated by policy",
    )
    made.add_argument(
        "--for",
        dest="duration",
        metavar="DURATION",
        required=True,
        help="`90s`, `10m` or `2h`, at most 24 hours; suspend counts, a reboot ends it",
    )
    made.add_argument("--user", metavar="USER", help="the user in the target")
    made.add_argument("--target", dest="redirect", metavar="QUBE", help="where `@default` goes")


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Say what the policy says today, grant, and print the id."""
    import json

    seconds = duration(arguments.duration)
    service, _, argument = arguments.service.partition("+")
    argument = _EVERY if argument == _EVERY else f"+{argument}"
    tell = (lambda _text: None) if arguments.quiet else terminal.say
    today, condition = _today(arguments, client, service, argument)
    wanted = {
        "source": arguments.source,
        "target": arguments.target,
        "service": service,
        "argument": argument,
        "seconds": seconds,
        "redirect": arguments.redirect,
        "user": arguments.user,
    }
    granted = client.text("caisson.policy.Grant", payload=json.dumps(wanted).encode())
    tell(today)
    tell(f"from now until {_clock(seconds)} it is allowed{condition}")
    print(granted)
    return 0


def duration(untrusted: str) -> int:
    """The seconds that `90s`, `10m` or `2h` are.

    Raises:
        UsageError: it is not such a text, or too short or too long for a grant.
    """
    match = _DURATION.fullmatch(untrusted)
    if match is None:
        raise UsageError(
            f"`{shown(untrusted)}` is not a duration",
            "write a number and `s`, `m` or `h`: `90s`, `10m`, `2h`",
        )
    seconds = int(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= _LONGEST:
        raise UsageError(
            f"`{untrusted}` is not between 1 second and 24 hours",
            "what shall hold for longer is a rule: put it into `30-user.policy`",
        )
    return seconds


def _today(
    arguments: argparse.Namespace, client: Client, service: str, argument: str
) -> tuple[str, str]:
    """What the policy says before the grant is made, and on what the grant depends."""
    from caisson.policy import BrokenPolicy, Request, decide

    in_force = argparse.Namespace(policy_dir=None, system_info=None)
    policy = inputs.policy_of(in_force, client)
    if isinstance(policy, BrokenPolicy):
        return (
            "the policy is broken: every call is denied, granted or not, until it is mended",
            ", once the policy is mended",
        )
    asked = "+" if argument == _EVERY else argument
    request = Request(service, asked, arguments.source, arguments.target)
    said = _said(decide(request, policy, inputs.system_of(in_force, client)))
    about = "a call without an argument" if argument == _EVERY else "the call"
    return f"until now {about} is {said}", ""


def _said(decision: Decision) -> str:
    from caisson.policy import Allow, Ask

    match decision:
        case Allow():
            return f"allowed already ({decision.location})"
        case Ask():
            return f"a question to a person ({decision.location})"
        case _:
            return f"denied ({decision.location or decision.text})"


def _clock(seconds: int) -> str:
    """The time of day, for a person, so many seconds from now."""
    from datetime import datetime, timedelta

    now = datetime.now().astimezone()
    end = now + timedelta(seconds=seconds)
    return f"{end:%H:%M:%S}" if end.date() == now.date() else f"{end:%H:%M:%S} tomorrow"
