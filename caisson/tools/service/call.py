"""`caisson service call`: run a service without a qube, as an agent would."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import terminal

if TYPE_CHECKING:
    from caisson.tools.service.calling import Command

_NOT_FOUND = 127
"""As agents have it."""


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "call",
        help="run a service without a qube, as an agent would",
        epilog="Standard input, output and error are the service's. It runs on this machine, "
        "with your rights.\n"
        "exit codes: those of the service; 125 it cannot be run; 127 there is none of that name; "
        "2 usage",
    )
    made.add_argument("service", metavar="NAME[+ARGUMENT]", help="such as `my.GetBTCprice+EUR`")
    made.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        default="caller",
        help="the qube that seems to call (default: `caller`)",
    )
    made.add_argument(
        "--path",
        metavar="DIR",
        type=Path,
        default=Path("etc/qubes-rpc"),
        help="the directory of services (default: `etc/qubes-rpc` in this one)",
    )
    made.add_argument(
        "--config",
        metavar="DIR",
        type=Path,
        default=Path("etc/qubes/rpc-config"),
        help="the directory of their settings (default: `etc/qubes/rpc-config` in this one)",
    )
    made.add_argument("--user", metavar="USER", help="who runs it; needs root")


def run(arguments: argparse.Namespace, _client: Client) -> int:
    """Become the service."""
    from caisson.tools.service import calling

    if not arguments.path.is_dir():
        raise _absent(f"there is no directory `{arguments.path}`")
    made = calling.command(
        arguments.service,
        services=arguments.path,
        settings=arguments.config,
        source=arguments.source,
        user=arguments.user,
    )
    if not calling.offers(arguments.service, arguments.path):
        # The agent would speak of a qube, and there is none.
        name = arguments.service.partition("+")[0]
        terminal.complain(_absent(f"there is no service `{name}` in `{arguments.path}`"))
        return _NOT_FOUND
    return _become(made)


def _absent(what: str) -> CaissonError:
    return CaissonError(
        what, hint="say with `--path` where services are; `caisson service new` lays one"
    )


def _become(made: Command) -> NoReturn:
    sys.stdout.flush()
    # As programs expect it, whatever Python wanted.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execve(made.program, made.argv, made.environment)  # noqa: S606 - a list, never a shell
