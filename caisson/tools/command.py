"""The frame of every command: common options, errors, exit codes."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

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


class Parser(argparse.ArgumentParser):
    """A parser whose errors have the form of all errors."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UsageError: always.
        """
        raise UsageError(message, self._hint(message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word that is none of those to choose from, and say which one is near.

        Raises:
            UsageError: it is none of them.
        """
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        near = _nearest(str(value), known)
        usable = f"use {_any_of(known)}; `{self.prog} --help`"
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - has no public name
            what = f"there is no {str(action.metavar).lower()} `{shown(str(value))}`"
        else:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            what = f"`{shown(str(value))}` is no value of `{name}`"
        raise UsageError(what, f"did you mean `{near}`?" if near else usable)

    def nearest_option(self, untrusted_words: Sequence[str]) -> str | None:
        """The option that the first unknown one may be meant for."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in untrusted_words:
            option = word.partition("=")[0]
            if option.startswith("--") and (near := _nearest(option, known)):
                return near
        return None

    def _hint(self, message: str) -> str:
        unknown = message.partition("unrecognized arguments: ")[2]
        if near := self.nearest_option(unknown.split()):
            return f"did you mean `{near}`? `{self.prog} --help`"
        lists = (a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001
        names = [name for choices in lists for name in choices]
        if not names:
            return f"`{self.prog} --help`"
        return f"use {_any_of(names)}; `{self.prog} --help`"


def _any_of(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join([*([", ".join(quoted[:-1])] if quoted[1:] else []), quoted[-1]])


def _nearest(word: str, known: Sequence[str]) -> str | None:
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1, cutoff=0.7)
    return near[0] if near else None


class ActionParser(Parser):
    """The parser of an action: it takes the common options too, behind the action's name."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Paragraphs} | settings, allow_abbrev=False)
        # What is not given here must not undo what was given before the action.
        _add_common(self, default=argparse.SUPPRESS)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is unknown here, not in the command, whose help does not tell of it.

        Raises:
            UsageError: some word or option is unknown.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


if TYPE_CHECKING:
    _OfActions = argparse._SubParsersAction[ActionParser]  # noqa: SLF001 - has no public name
else:
    _OfActions = argparse._SubParsersAction  # noqa: SLF001


class _Actions(_OfActions):
    """Actions that say in their own help what they are for, as the list of them does."""

    def add_parser(self, name: str, **settings: Any) -> ActionParser:
        """Declare an action."""
        purpose = settings["help"]
        described = {"description": f"{purpose[:1].upper()}{purpose[1:]}."} | settings
        return super().add_parser(name, **described)


class _Paragraphs(argparse.HelpFormatter):
    """Fills each line of a text by itself, and keeps words with hyphens whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap

        return "\n".join(
            textwrap.fill(
                line, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
            for line in text.splitlines()
        )


def parser(name: str, purpose: str, epilog: str | None = None) -> Parser:
    """A parser with the options that all commands share."""
    made = Parser(
        prog=name,
        description=purpose,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(made, default=None)
    return made


def add_actions(
    made: argparse.ArgumentParser, metavar: str, dest: str = "action", *, required: bool = False
) -> argparse._SubParsersAction[ActionParser]:
    """Let a command have actions, each with the common options and words of its own."""
    return made.add_subparsers(
        dest=dest, metavar=metavar, required=required, parser_class=ActionParser, action=_Actions
    )


def _add_common(made: argparse.ArgumentParser, default: str | None) -> None:
    switch: dict[str, Any] = {"action": "store_true", "default": default or False}
    made.add_argument("--verbose", "-v", help="tell more on stderr", **switch)
    made.add_argument("--quiet", "-q", help="tell errors only", **switch)
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__} (Caisson)")
    made.add_argument(
        "--root",
        metavar="DIR",
        default=default,
        help="root directory of the instance (default: CAISSON_ROOT or /)",
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
    client = Client(arguments.root)
    try:
        code = run(arguments, client)
    except CaissonError as error:
        _suggest(error, client)
        raise
    sys.stdout.flush()
    return code


def _suggest(error: CaissonError, client: Client) -> None:
    """Where the daemon knows no such qube, hint at the nearest one."""
    from caisson.tools import selection

    selection.suggest(error, client)


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
        return _told(run)
    except UsageError as error:
        terminal.complain(error)
        return USAGE
    except CaissonError as error:
        terminal.complain(error)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _drop_output()
        return FAILURE
    except OSError as error:
        what = _unnamed(error) if error.filename is None else f"`{error.filename}`"
        _drop_output()
        terminal.complain(CaissonError(f"{what}: {(error.strerror or str(error)).lower()}"))
        return FAILURE


def _told(run: Callable[[], int]) -> int:
    """Run; what `--help` and `--version` print is written here, not where Python has ended."""
    try:
        return run()
    except SystemExit:
        sys.stdout.flush()
        raise


def _unnamed(error: OSError) -> str:
    """What failed where no file has a name: of the standard streams, the one that is not open."""
    closed = error.errno == errno.EBADF
    if closed and fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        return "input cannot be read"
    return "output cannot be written"


def _drop_output() -> None:
    """Keep Python from complaining, at its exit, about what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
