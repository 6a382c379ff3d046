"""`caisson policy decide`: requests as JSON lines in, decisions as JSON lines out."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import shown
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.policy import Request

LONGEST_LINE = 256 * 1024
"""Bytes; the longest argument of a call is 65,000 characters."""

_CHUNK = 64 * 1024
_FORM = 'write `{"service": "s.X", "argument": "+a", "source": "work", "target": ""}`'


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "decide",
        help="decide requests that come as JSON lines, one JSON line for each",
        epilog="A request is an object with `service`, `argument` (from its `+` on, or null), "
        "`source`, `target` and, for a relay, `requested_source`. A decision is `allow` with "
        "`target`, `requested_target`, `user`, `autostart`, `notify` and `rule`; `ask` with "
        "`targets` and `default_target` in the place of `target`; or `deny` with `notify` and "
        "`reason`. Who waits for an answer gets it before the next request.\n"
        "exit codes: 0 every line was answered; 1 a line is no request (the lines before it were "
        "answered), or a refusal",
    )
    inputs.add_options(made)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Decide until the input ends."""
    import msgspec

    from caisson.policy import BrokenPolicy
    from caisson.tools.policy import broken

    policy = inputs.policy_of(arguments, client)
    system = inputs.system_of(arguments, client)
    if isinstance(policy, BrokenPolicy):
        broken.complain(policy.error)
    output = sys.stdout.buffer
    encode, understand = msgspec.json.Encoder().encode, _reader()
    try:
        for number, line in enumerate(_lines(sys.stdin.fileno(), output.flush), 1):
            if line.strip():
                decision = policy.decide(understand(number, line), system)
                output.write(encode(decision.as_dict()) + b"\n")
    finally:
        output.flush()
    return 0


def _lines(descriptor: int, idle: Callable[[], None]) -> Iterator[bytes]:
    """The lines of the input, the last of which may be longer than allowed.

    Args:
        descriptor: of a file, a pipe or a terminal.
        idle: called when there is nothing more to read yet: whoever asks may wait for the answers
            before it asks again.
    """
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    rest = b""
    while True:
        if not waiting.poll(0):
            idle()
            waiting.poll()  # whoever gave us the input may have set it to O_NONBLOCK
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > LONGEST_LINE:
            break
    if rest:
        yield rest


def _reader() -> Callable[[int, bytes], Request]:
    """What makes a request of a line and its number."""
    import msgspec

    from caisson.policy import Request

    decode = msgspec.json.Decoder(Request).decode

    def understand(number: int, untrusted_line: bytes) -> Request:
        if len(untrusted_line) > LONGEST_LINE:
            raise CaissonError(
                f"line {number} of the input is longer than {LONGEST_LINE} bytes", hint=_FORM
            )
        try:
            request = decode(untrusted_line)
        except (msgspec.DecodeError, CaissonError, UnicodeDecodeError, RecursionError) as error:
            reason = shown(str(error).partition("\n")[0])
            raise CaissonError(
                f"line {number} of the input is not a request: {reason}", hint=_FORM
            ) from None
        if any("\0" in name for name in msgspec.structs.astuple(request)):
            raise CaissonError(
                f"line {number} of the input is not a request: a name has a NUL", hint=_FORM
            )
        return request

    return understand
