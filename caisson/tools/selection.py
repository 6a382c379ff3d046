"""Which qubes a command is about: names, patterns, `--all`, `--exclude`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from caisson.admin.client import Client
from caisson.errors import CaissonError, QubeNotFoundError
from caisson.names import DOM0, shown
from caisson.tools import terminal
from caisson.tools.command import UsageError
from caisson.tools.parallel import at_once

_PATTERN = frozenset("*?[")
_TOLD = 5
_LIST_THEM = "list the qubes with `qvm-ls`"
MOST_FAILURES = 125
"""The largest exit code that a shell does not take for something else."""
CLASSES = ("AdminVM", "TemplateVM", "AppVM", "StandaloneVM", "DispVM", "RemoteVM")
ELSEWHERE = frozenset({"RemoteVM"})
"""The classes whose qubes live on other machines: nothing here starts or stops them."""
ALL_HERE = "all qubes but the admin qube and RemoteVMs"


class Listed(NamedTuple):
    """A qube as the daemon lists it."""

    name: str
    klass: str
    state: str


def add_many(
    parser: argparse.ArgumentParser, all_means: str = "all qubes but the admin qube"
) -> None:
    """Let a command take any number of qubes."""
    parser.add_argument(
        "names", metavar="VMNAME", nargs="*", help="qube, or a pattern such as `work-*`"
    )
    parser.add_argument("--all", action="store_true", help=all_means)
    parser.add_argument(
        "--exclude",
        metavar="VMNAME",
        action="append",
        default=[],
        help="not this one, nor what fits this pattern (with --all)",
    )


def listed(client: Client) -> dict[str, Listed]:
    """All qubes by name, the admin qube first."""
    return {
        name: Listed(name, facts.get("class", ""), facts.get("state", ""))
        for name, facts in listed_words(client)
    }


def listed_words(client: Client) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line of `admin.vm.List`: the name and the `key=value` words (sheet, section 2.1)."""
    for line in client.lines("admin.vm.List"):
        name, *words = line.split(" ")
        yield name, dict(word.split("=", 1) for word in words if "=" in word)


def chosen(
    arguments: argparse.Namespace,
    qubes: dict[str, Listed],
    *,
    states: Collection[str] = (),
    without: Collection[str] = (),
) -> list[str]:
    """The names that the command line chooses, each once, in its order.

    Args:
        arguments: what `add_many` has read.
        qubes: all qubes.
        states: what `--all` confines itself to; by default it does not.
        without: the classes that `--all` leaves out.

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
        return [
            name
            for name, qube in qubes.items()
            if name != DOM0
            and name not in excluded
            and qube.klass not in without
            and (not states or qube.state in states)
        ]
    return matching(arguments.names, qubes)


def known_class(untrusted_word: str) -> str:
    """A class of qubes that can be created.

    Raises:
        CaissonError: there is none of that name.
    """
    if untrusted_word in CLASSES and untrusted_word != "AdminVM":
        return untrusted_word
    what = "there is one AdminVM" if untrusted_word == "AdminVM" else "there is no such class"
    wanted = ", ".join(f"`{klass}`" for klass in CLASSES if klass != "AdminVM")
    raise CaissonError(f"class `{shown(untrusted_word)}`: {what}", f"use one of {wanted}")


def is_pattern(word: str) -> bool:
    """Whether a word may fit many names."""
    return not _PATTERN.isdisjoint(word)


def matching(patterns: list[str], qubes: dict[str, Listed]) -> list[str]:
    """The names that fit any of the patterns; a pattern never means the admin qube."""
    names: dict[str, None] = {}
    for pattern in patterns:
        if not is_pattern(pattern):
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
    hint = f"did you mean `{near[0]}`?" if near else _LIST_THEM
    return QubeNotFoundError(f"qube `{shown(name)}` does not exist", hint=hint)


def suggest(error: CaissonError, client: Client) -> None:
    """Let an error of the daemon about a qube that there is not hint at the nearest one.

    The daemon itself names no other qube than the one that it was asked for.
    """
    absent = re.match("no qube `([^`]+)`$", error.message)
    if absent is None or error.hint != _LIST_THEM:
        return
    with suppress(CaissonError):
        error.hint = unknown(absent[1], listed(client)).hint


def each(names: Sequence[str], act: Callable[[str], object], doing: str) -> dict[str, CaissonError]:
    """Do something with all qubes at the same time; returns what failed, and why.

    Args:
        names: the qubes.
        act: what to do with one.
        doing: what a person is told when it takes long, such as `starting`.
    """
    with terminal.Progress(f"{doing} {_few(names)}"):
        outcomes = at_once(names, lambda name: _attempt(act, name))
    return {name: error for name, error in zip(names, outcomes, strict=True) if error is not None}


def failures_of(names: Sequence[str], act: Callable[[str], object], doing: str) -> int:
    """Do something with all qubes; tell what failed, and return the exit code: how many."""
    failures = each(names, act, doing)
    complain_about_all(failures)
    return min(len(failures), MOST_FAILURES)


def _few(names: Sequence[str]) -> str:
    more = len(names) - _TOLD
    return ", ".join(names[:_TOLD]) + (f" and {more} more" if more > 0 else "")


def _attempt(act: Callable[[str], object], name: str) -> CaissonError | None:
    try:
        act(name)
    except CaissonError as error:
        return error
    return None


def complain_about_all(failures: dict[str, CaissonError]) -> None:
    """Show what failed."""
    for name, error in failures.items():
        complain_about(name, error)


def complain_about(name: str, error: CaissonError) -> None:
    """Show an error, naming the qube unless it does so itself."""
    if f"`{name}`" not in error.message:
        error = CaissonError(f"qube `{shown(name)}`: {error.message}", error.hint)
    terminal.complain(error)
