"""`qrexec-policy-daemon`: the sockets for decisions, by any policy, without the broker.

For those who try a policy against programs that ask for decisions; the broker serves the same
sockets, by the policy in force, with an audit log.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.qrexec.link import address
from caisson.tools import command, standalone_policy, terminal
from caisson.tools.command import UsageError
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.qrexec.advising import Sockets


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qrexec-policy-daemon",
        "Serve the sockets where programs ask for decisions, by a policy of your choice.\n"
        "The broker serves those of an instance by itself; this is for trying a policy.\n"
        "It runs until it is told to stop, logs each decision on stderr and keeps no audit log.",
    )
    made.add_argument(
        "--policy-path",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="a directory of policy files; a second one is overridden by the first\n"
        "(default: those of the instance)",
    )
    inputs.add_system_option(made)
    for option, what in (
        ("--socket-path", "where programs ask for decisions"),
        ("--eval-socket-path", "the socket of the service `policy.EvalSimple`"),
        ("--gui-socket-path", "the socket of the service `policy.EvalGUI`"),
    ):
        made.add_argument(option, metavar="SOCKET", type=Path, help=what)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Serve until told to stop."""
    from caisson.daemons import logs
    from caisson.qrexec.advising import Sockets

    sockets = Sockets(arguments.socket_path, arguments.eval_socket_path, arguments.gui_socket_path)
    if sockets == Sockets(None, None, None):
        raise UsageError(
            "no socket is named",
            "name one with --socket-path; the broker serves `/run/qubes/policy.sock` already",
        )
    for path in filter(None, (sockets.policy, sockets.simple, sockets.gui)):
        if _is_served(path):
            raise CaissonError(
                f"somebody answers at `{path}` already",
                hint="choose another socket, or end that program first",
            )
    logs.configure()
    standalone = standalone_policy.Standalone(arguments, client, arguments.policy_path)
    inputs.system_of(arguments, client)  # fails now rather than by denying every call
    asyncio.run(_serve(standalone, sockets))
    return 0


def _is_served(path: Path) -> bool:
    """Whether a program listens there: a socket that one left behind may be replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(address(path))
        except OSError as error:
            # The queue of one that is busy may be full.
            return error.errno == errno.EAGAIN
        return True


async def _serve(standalone: standalone_policy.Standalone, sockets: Sockets) -> None:
    from caisson.daemons.notify import Notifier

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = standalone.adviser().servers(sockets, loop.create_task)
    try:
        for server in servers:
            server.listen()
        Notifier().ready()
        terminal.say("serving; stop it with Ctrl-C")
        await stop.wait()
    finally:
        for server in servers:
            server.close()


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
