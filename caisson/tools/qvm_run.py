"""`qvm-run`: run a command or a service in a qube."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from caisson.admin.client import Client
from caisson.errors import CaissonError, NotRunningError, NotStartedError, QubeNotFoundError
from caisson.names import DOM0, shown
from caisson.tools import command, selection, terminal
from caisson.tools.command import UsageError

QUBES_ERROR = 255
_OWN_DISPOSABLE = "@dispvm"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-run",
        "Run a command or a service in a qube, starting the qube where it is halted.",
        "With one COMMAND, the qube's shell runs it; with ARGS, or with --no-shell, the program\n"
        "is run as it is given. Options end at COMMAND.\n"
        "exit codes: the command's own with --pass-io; 255 when it could not be run",
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
    made.add_argument("--all", action="store_true", help="in all running qubes")
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
    group.add_argument("--no-filter-escape-chars", dest="filter_escape_chars", action="store_false")
    group.add_argument(
        "--color-output", metavar="NUMBER", type=_color, help="colour of output, such as 31"
    )
    group.add_argument("--no-color-output", dest="color_output", action="store_const", const=None)
    group.add_argument(
        "--color-stderr", metavar="NUMBER", type=_color, help="colour of error output"
    )
    group.add_argument("--no-color-stderr", dest="color_stderr", action="store_const", const=None)


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


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, as the qrexec client takes it, and what to tell about it."""

    user: str
    line: str
    told: str

    def in_qube(self) -> str:
        """The command with its user; `DEFAULT` is the qube's own default user."""
        return f"{self.user}:{self.line}"


def job(arguments: argparse.Namespace, words: Sequence[str]) -> Job:
    """Turn the command line into what to run.

    Raises:
        UsageError: there is nothing to run, or it has no meaning.
    """
    if not words:
        raise UsageError("the command to run is missing", "say `qvm-run VMNAME COMMAND`")
    if any("\0" in word for word in words):
        raise UsageError("the command contains a NUL character")
    user = arguments.user or "DEFAULT"
    told = " ".join(words)
    if arguments.service:
        if len(words) > 1:
            raise UsageError("a service takes no further words", "put data after `+`")
        service = words[0] if "+" in words[0] else words[0] + "+"
        return Job(user, f"QUBESRPC {service} {DOM0}", told)
    if len(words) > 1 or arguments.no_shell:
        return Job(user, f"QUBESRPC qubes.VMExec+{encoded(words)} {DOM0}", told)
    return Job(user, words[0], told)


def encoded(words: Sequence[str]) -> str:
    """A list of words as the argument of `qubes.VMExec` (sheet `qrexec`, section 6)."""
    return "+".join("".join(map(_encoded_byte, os.fsencode(word))) for word in words)


def _encoded_byte(byte: int) -> str:
    char = chr(byte)
    if char == "-":
        return "--"
    if char.isascii() and (char.isalnum() or char in "._"):
        return char
    return f"-{byte:02X}"


def run(arguments: argparse.Namespace, names: list[str], words: list[str]) -> int:
    """Run it everywhere it is wanted."""
    client = Client(arguments.root)
    todo = job(arguments, words)
    if arguments.dispvm is not None:
        if arguments.all:
            raise UsageError("`--dispvm` and `--all` exclude each other")
        with _disposable(client, arguments.dispvm) as name:
            return _run_in(arguments, client, name, todo, wait=True)
    if arguments.all or any(not set("*?[").isdisjoint(name) for name in names):
        return _run_in_many(arguments, client, names, todo)
    if not names:
        raise UsageError("the name of the qube is missing", "say `qvm-run VMNAME COMMAND`")
    return _run_in(arguments, client, names[0], todo, wait=arguments.pass_io, last=True)


def _run_in_many(arguments: argparse.Namespace, client: Client, names: list[str], todo: Job) -> int:
    qubes = selection.listed(client)
    excluded = set(selection.matching(arguments.exclude, qubes))
    wanted = selection.matching(names, qubes) if names else list(qubes)
    code = 0
    for name in wanted:
        if name == DOM0 or name in excluded or qubes[name].state not in {"Running", "Paused"}:
            continue
        try:
            code = max(code, _run_in(arguments, client, name, todo, wait=arguments.pass_io))
        except CaissonError as error:
            selection.complain_about(name, error)
            code = QUBES_ERROR
    return code


