"""`qvm-tags`: list, add and remove the tags of a qube."""

from __future__ import annotations

import argparse

from caisson.admin.client import Client
from caisson.names import Tag
from caisson.tools import command, terminal
from caisson.tools.command import FAILURE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-tags",
        "List, add and remove the tags of a qube.",
        "exit codes: 0 done; 1 refused, or `list TAG` did not find the tag",
    )
    made.add_argument("name", metavar="VMNAME", help="qube")
    actions = command.add_actions(made, "ACTION")
    listing = actions.add_parser("list", aliases=["ls", "l"], help="list the tags (the default)")
    listing.add_argument("tag", metavar="TAG", nargs="?", help="look for this one only")
    adding = actions.add_parser("add", aliases=["a", "set"], help="add tags")
    adding.add_argument("tags", metavar="TAG", nargs="+", help="tag to add")
    removing = actions.add_parser("del", aliases=["d", "unset", "u"], help="remove tags")
    removing.add_argument("tags", metavar="TAG", nargs="+", help="tag to remove")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Do what the action says."""
    match arguments.action:
        case "add" | "a" | "set":
            for tag in _checked(arguments.tags):
                client.call("admin.vm.tag.Set", tag, arguments.name)
        case "del" | "d" | "unset" | "u":
            for tag in _checked(arguments.tags):
                client.call("admin.vm.tag.Remove", tag, arguments.name)
        case _:
            return _list(client, arguments.name, getattr(arguments, "tag", None))
    return 0


def _checked(untrusted_words: list[str]) -> list[Tag]:
    """All of them, before the first one is set: half of a command would be done."""
    return [Tag.parse(word) for word in untrusted_words]


def _list(client: Client, name: str, tag: str | None) -> int:
    if tag is not None:
        Tag.parse(tag)
        if client.text("admin.vm.tag.Get", tag, name) != "1":
            return FAILURE
        print(terminal.harmless(tag))
        return 0
    for found in sorted(client.lines("admin.vm.tag.List", destination=name)):
        print(terminal.harmless(found))
    return 0


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
