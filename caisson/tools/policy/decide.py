"""`caisson policy decide`: requests as JSON lines in, decisions as JSON lines out."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.policy import Request


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "decide", help="decide requests that come as JSON lines, one JSON line for each"
    )
    inputs.add_options(made)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Decide until the input ends."""
    import msgspec

    from caisson.policy import decide

    policy = inputs.policy_of(arguments, client)
    system = inputs.system_of(arguments, client)
    encode = msgspec.json.Encoder().encode
    for number, line in enumerate(sys.stdin.buffer, 1):
        if line.strip():
            decision = decide(_request(number, line), policy, system)
            sys.stdout.buffer.write(encode(decision.as_dict()) + b"\n")
            sys.stdout.buffer.flush()
    return 0


def _request(number: int, untrusted_line: bytes) -> Request:
    import msgspec

    from caisson.policy import Request

    try:
        return msgspec.json.decode(untrusted_line, type=Request)
    except (msgspec.DecodeError, CaissonError, UnicodeDecodeError, RecursionError) as error:
        raise CaissonError(
            f"line {number} of the input is not a request: {error}",
            hint='write `{"service": "s.X", "argument": "+a", "source": "work", "target": ""}`',
        ) from None
