"""The frame of every command: common options, errors, exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from caisson import __version__
from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import shown
from caisson.tools import terminal

FAILURE = 1
USAGE = 2
INTERRUPTED = 128 + signal.SIGINT

Run = Callable[[argparse.Namespace, Client], int]


class UsageError(CaissonError):
    """The command was called in a way that has no meaning; exit code 2."""


def parser(name: str, purpose: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options that all commands share."""
    made = argparse.ArgumentParser(
        prog=name,
        description=purpose,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_common(made)
    return made


def add_common(made: argparse.ArgumentParser) -> None:
    """Add the options that all commands share."""
    made.add_argument("--verbose", "-v", action="store_true", help="tell more on stderr")
    made.add_argument("--quiet", "-q", action="store_true", help="tell errors only")
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__} (Caisson)")
    made.add_argument(
        "--root", metavar="DIR", help="root directory of the instance (default: CAISSON_ROOT or /)"
    )


def pairs(untrusted_words: Sequence[str]) -> list[tuple[str, str]]:
    """Split words of the form `NAME=VALUE`.

    Raises:
        UsageError: one is not of that form.
    """
    return [_pair(word) for word in untrusted_words]


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UsageError(f"`{shown(word)}` is not of the form `NAME=VALUE`")
    return key, value


def main(made: argparse.ArgumentParser, run: Run, argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the command; returns its exit code."""
    return guarded(lambda: _run(made, run, argv))


def _run(made: argparse.ArgumentParser, run: Run, argv: Sequence[str] | None) -> int:
    arguments = _parsed(made, argv)
    code = run(arguments, Client(arguments.root))
    sys.stdout.flush()
    return code


def _parsed(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse with options anywhere between the words, as far as argparse knows how to."""
    try:
        return made.parse_intermixed_args(argv)
    except TypeError:
        # The parser has sub-commands.
        return made.parse_args(argv)


def guarded(run: Callable[[], int]) -> int:
    """Run to an exit code; errors that a user can cause are shown, not thrown."""
    try:
        return run()
    except UsageError as error:
        terminal.complain(error)
        return USAGE
    except CaissonError as error:
        terminal.complain(error)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
