"""`qvm-run`: run a command or a service in a qube."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from caisson.admin.client import Client, NoAnswerError
from caisson.errors import (
    CaissonError,
    NotRunningError,
    NotStartedError,
    PermissionDeniedError,
    QubeNotFoundError,
)
from caisson.names import DOM0, shown
from caisson.tools import command, interrupts, running, selection, terminal
from caisson.tools.command import UsageError
from caisson.tools.running import Job

QUBES_ERROR = 255
_OWN_DISPOSABLE = "@dispvm"
_UP = frozenset({"Running", "Paused", "Suspended"})
_WHY = {
    125: "could not be set up there",
    126: "was refused, or may not be run there",
    127: "does not exist there",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-run",
        "Run a command or a service in a qube, starting the qube where it is halted.",
        "With one COMMAND, the qube's shell runs it; with ARGS, or with --no-shell, the program\n"
        "is run as it is given. Options end at COMMAND.\n"
        "Ctrl-C ends qvm-run only: the command in the qube goes on; it learns of it by its closed\n"
        "input and output.\n"
        "exit codes: the command's own with --pass-io; 125 it could not be set up in the qube,\n"
        "126 it was refused, or may not be run, 127 there is no such service or program,\n"
        "255 the qube is not there or does not start, or the connection was lost",
    )
    made.usage = (
        "qvm-run [options] VMNAME COMMAND [ARGS …]\n"
        "       qvm-run [options] --all [--exclude VMNAME] COMMAND [ARGS …]\n"
        "       qvm-run [options] --dispvm[=VMNAME] COMMAND [ARGS …]"
    )
    made.add_argument("words", metavar="VMNAME COMMAND [ARGS …]", nargs=argparse.REMAINDER)
    made.add_argument("--user", "-u", metavar="USER", help="run as this user of the qube")
    made.add_argument("--pass-io", "-p", action="store_true", help="connect input and output")
    made.add_argument("--localcmd", metavar="COMMAND", help="connect to a program here instead")
    made.add_argument("--service", action="store_true", help="COMMAND is the name of a service")
    made.add_argument("--no-shell", action="store_true", help="run the program, not the shell")
    made.add_argument(
        "--autostart", "-a", action="store_true", default=True, help="start it if halted (default)"
    )
    made.add_argument(
        "--no-autostart", "-n", dest="autostart", action="store_false", help="never start the qube"
    )
    made.add_argument(
        "--all", action="store_true", help="in all running qubes but the admin qube and RemoteVMs"
    )
    made.add_argument(
        "--exclude", metavar="VMNAME", action="append", default=[], help="not in this"
    )
    made.add_argument(
        "--dispvm",
        metavar="VMNAME",
        nargs="?",
        const=_OWN_DISPOSABLE,
        help="in a new disposable, based on the default or on VMNAME; it goes afterwards",
    )
    made.add_argument("--gui", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--no-gui", dest="gui", action="store_false", help=argparse.SUPPRESS)
    _add_filters(made)
    return made


def _add_filters(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("what a terminal gets to see")
    group.add_argument(
        "--filter-escape-chars",
        action="store_true",
        default=None,
        help="replace control characters by `_` (default on a terminal)",
    )
    group.add_argument(
        "--no-filter-escape-chars",
        dest="filter_escape_chars",
        action="store_false",
        help="leave output as it is",
    )
    group.add_argument(
        "--color-output", metavar="NUMBER", type=_color, help="colour of output, such as 31"
    )
    group.add_argument(
        "--no-color-output",
        dest="color_output",
        action="store_const",
        const=None,
        help="no colour of output (default)",
    )
    group.add_argument(
        "--color-stderr", metavar="NUMBER", type=_color, help="colour of error output"
    )
    group.add_argument(
        "--no-color-stderr",
        dest="color_stderr",
        action="store_const",
        const=None,
        help="no colour of error output (default)",
    )


def split_words(
    made: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Parse options before and after VMNAME; returns them, the names, and the command."""
    # A bare --dispvm must not take the word after it for its value.
    words = [f"--dispvm={_OWN_DISPOSABLE}" if word == "--dispvm" else word for word in argv]
    command_words = words[:]
    arguments = made.parse_args(command_words)
    rest = arguments.words
    names: list[str] = []
    if not arguments.all and arguments.dispvm is None and rest and rest[0] != "--":
        names, rest = rest[:1], rest[1:]
    if names and rest and rest[0].startswith("-") and rest[0] != "--":
        arguments = made.parse_args(rest, arguments)
        rest = arguments.words
    if rest[:1] == ["--"]:
        rest = rest[1:]
    if not names and not arguments.all and arguments.dispvm is None and rest:
        names, rest = rest[:1], rest[1:]
    # The replacement above may have touched a word of the command itself.
    own = f"--dispvm={_OWN_DISPOSABLE}"
    return arguments, names, ["--dispvm" if word == own else word for word in rest]


def run(arguments: argparse.Namespace, names: list[str], words: list[str]) -> int:
    """Run it everywhere it is wanted."""
    client = Client(arguments.root)
    todo = running.job(
        words, user=arguments.user, service=arguments.service, no_shell=arguments.no_shell
    )
    if arguments.dispvm is not None:
        if arguments.all:
            raise UsageError("`--dispvm` and `--all` exclude each other")
        return _run_in_disposable(arguments, client, todo)
    if arguments.all or any(map(selection.is_pattern, names)):
        return _run_in_many(arguments, client, names, todo)
    if not names:
        raise UsageError("the name of the qube is missing", "say `qvm-run VMNAME COMMAND`")
    _make_ready(client, names[0], autostart=arguments.autostart)
    return _run_in(arguments, client, names[0], todo, wait=arguments.pass_io, last=True)


