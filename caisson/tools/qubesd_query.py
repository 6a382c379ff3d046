"""`qubesd-query`: send one request to the daemon's socket and print its reply as it is."""

from __future__ import annotations

import argparse
import os
import sys

from caisson.admin import wire
from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import command
from caisson.tools.command import FAILURE

_STDIN = 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qubesd-query",
        "Send one request to the daemon's socket, with the payload from standard input, and print\n"
        "the frame of its reply as it is.",
        "exit codes: 0 there was a reply; 1 there was none; with --fail the first digit of the\n"
        "reply: 0 done, 1 events, 2 refused",
    )
    made.add_argument("source", metavar="SOURCE", help="qube that calls, such as `dom0`")
    made.add_argument("method", metavar="METHOD", help="such as `admin.vm.List`")
    made.add_argument("destination", metavar="DEST", help="qube that the call is about")
    made.add_argument("argument", metavar="ARGUMENT", nargs="?", default="", help="its argument")
    made.add_argument(
        "--connect", "-c", dest="socket", metavar="SOCKET", help="another socket than qubesd.sock"
    )
    made.add_argument("--empty", "-e", action="store_true", help="no payload: do not read stdin")
    made.add_argument("--fail", action="store_true", help="tell the kind of reply by exit code")
    made.add_argument(
        "--max-bytes",
        metavar="NUMBER",
        type=int,
        default=wire.LONGEST_REQUEST,
        help="refuse a longer payload (default: 65536)",
    )
    until = made.add_mutually_exclusive_group()
    until.add_argument(
        "--single-line",
        action="store_true",
        help="the payload is one line of printable ASCII; leave the rest of stdin unread",
    )
    until.add_argument(
        "--null", action="store_true", help="the payload ends at a NUL; leave the rest unread"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Send, and print what comes back."""
    request = wire.build_request(
        arguments.method,
        arguments.argument,
        arguments.destination,
        _payload(arguments),
        source=arguments.source,
    )
    first = b""
    for chunk in client.exchange(request, arguments.socket):
        first = first or chunk[:1]
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    if not first:
        return FAILURE
    return int(first) if arguments.fail and first.isdigit() else 0


def _payload(arguments: argparse.Namespace) -> bytes:
    most = arguments.max_bytes
    if arguments.empty:
        return b""
    if arguments.single_line:
        line = _up_to(b"\n", most)
        if any(not 0x20 <= byte <= 0x7E for byte in line):  # noqa: PLR2004 - printable ASCII
            raise CaissonError("the line on standard input is not printable ASCII")
        return line
    if arguments.null:
        return _up_to(b"\0", most)
    payload = sys.stdin.buffer.read(most + 1)
    return _within(payload, most)


def _up_to(end: bytes, most: int) -> bytes:
    """Read to the end mark, and not a byte further: the rest belongs to whoever comes next."""
    found = b""
    while len(found) <= most:
        byte = os.read(_STDIN, 1)
        if byte == end:
            return found
        if not byte:
            raise CaissonError("standard input ends before the payload does")
        found += byte
    return _within(found, most)


def _within(payload: bytes, most: int) -> bytes:
    if len(payload) > most:
        raise CaissonError(f"the payload is longer than {most} bytes")
    return payload


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
