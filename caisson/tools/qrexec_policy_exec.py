"""`qrexec-policy-exec`: ask for one decision, and print the answer as it is."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import DaemonError
from caisson.paths import Paths
from caisson.tools import command, standalone_policy, terminal
from caisson.tools.command import FAILURE, UsageError
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.qrexec.policy_messages import Query

_PIECE = 4096


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qrexec-policy-exec",
        "Ask whether a call may be made, as if it were made: the policy decides, or a person whom\n"
        "it asks. The answer is printed as the policy socket gives it; nothing is called.",
        "exit codes: 0 allowed; 1 denied, or no answer; 2 the command line has no meaning",
    )
    made.add_argument("source", metavar="SOURCE", help="qube that calls")
    made.add_argument(
        "target", metavar="TARGET", help="what it calls: a qube, `@default`, `@dispvm` …"
    )
    made.add_argument("service", metavar="SERVICE[+ARGUMENT]", help="service that it calls")
    # With a default it is not told among what is required.
    made.add_argument("more", nargs="*", default=[], help=argparse.SUPPRESS)
    made.add_argument(
        "--just-evaluate",
        action="store_true",
        help="ask and tell no person: what only a person could allow is denied",
    )
    made.add_argument(
        "--assume-yes-for-ask",
        action="store_true",
        help="where a person would be asked, ask none and take it for a yes",
    )
    made.add_argument(
        "--path",
        metavar="DIR",
        type=Path,
        help="decide here, by the policy in this directory (default: ask the broker)",
    )
    inputs.add_system_option(made)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Ask, and print."""
    from caisson.qrexec.policy_messages import DENIED, encode_query

    if arguments.more:
        raise UsageError(
            "the form DOMID SOURCE TARGET SERVICE IDENT, which also connects, is not supported",
            "give SOURCE TARGET SERVICE+ARGUMENT, and connect with what the answer says",
        )
    query = _query(arguments)
    if arguments.path is None and arguments.system_info is None:
        answer = _asked(Paths(Path(client.root)).policy_socket, encode_query(query))
    else:
        answer = _decided(arguments, client, query)
    terminal.emit(answer)
    return FAILURE if answer == DENIED else 0


def _query(arguments: argparse.Namespace) -> Query:
    from caisson.qrexec.policy_messages import Query
    from caisson.qrexec.wire import parse_service, parse_source, parse_target

    service, argument = parse_service(arguments.service)
    return Query(
        source=parse_source(arguments.source),
        target=parse_target(arguments.target),
        service=service,
        argument=argument,
        assume_yes=arguments.assume_yes_for_ask,
        just_evaluate=arguments.just_evaluate,
    )


def _asked(path: Path, request: bytes) -> bytes:
    """What the policy socket answers; a person may take their time."""
    from caisson.qrexec.link import address

    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(address(path))
            sock.sendall(request)
            answer = b"".join(iter(lambda: sock.recv(_PIECE), b""))
        except OSError as e:
            raise DaemonError(
                f"the policy socket `{path}` cannot be reached: {(e.strerror or str(e)).lower()}",
                hint="start the broker: caisson up; or decide here with --path",
            ) from None
    if not answer:
        raise DaemonError(
            "the request got no answer", hint="the broker's log says why: caisson doctor"
        )
    return answer


def _decided(arguments: argparse.Namespace, client: Client, query: Query) -> bytes:
    """What the socket would answer, by another policy or system; why, where no rule says so.

    Raises:
        CaissonError: there is no such policy, or the system is not known.
        OSError: the system's file cannot be read.
    """
    import asyncio

    import structlog

    from caisson.daemons import logs
    from caisson.policy import Ask, Deny, Reason
    from caisson.qrexec.policy_messages import encode_query

    if arguments.verbose:
        logs.configure()
    else:
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    directories = [] if arguments.path is None else [arguments.path]
    standalone = standalone_policy.Standalone(arguments, client, directories)
    decision = standalone.view().judge(
        query.source, query.service, query.argument, query.target, query.requested_source
    )
    if isinstance(decision, Deny) and decision.reason not in {Reason.RULE, Reason.NO_RULE}:
        terminal.say(f"denied: {decision.text}")

    def tell(record: dict[str, Any]) -> None:
        if isinstance(decision, Ask) and record["decision"] != "allow":
            terminal.say(f"denied: {record['reason']}")

    async def decide() -> bytes:
        answer = standalone.adviser(tell).answer(encode_query(query), os.getuid())
        reply = answer if isinstance(answer, bytes) else await answer
        await standalone.told()
        return reply

    return asyncio.run(decide())


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
