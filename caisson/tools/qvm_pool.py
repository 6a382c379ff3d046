"""`qvm-pool`: look at the storage pools and change them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from caisson.admin.client import Client
from caisson.names import shown
from caisson.tools import command, terminal, volumes
from caisson.tools.command import UsageError, pairs
from caisson.tools.inventory import NOT_THERE
from caisson.tools.parallel import at_once

_SETTABLE = ("revisions_to_keep", "ephemeral_volatile")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-pool",
        "Look at the storage pools and change them.",
        "exit codes: 0 done; 1 refused",
    )
    actions = command.add_actions(made, "ACTION")
    actions.add_parser("list", aliases=["ls", "l"], help="list the pools (the default)")
    actions.add_parser("drivers", aliases=["d"], help="list the drivers and their options")
    info = actions.add_parser("info", aliases=["i"], help="tell all about a pool")
    info.add_argument("pool", metavar="POOL", help="name of the pool")
    add = actions.add_parser("add", aliases=["a"], help="add a pool; not available yet")
    add.add_argument("pool", metavar="NAME", help="name of the new pool")
    add.add_argument("driver", metavar="DRIVER", help="one that `qvm-pool drivers` lists")
    _add_options(add, "an option of the driver")
    remove = actions.add_parser("remove", aliases=["rm", "r"], help="remove pools")
    remove.add_argument("pools", metavar="POOL", nargs="+", help="name of a pool")
    setting = actions.add_parser("set", aliases=["s"], help="change settings of a pool")
    setting.add_argument("pool", metavar="POOL", help="name of the pool")
    _add_options(setting, " or ".join(f"`{name}`" for name in _SETTABLE))
    _add_legacy(made)
    return made


def _add_options(made: argparse.ArgumentParser, what: str) -> None:
    made.add_argument(
        "--option",
        "-o",
        dest="options",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help=f"{what}; may be repeated, or joined by commas",
    )


def _add_legacy(made: argparse.ArgumentParser) -> None:
    """The options of old scripts, which mean the actions."""
    group = made.add_argument_group(
        "the actions as old scripts call them"
    ).add_mutually_exclusive_group()
    group.add_argument("-l", "--list", action="store_true", help="the same as `list`")
    group.add_argument("-i", "--info", metavar="POOL", help="the same as `info`")
    group.add_argument(
        "-a", "--add", metavar=("NAME", "DRIVER"), nargs=2, help="the same as `add`, with -o"
    )
    group.add_argument("-r", "--remove", metavar="POOL", nargs="+", help="the same as `remove`")
    group.add_argument("-s", "--set", metavar="POOL", help="the same as `set`, with -o")
    group.add_argument("--help-drivers", action="store_true", help="the same as `drivers`")
    made.add_argument(
        "-o",
        dest="legacy_options",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help=argparse.SUPPRESS,
    )


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Do what the action says."""
    _translate(arguments)
    match arguments.action:
        case "drivers" | "d":
            _drivers(client)
        case "info" | "i":
            _info(client, arguments.pool)
        case "add" | "a":
            _add(client, arguments.pool, arguments.driver, _options(arguments.options))
        case "remove" | "rm" | "r":
            for pool in arguments.pools:
                client.call("admin.pool.Remove", pool)
        case "set" | "s":
            _set(client, arguments.pool, _options(arguments.options))
        case _:
            _list(client)
    return 0


def _translate(arguments: argparse.Namespace) -> None:
    """Turn the options of old scripts into actions."""
    old = {
        "list": arguments.list,
        "info": arguments.info is not None,
        "add": arguments.add is not None,
        "remove": arguments.remove is not None,
        "set": arguments.set is not None,
        "drivers": arguments.help_drivers,
    }
    given = [action for action, present in old.items() if present]
    if (given or arguments.legacy_options) and arguments.action is not None:
        raise UsageError("an action and the option for one exclude each other")
    if not given:
        if arguments.legacy_options:
            raise UsageError("`-o` goes with the actions `add` and `set`")
        return
    arguments.action = given[0]
    arguments.options = arguments.legacy_options
    arguments.pools = arguments.remove
    arguments.pool = arguments.info or arguments.set
    if arguments.add is not None:
        arguments.pool, arguments.driver = arguments.add


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in pairs(",".join(words).split(",") if words else []):
        if key in options:
            raise UsageError(f"option `{shown(key)}` is given twice")
        options[key] = value
    return options


def _facts(client: Client, pool: str) -> dict[str, str]:
    return dict(_pairs(client.lines("admin.pool.Info", pool)))


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, _, value = line.partition("=")
        yield key, value


def _list(client: Client) -> None:
    names = sorted(client.lines("admin.pool.List"))
    drivers = at_once(names, lambda name: _facts(client, name).get("driver", "-"))
    print(terminal.table([("NAME", "DRIVER"), *zip(names, drivers, strict=True)]), end="")


def _drivers(client: Client) -> None:
    lines = sorted(client.lines("admin.pool.ListDrivers"))
    rows = [
        (driver, ", ".join(options.split()))
        for driver, _, options in (x.partition(" ") for x in lines)
    ]
    print(terminal.table([("DRIVER", "OPTIONS"), *rows]), end="")


def _info(client: Client, pool: str) -> None:
    facts = {"name": pool} | _facts(client, pool)
    try:
        usage = dict(_pairs(client.lines("admin.pool.UsageDetails", pool)))
    except NOT_THERE:
        usage = {}
    # The keys of old daemons, which tell it among the facts.
    facts |= {key.removeprefix("data_"): value for key, value in usage.items()}
    rows = [("name", facts.pop("name")), *sorted(facts.items())]
    print(terminal.table(rows), end="")


def _add(client: Client, pool: str, driver: str, options: dict[str, str]) -> None:
    words = {"name": pool} | options
    payload = "".join(f"{key}={value}\n" for key, value in words.items())
    client.call("admin.pool.Add", driver, payload=payload.encode())


def _set(client: Client, pool: str, options: dict[str, str]) -> None:
    if not options:
        raise UsageError("nothing to set", "say `-o revisions_to_keep=2`, for one")
    for key in options:
        if key not in _SETTABLE:
            raise UsageError(
                f"option `{shown(key)}` cannot be changed", f"only {' and '.join(_SETTABLE)} can"
            )
    payloads = {key: volumes.known_setting(key, value) for key, value in options.items()}
    for key, payload in payloads.items():
        client.call(f"admin.pool.Set.{key}", pool, payload=payload)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
