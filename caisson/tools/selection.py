"""Which qubes a command is about: names, patterns, `--all`, `--exclude`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from caisson.admin.client import Client
from caisson.errors import CaissonError, QubeNotFoundError
from caisson.names import DOM0, shown
from caisson.tools import terminal
from caisson.tools.command import UsageError

_PATTERN = frozenset("*?[")
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Listed:
    """A qube as the daemon lists it."""

    name: str
    klass: str
    state: str


def add_many(parser: argparse.ArgumentParser) -> None:
    """Let a command take any number of qubes."""
    parser.add_argument(
        "names", metavar="VMNAME", nargs="*", help="qube, or a pattern such as `work-*`"
    )
    parser.add_argument("--all", action="store_true", help="all qubes but the admin qube")
    parser.add_argument(
        "--exclude", metavar="VMNAME", action="append", default=[], help="not this one (with --all)"
    )


def listed(client: Client) -> dict[str, Listed]:
    """All qubes by name, the admin qube first."""
    qubes = {}
    for line in client.lines("admin.vm.List"):
        name, *words = line.split(" ")
        facts = dict(word.split("=", 1) for word in words if "=" in word)
        qubes[name] = Listed(name, facts.get("class", ""), facts.get("state", ""))
    return qubes


def chosen(arguments: argparse.Namespace, qubes: dict[str, Listed]) -> list[str]:
    """The names that the command line chooses, each once, in its order.

    Raises:
        UsageError: none is chosen, or the options contradict each other.
        QubeNotFoundError: a name or pattern fits no qube.
    """
    if arguments.all == bool(arguments.names):
        raise UsageError("give either names of qubes or `--all`")
    if arguments.exclude and not arguments.all:
        raise UsageError("`--exclude` goes with `--all`")
    if arguments.all:
        excluded = set(matching(arguments.exclude, qubes))
        return [name for name in qubes if name != DOM0 and name not in excluded]
    return matching(arguments.names, qubes)


def matching(patterns: list[str], qubes: dict[str, Listed]) -> list[str]:
    """The names that fit any of the patterns; a pattern never means the admin qube."""
    names: dict[str, None] = {}
    for pattern in patterns:
        if _PATTERN.isdisjoint(pattern):
            if pattern not in qubes:
                raise unknown(pattern, qubes)
            names[pattern] = None
            continue
        from fnmatch import fnmatchcase

        found = [name for name in qubes if name != DOM0 and fnmatchcase(name, pattern)]
        if not found:
            raise QubeNotFoundError(f"no qube fits the pattern `{shown(pattern)}`")
        names.update(dict.fromkeys(found))
    return list(names)


def unknown(name: str, qubes: dict[str, Listed]) -> CaissonError:
    """The error for a name that no qube has, with the nearest one as its hint."""
    from difflib import get_close_matches

    near = get_close_matches(name, qubes, n=1)
    hint = f"did you mean `{near[0]}`?" if near else "`qvm-ls` lists the qubes"
    return QubeNotFoundError(f"qube `{shown(name)}` does not exist", hint=hint)


def each(names: list[str], act: Callable[[str], object]) -> dict[str, CaissonError]:
    """Do something with all qubes at the same time; returns what failed, and why."""
    if len(names) == 1:
        return _failures(names, [_attempt(act, names[0])])
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return _failures(names, list(pool.map(lambda name: _attempt(act, name), names)))


def _attempt(act: Callable[[str], object], name: str) -> CaissonError | None:
    try:
        act(name)
    except CaissonError as error:
        return error
    return None


def _failures(names: list[str], outcomes: list[CaissonError | None]) -> dict[str, CaissonError]:
    return {name: error for name, error in zip(names, outcomes, strict=True) if error is not None}


def complain_about(name: str, error: CaissonError) -> None:
    """Show an error, naming the qube unless it does so itself."""
    if f"`{name}`" not in error.message:
        error = CaissonError(f"qube `{shown(name)}`: {error.message}", error.hint)
    terminal.complain(error)
