"""`qvm-notes`: show and change the notes about a qube."""

from __future__ import annotations

import argparse
import os
import sys

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import shown
from caisson.tools import command, terminal
from caisson.tools.command import FAILURE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-notes",
        "Show and change the notes about a qube: a text for people.",
        "exit codes: 0 done; 1 refused",
    )
    made.add_argument("name", metavar="VMNAME", help="qube")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--edit", "-e", action="store_true", help="open them in $EDITOR (the default)")
    how.add_argument("--print", "-p", dest="show", action="store_true", help="print them")
    how.add_argument("--import", "-i", dest="file", metavar="FILE", help="take them from a file")
    how.add_argument("--set", "-s", dest="text", metavar="TEXT", help="make this the notes")
    how.add_argument("--append", metavar="TEXT", help="add this to the notes")
    how.add_argument("--delete", "-d", action="store_true", help="remove them")
    made.add_argument("--force", "-f", action="store_true", help="do not ask before removing")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Show or change."""
    name = arguments.name
    if arguments.show:
        notes = _read(client, name)
        terminal.emit(notes)
        if notes and not notes.endswith(b"\n") and sys.stdout.isatty():
            # The prompt of the shell begins a line of its own.
            print()
    elif arguments.file is not None:
        _write(client, name, _content_of(arguments.file))
    elif arguments.text is not None:
        _write(client, name, os.fsencode(arguments.text))
    elif arguments.append is not None:
        before = _read(client, name)
        between = b"\n" if before and not before.endswith(b"\n") else b""
        _write(client, name, before + between + os.fsencode(arguments.append))
    elif arguments.delete:
        if not arguments.force and not terminal.confirmed(f"Remove the notes about `{name}`?"):
            terminal.say("nothing was removed")
            return FAILURE
        _write(client, name, b"")
    else:
        _edit(client, name)
    return 0


def _read(client: Client, name: str) -> bytes:
    return client.call("admin.vm.notes.Get", destination=name)


def _write(client: Client, name: str, notes: bytes) -> None:
    client.call("admin.vm.notes.Set", destination=name, payload=notes)


def _content_of(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib would double the start-up time
            return file.read()
    except OSError as error:
        raise CaissonError(f"cannot read `{shown(path)}`: {error.strerror}") from None


def _edit(client: Client, name: str) -> None:
    """Let a person edit the notes in a file that nobody else can read."""
    import shlex
    import subprocess
    from tempfile import NamedTemporaryFile

    before = _read(client, name)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "editor"
    with NamedTemporaryFile(prefix=f"{name}-notes-", suffix=".txt") as file:
        file.write(before)
        file.flush()
        try:
            done = subprocess.run([*shlex.split(editor), file.name], check=False)
        except (FileNotFoundError, PermissionError):
            raise CaissonError(
                f"cannot run the editor `{shown(editor)}`", "set EDITOR to a program that is there"
            ) from None
        if done.returncode != 0:
            raise CaissonError(f"the editor failed with exit code {done.returncode}")
        # By name: many editors put a new file in the place of the old one.
        after = _content_of(file.name)
    if after != before:
        _write(client, name, after)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
