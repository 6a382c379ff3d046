"""Flows and verdicts, as a person or a script reads them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from caisson.policy.flow import Answer, Chain, Hop, Options, Verdict, Way
from caisson.tools import terminal

_WORDS = {
    Way.CALL: "{source} calls {what}",
    Way.REPLY: "{caller} calls {what}, and {source} replies",
    Way.ADMINISTERS: "{caller} may administer qubes: {what}",
    Way.NOTES: "{caller} has something noted at {target}, where it comes from: {what}",
    Way.NETVM: "one is the network qube of the other",
    Way.NETWORK: "network",
    Way.TEMPLATE: "{source} is the template of {target}",
    Way.BASE: "{target} is a disposable made of {source}",
    Way.MAKER: "one is a disposable made by the other",
    Way.RELAY: "one is the relay of the other",
    Way.REMOTE: "a qube on another machine, connected who knows how",
}


def reason(hop: Hop) -> str:
    """Why data can flow in one step."""
    what = f"`{hop.service}` of `{hop.request}` ({hop.rule}{', if you say yes' * hop.asked})"
    return _WORDS[hop.way].format(
        source=hop.source, target=hop.target, caller=hop.caller, what=what
    )


def tell_chains(arguments: argparse.Namespace, chains: Sequence[Chain], options: Options) -> None:
    """Print a tree: under each qube those that are reached through it first."""
    _tell_options(options)
    if arguments.to is not None:
        _tell_one(arguments, chains)
        return
    what = "get data to" if arguments.inward else "get data from"
    known = [chain for chain in chains if not chain.is_new]
    shown = chains if arguments.disposables else _with_their_ways(known, chains)
    print(terminal.cell(f"{len(known)} can {what} {arguments.qube}"))
    rows = list(_rows(shown, inward=arguments.inward))
    width = max((len(name) for name, _ in rows), default=0)
    for name, why in rows:
        print(terminal.cell(f"{name:{width}}  {why}"))
    left = len(chains) - len(shown)
    if left:
        print(f"and {left} disposable{'s' * (left != 1)} that may come to be (`--disposables`)")


def _tell_one(arguments: argparse.Namespace, chains: Sequence[Chain]) -> None:
    if not chains:
        ends = [arguments.qube, arguments.to]
        one, other = reversed(ends) if arguments.inward else ends
        print(terminal.cell(f"nothing gets from {one} to {other}"))
    for chain in chains:
        for line in _story(chain.hops):
            print(terminal.cell(line))


def _with_their_ways(known: Iterable[Chain], chains: Iterable[Chain]) -> list[Chain]:
    """The chains to qubes that exist, and those to the disposables that these lead through."""
    passed = {name for chain in known for hop in chain.hops for name in (hop.source, hop.target)}
    return [chain for chain in chains if not chain.is_new or chain.end in passed]


def _rows(chains: Iterable[Chain], *, inward: bool) -> Iterable[tuple[str, str]]:
    below: dict[str, list[tuple[str, Hop]]] = {}
    start = ""
    for chain in chains:
        last = chain.hops[0] if inward else chain.hops[-1]
        start = chain.hops[-1].target if inward else chain.hops[0].source
        below.setdefault(last.target if inward else last.source, []).append((chain.end, last))
    pending = [(0, start, "")]
    while pending:
        depth, name, why = pending.pop()
        if depth:
            yield "  " * depth + name, why
        under = below.get(name, [])
        pending += [(depth + 1, end, reason(hop)) for end, hop in reversed(under)]


def _story(hops: Iterable[Hop]) -> Iterable[str]:
    for number, hop in enumerate(hops, 1):
        yield f"  {number}. {hop.source} → {hop.target}: {reason(hop)}"


def tell_verdicts(verdicts: Iterable[Verdict], options: Options) -> None:
    """Print each verdict; of one that fails, a system in which it does, and how."""
    _tell_options(options)
    for verdict in verdicts:
        print(terminal.cell(f"{verdict.answer}: {verdict.assertion}"))
        for never in verdict.never:
            print(terminal.cell(f"  assuming that no qube is `{never}`"))
        print("  and that each disposable has the tags of its base, and came to be by this policy")
        if verdict.answer is Answer.UNSURE:
            print("  no system that shows it was found, but none can be excluded")
        if verdict.example is not None:
            print("  for example, where there are")
            for line in _qubes(verdict.example.domains):
                print(terminal.cell(f"    {line}"))
            for line in _story(verdict.example.hops):
                print(terminal.cell(line))
            if all(hop.service is None for hop in verdict.example.hops):
                print("  no call is part of it: exclude it by `--assume` if it cannot be")


def _qubes(domains: dict[str, dict[str, Any]]) -> Iterable[str]:
    for name, told in domains.items():
        if name == "dom0" and not told["tags"]:
            continue
        notes = [told["type"], *(f"tag:{tag}" for tag in told["tags"])]
        if told["template_for_dispvms"]:
            notes.append("disposables can be made of it")
        for key in ("template", "netvm", "default_dispvm", "relayvm"):
            notes += [f"{key}={told[key]}"] if told[key] else []
        notes += [f"gives tag:{tag} to what it makes" for tag in told.get("created_tags", ())]
        notes += ["has the uplink"] if told["provides_network"] else []
        yield f"{name}: {', '.join(notes)}"


def dump_chains(
    arguments: argparse.Namespace, chains: Iterable[Chain], options: Options, *, complete: bool
) -> None:
    """Print the chains as an object."""
    found = [c for c in chains if arguments.disposables or arguments.to or not c.is_new]
    _dump(
        {
            "qube": arguments.qube,
            "direction": "to" if arguments.inward else "from",
            "complete": complete,
            **_assumptions(options),
            "chains": msgspec.to_builtins(found),
        }
    )


def dump_verdicts(verdicts: Iterable[Verdict], options: Options) -> None:
    """Print the verdicts as an object."""
    _dump(
        {
            **_assumptions(options),
            "assertions": [
                {
                    "assertion": str(verdict.assertion),
                    "answer": str(verdict.answer),
                    "no_qube_is": [str(never) for never in verdict.never],
                    "example": verdict.example and msgspec.to_builtins(verdict.example),
                }
                for verdict in verdicts
            ],
        }
    )


def _assumptions(options: Options) -> dict[str, Any]:
    return {
        "ask_counts": options.asking,
        "one_way": sorted(options.one_way),
        "services": None if options.only is None else sorted(options.only),
    }


def _tell_options(options: Options) -> None:
    for service in sorted(options.one_way):
        terminal.say(f"assuming that replies of `{service}` carry nothing")
    if not options.asking:
        terminal.say("assuming that every question is answered by no")
    if options.only is not None:
        terminal.say(f"leaving out all calls but {', '.join(sorted(options.only))}")


def _dump(found: Any) -> None:
    print(json.dumps(found, indent=2))