def _run_in_many(arguments: argparse.Namespace, client: Client, names: list[str], todo: Job) -> int:
    qubes = selection.listed(client)
    excluded = set(selection.matching(arguments.exclude, qubes))
    wanted = selection.matching(names, qubes) if names else list(qubes)
    code = 0
    for name in wanted:
        elsewhere = qubes[name].klass in selection.ELSEWHERE
        if name == DOM0 or elsewhere or name in excluded or qubes[name].state not in _UP:
            continue
        try:
            _make_ready(client, name, autostart=False)
            code = max(code, _run_in(arguments, client, name, todo, wait=arguments.pass_io))
        except CaissonError as error:
            selection.complain_about(name, error)
            code = QUBES_ERROR
    return code


def _run_in_disposable(arguments: argparse.Namespace, client: Client, todo: Job) -> int:
    base = arguments.dispvm
    if client.qrexec is None:
        with _disposable(client, base) as name:
            return _run_in(arguments, client, name, todo, wait=True)
    # The call itself makes the disposable, and ends it.
    target = base if base == _OWN_DISPOSABLE else f"{_OWN_DISPOSABLE}:{base}"
    return _run_in(arguments, client, target, todo, wait=True, last=True)


@contextmanager
def _disposable(client: Client, base: str) -> Iterator[str]:
    """A disposable that is gone afterwards, whatever happens."""
    destination = DOM0 if base == _OWN_DISPOSABLE else base
    name = ""
    with interrupts.as_exceptions():
        try:
            # A Ctrl-C in the middle would leave one behind whose name nobody knows.
            with interrupts.held_back():
                name = client.text("admin.vm.CreateDisposable", destination=destination)
            with terminal.Progress(f"starting {name}"):
                client.call("admin.vm.Start", destination=name)
            yield name
        finally:
            if name:
                _end(client, name)


def _end(client: Client, name: str) -> None:
    try:
        client.call("admin.vm.Kill", destination=name)
    except NotStartedError:
        _remove_unstarted(client, name)
    except QubeNotFoundError:
        pass


def _remove_unstarted(client: Client, name: str) -> None:
    """A disposable that never ran does not go by itself."""
    try:
        client.call("admin.vm.Remove", destination=name)
    except QubeNotFoundError:
        return


def _run_in(
    arguments: argparse.Namespace,
    client: Client,
    name: str,
    todo: Job,
    *,
    wait: bool,
    last: bool = False,
) -> int:
    """Run it in one qube; with `last`, this process may become the client."""
    if not arguments.quiet and not arguments.pass_io:
        terminal.say(f"Running '{todo.told}' on {name}")
    flags = []
    if arguments.pass_io:
        flags = [flag for flag, to in (("-t", 1), ("-T", 2)) if _filtered(arguments, to)]
    carrier = running.carrier(
        client, name, todo, wait=wait or bool(arguments.localcmd), flags=flags
    )
    if arguments.localcmd:
        return carrier.with_local(arguments.localcmd)
    if not arguments.pass_io:
        code = carrier.silently()
        if not wait and code in _WHY:
            # With nobody waiting for it, its own words about that go nowhere.
            what = f"service `{shown(todo.told)}`" if arguments.service else "the command"
            selection.complain_about(name, CaissonError(f"{what} {_WHY[code]}"))
        return code
    if last and not (arguments.color_output or arguments.color_stderr):
        return carrier.in_place()
    return carrier.coloured(arguments.color_output, arguments.color_stderr)


def _make_ready(client: Client, name: str, *, autostart: bool) -> None:
    if name == DOM0 and client.qrexec is None:
        raise CaissonError(
            "commands cannot be run in the admin qube this way", "run it in this shell"
        )
    try:
        text = client.text("admin.vm.CurrentState", destination=name)
    except (NoAnswerError, PermissionDeniedError):
        if client.qrexec is None or not autostart:
            raise
        # A qube that may call services need not be one that may administer: the call starts it.
        return
    state = dict(word.split("=", 1) for word in text.split()).get("power_state")
    match state:
        case "Running":
            if client.qrexec is None:
                _refuse_elsewhere(client, name)
        case "Paused":
            client.call("admin.vm.Unpause", destination=name)
        case "Suspended":
            client.call("admin.vm.Resume", destination=name)
        case _ if autostart:
            with terminal.Progress(f"starting {name}"):
                client.call("admin.vm.Start", destination=name)
        case _:
            raise NotRunningError(
                f"qube `{shown(name)}` does not run", f"start it: `qvm-start {shown(name)}`"
            )


def _refuse_elsewhere(client: Client, name: str) -> None:
    if (
        client.text("admin.vm.property.Get", "klass", name).rpartition(" ")[2]
        in selection.ELSEWHERE
    ):
        raise CaissonError(
            f"qube `{shown(name)}` is a RemoteVM: it runs on another machine",
            "run the command there; this version does not carry calls to other machines",
        )


def _filtered(arguments: argparse.Namespace, descriptor: int) -> bool:
    if arguments.filter_escape_chars is not None:
        return bool(arguments.filter_escape_chars)
    return os.isatty(descriptor)


def _color(untrusted_word: str) -> str:
    """A colour as terminals number them."""
    if not untrusted_word.replace(";", "").isdigit():
        raise argparse.ArgumentTypeError("a colour is a number, such as 31")
    return untrusted_word


def main() -> int:
    """Entry point."""

    def guarded() -> int:
        arguments, names, words = split_words(parser(), sys.argv[1:])
        try:
            return run(arguments, names, words)
        except UsageError:
            raise
        except CaissonError as error:
            selection.suggest(error, Client(arguments.root))
            terminal.complain(error)
            return QUBES_ERROR

    return command.guarded(guarded)