@contextmanager
def _disposable(client: Client, base: str) -> Iterator[str]:
    """A disposable that is gone afterwards, whatever happens."""
    import signal

    # By default these would end us without the cleaning up below.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    destination = DOM0 if base == _OWN_DISPOSABLE else base
    name = client.text("admin.vm.CreateDisposable", destination=destination)
    try:
        client.call("admin.vm.Start", destination=name)
        yield name
    finally:
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
    _make_ready(client, name, autostart=arguments.autostart)
    if not arguments.quiet and not arguments.pass_io:
        terminal.say(f"Running '{todo.told}' on {name}")
    argv = ["qrexec-client", "-d", name]
    if not wait and not arguments.localcmd:
        argv.append("-e")
    if arguments.pass_io:
        argv += [flag for flag, to in (("-t", 1), ("-T", 2)) if _filtered(arguments, to)]
    argv.append(todo.in_qube())
    environment = {**os.environ, "CAISSON_ROOT": client.root}
    program = _qrexec_client()
    if arguments.localcmd:
        return _between(program, argv, environment, arguments.localcmd)
    if not arguments.pass_io:
        return _silent(program, argv, environment)
    if last and not (arguments.color_output or arguments.color_stderr):
        sys.stdout.flush()
        os.execve(program, argv, environment)  # noqa: S606 - a program, not a shell
    return _coloured(arguments, program, argv, environment)


def _make_ready(client: Client, name: str, *, autostart: bool) -> None:
    if name == DOM0:
        raise CaissonError(
            "commands cannot be run in the admin qube this way", "run it in this shell"
        )
    text = client.text("admin.vm.CurrentState", destination=name)
    state = dict(word.split("=", 1) for word in text.split()).get("power_state")
    match state:
        case "Running":
            return
        case "Paused":
            client.call("admin.vm.Unpause", destination=name)
        case _ if autostart:
            client.call("admin.vm.Start", destination=name)
        case _:
            raise NotRunningError(
                f"qube `{shown(name)}` does not run", f"start it: `qvm-start {shown(name)}`"
            )


def _qrexec_client() -> str:
    """The program that moves the data."""
    from caisson.paths import AGENT_BINARY

    for candidate in (os.fspath(AGENT_BINARY), "/usr/lib/qubes/qrexec-client"):
        if os.access(candidate, os.X_OK):
            return candidate
    raise CaissonError(
        "the program `qrexec-client` is missing", "build it: `sudo script/setup` in the checkout"
    )


def _silent(program: str, argv: list[str], environment: dict[str, str]) -> int:
    import subprocess

    done = subprocess.run(
        argv,
        executable=program,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return _exit_code(done.returncode)


def _between(program: str, argv: list[str], environment: dict[str, str], local: str) -> int:
    """Connect the command in the qube to a local one."""
    import subprocess

    with (
        subprocess.Popen(
            argv,
            executable=program,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as remote,
        subprocess.Popen(
            ["/bin/sh", "-c", local], stdin=remote.stdout, stdout=remote.stdin
        ) as here,
    ):
        # Our copies of the ends would keep either side from seeing the other's end.
        for end in (remote.stdin, remote.stdout):
            if end is not None:
                end.close()
        remote.stdin = remote.stdout = None
        return _exit_code(remote.wait()) or _exit_code(here.wait())


def _exit_code(code: int) -> int:
    """A process's exit code as a shell tells it."""
    return code if code >= 0 else 128 - code


def _filtered(arguments: argparse.Namespace, descriptor: int) -> bool:
    if arguments.filter_escape_chars is not None:
        return bool(arguments.filter_escape_chars)
    return os.isatty(descriptor)


def _coloured(
    arguments: argparse.Namespace, program: str, argv: list[str], environment: dict[str, str]
) -> int:
    """Run the client with its output in the colours that were asked for."""
    import subprocess

    colors = {1: arguments.color_output, 2: arguments.color_stderr}
    for descriptor, color in colors.items():
        if color is not None:
            os.write(descriptor, f"\033[0;{color}m".encode())
    try:
        done = subprocess.run(argv, executable=program, env=environment, check=False)
    finally:
        for descriptor, color in colors.items():
            if color is not None:
                os.write(descriptor, b"\033[0m")
    return _exit_code(done.returncode)


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
            terminal.complain(error)
            return QUBES_ERROR

    return command.guarded(guarded)
