"""`qrexec-legacy-convert`: policy of one file a service becomes rules that decide the same."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.paths import Paths
from caisson.tools import command, interrupts, terminal
from caisson.tools.command import FAILURE
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.policy import Files
    from caisson.policy.legacy import Conversion
    from caisson.store.policy_swap import Swap


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qrexec-legacy-convert",
        "Turn the files of `/etc/qubes-rpc/policy` into rules of `/etc/qubes/policy.d` that\n"
        "decide every call as before; the old files get the ending `.rpmsave`.\n"
        "The policies before and after are compared, and you are asked whether to keep the new\n"
        "one; otherwise everything is put back.",
        "exit codes: 0 converted, or nothing to convert; 1 put back, or refused; 2 the command\n"
        "line has no meaning",
    )
    how = made.add_mutually_exclusive_group()
    how.add_argument("--yes", "-y", action="store_true", help="keep the new policy without asking")
    how.add_argument(
        "--dry-run", "-n", action="store_true", help="print what would change, and change nothing"
    )
    inputs.add_system_option(made)
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Plan, compare, do, compare again, and ask."""
    from caisson.policy.legacy import convert
    from caisson.store.policy_lock import changing_policy

    paths = Paths(Path(client.root))
    # Whoever only looks needs no lock, which is root's.
    with contextlib.nullcontext() if arguments.dry_run else changing_policy(paths):
        files, over, legacy = _read(paths)
        conversion = convert(files, over, legacy)
        if conversion is None:
            terminal.say("nothing to convert")
            return 0
        _compare(conversion, arguments, client)
        if arguments.dry_run:
            _print_differences(files, conversion)
            return 0
        with interrupts.as_exceptions():
            return _swap(paths, conversion, arguments)


def _read(paths: Paths) -> tuple[Files, Files, Files]:
    """The three directories of policy; what is granted for a while stays out of it."""
    from caisson.store.policy_files import read_legacy_directory, read_policy_directory

    over, base = paths.policy_dirs
    return (
        read_policy_directory(base),
        read_policy_directory(over),
        read_legacy_directory(paths.legacy_policy),
    )


def _compare(conversion: Conversion, arguments: argparse.Namespace, client: Client) -> None:
    """Refuse what would decide a call differently.

    Raises:
        CaissonError: it would.
    """
    from caisson.policy.analysis import differences
    from caisson.policy.legacy import same_rules
    from caisson.tools.policy import diff_words

    if same_rules(conversion.before, conversion.after):
        terminal.say("every service has the same rules in the same order as before")
        return
    with terminal.Progress("comparing decisions"):
        system = inputs.system_of(arguments, client)
        found = differences(conversion.before, conversion.after, system, existing_only=True)
    if not found:
        terminal.say("every call between the qubes that exist is decided as before")
        return
    with contextlib.redirect_stdout(sys.stderr):
        diff_words.tell(found, system, whole=False)
    raise CaissonError(
        "calls would be decided differently, so nothing is changed",
        hint="other policy files speak of the same services: move their rules behind "
        "`!compat-4.0`, or into the old files",
    )


def _print_differences(files: Files, conversion: Conversion) -> None:
    import difflib

    for name, text in sorted(conversion.written.items()):
        former = _lines(files.get(name, b""))
        terminal.emit("".join(difflib.unified_diff(former, _lines(text), f"a/{name}", f"b/{name}")))
    for name in conversion.retired:
        terminal.emit(f"rename {name} => {name}.rpmsave\n")


def _lines(text: str | bytes) -> list[str]:
    decoded = text if isinstance(text, str) else text.decode("utf-8")
    return decoded.splitlines(keepends=True)


def _swap(paths: Paths, conversion: Conversion, arguments: argparse.Namespace) -> int:
    from caisson.store.policy_swap import Swap

    _, base = paths.policy_dirs
    swap = Swap(base, conversion.written, paths.legacy_policy, conversion.retired)
    swap.apply()
    try:
        _check(paths, conversion)
        _tell(conversion)
        kept = arguments.yes or terminal.confirmed("Keep the new policy?")
    except BaseException:
        _put_back(swap)
        raise
    if not kept:
        _put_back(swap)
        return FAILURE
    swap.confirm()
    return 0


def _put_back(swap: Swap) -> None:
    with interrupts.held_back():
        swap.undo()
    terminal.say("everything is as it was")


def _check(paths: Paths, conversion: Conversion) -> None:
    """Read what is there now, and compare: the disk decides, not the plan.

    Raises:
        CaissonError: it is not what was planned.
    """
    from caisson.policy import parse_policy
    from caisson.policy.legacy import same_rules

    if not same_rules(parse_policy(*_read(paths)), conversion.after):
        raise CaissonError(
            "the policy is not what it should be now",
            hint="somebody changed policy files meanwhile: try again",
        )


def _tell(conversion: Conversion) -> None:
    for name in sorted(conversion.written):
        terminal.say(f"written: {name}")
    terminal.say(f"retired: {len(conversion.retired)} old files, now with the ending `.rpmsave`")


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
