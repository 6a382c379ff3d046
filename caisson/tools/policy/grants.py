"""`caisson policy grants`: what is granted for a while, and for how long still."""

from __future__ import annotations

import argparse
from typing import Any

from caisson.admin.client import Client
from caisson.tools import terminal

_MINUTE = 60


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "grants",
        help="list what is granted, with the time left",
        epilog="exit codes: 0 listed, also if nothing is granted; 1 a refusal; 2 usage",
    )
    made.add_argument("--json", action="store_true", help="a list of objects")


def run(arguments: argparse.Namespace, client: Client) -> int:
    """List; the latest first, as they are tried."""
    import json

    found = json.loads(client.call("caisson.policy.Grants"))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    if found:
        heads = ("ID", "SOURCE", "TARGET", "SERVICE", "USER", "LEFT", "BY")
        print(terminal.table([heads, *map(_row, found)]), end="")
    elif not arguments.quiet:
        terminal.say("nothing is granted")
    return 0


def _row(grant: dict[str, Any]) -> tuple[str, ...]:
    target = grant["target"]
    if grant["redirect"] is not None:
        target = f"{target} → {grant['redirect']}"
    argument = "" if grant["argument"] == "+" else grant["argument"]
    plus = "+" if argument == "*" else ""
    gone = f"void, removed: {', '.join(grant['missing'])}"
    return (
        grant["id"],
        grant["source"],
        target,
        f"{grant['service']}{plus}{argument}",
        grant["user"] or "-",
        gone if grant["missing"] else left(grant["seconds_left"]),
        _user(grant["by"]),
    )


def left(seconds: int) -> str:
    """A duration as a person reads it: `59s`, `9m58s`, `1h02m`."""
    minutes, rest = divmod(seconds, _MINUTE)
    hours, minutes_rest = divmod(minutes, _MINUTE)
    if hours:
        return f"{hours}h{minutes_rest:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _user(uid: int | None) -> str:
    import pwd

    if uid is None:
        return "-"
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
