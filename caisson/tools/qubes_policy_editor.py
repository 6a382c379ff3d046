"""`qubes-policy-editor`: edit a policy file, and put it in force if nothing is wrong with it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Self

from caisson.admin.client import Client
from caisson.errors import (
    CaissonError,
    PolicyFileNotFoundError,
    PolicyRequestError,
    PolicySyntaxError,
    PolicyTokenError,
    ValueRefusedError,
)
from caisson.names import shown
from caisson.tools import command, terminal
from caisson.tools.command import FAILURE
from caisson.tools.policy_files import Named, PolicyFiles
from caisson.tools.policy_problems import problems

_STDIN = 0


class _Choice(Enum):
    EDIT = "e"
    KEEP = "k"
    DISCARD = "d"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qubes-policy-editor",
        "Edit a policy file with $VISUAL, $EDITOR or vi, and put it in force.\n"
        "A text with mistakes is not taken: edit it again, keep it in a file, or discard it.",
        "exit codes: 0 in force, or not changed; 1 not in force",
    )
    made.add_argument(
        "name",
        metavar="POLICY",
        nargs="?",
        default="30-user",
        help="file: `30-user` (the default), or `include/NAME`; no suffix",
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Edit until the text is in force, or the person has enough of it."""
    file = Named.parse(arguments.name)
    files = PolicyFiles(client)
    with _Draft(file, *_current(files, file)) as draft:
        return _work(files, file, draft)


def _work(files: PolicyFiles, file: Named, draft: _Draft) -> int:
    while True:
        text = draft.edited()
        if text == draft.before:
            terminal.say(f"`{file}` was not changed")
            return 0
        found = _attempt(files, file, draft.token, text)
        if not found:
            draft.drop()
            terminal.say(f"`{file}` is in force")
            return 0
        for error in found:
            terminal.complain(error)
        is_conflict = isinstance(found[0], PolicyTokenError)
        match _asked("edit the new version" if is_conflict else "edit again"):
            case _Choice.EDIT if is_conflict:
                draft.set_aside(*_current(files, file))
            case _Choice.EDIT:
                pass
            case _Choice.KEEP:
                return FAILURE
            case _Choice.DISCARD:
                draft.drop()
                terminal.say(f"your text is discarded; `{file}` is not changed")
                return FAILURE


def _current(files: PolicyFiles, file: Named) -> tuple[str, bytes]:
    """Token and content of the file as it is, or of one that is not there yet."""
    try:
        return files.read(file)
    except PolicyFileNotFoundError:
        return "new", b""


def _attempt(files: PolicyFiles, file: Named, token: str, text: bytes) -> Sequence[CaissonError]:
    """Put the text in force; what is wrong with it, where something is."""
    if found := problems(file, text):
        return found
    try:
        files.replace(file, token, text)
    except (PolicyTokenError, PolicySyntaxError, PolicyRequestError, ValueRefusedError) as error:
        return [error]
    return []


def _asked(edit: str) -> _Choice:
    """What to do with a text that is not in force; nobody there means that it is kept."""
    while True:
        print(
            f"[e] {edit}, [k] keep your text in a file, [d] discard it? ", end="", file=sys.stderr
        )
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if not answer:
            return _Choice.KEEP
        try:
            return _Choice(answer.strip().lower()[:1])
        except ValueError:
            continue


class _Draft:
    """The text that is worked on, in a file that nobody else can read; it is not lost.

    Args:
        file: what it is to become.
        token: what that is now.
        before: the content of it.
    """

    def __init__(self, file: Named, token: str, before: bytes) -> None:
        import tempfile

        self._folder = tempfile.mkdtemp(prefix="qubes-policy-")
        name = file.name if file.included else f"{file.name}.policy"
        self._path = os.path.join(self._folder, name)  # noqa: PTH118 - pathlib is slow to start
        self._aside: list[str] = []
        self._begin(token, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what nobody needs, and say where the rest is."""
        import shutil

        kept = list(self._aside)
        if self._content() not in {None, self.before}:
            kept.append(self._path)
        for path in kept:
            terminal.say(f"your text is kept in `{path}`")
        if not kept:
            shutil.rmtree(self._folder, ignore_errors=True)

    def edited(self) -> bytes:
        """Let a person edit it; gives the text.

        Raises:
            CaissonError: the editor cannot be run, or it failed.
        """
        import shlex
        import subprocess

        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        try:
            words = shlex.split(editor)
        except ValueError as error:
            raise CaissonError(f"EDITOR is `{shown(editor)}`: {error}") from None
        with _terminal_lent():
            try:
                done = subprocess.run([*words, self._path], check=False)
            except (FileNotFoundError, PermissionError):
                raise CaissonError(
                    f"cannot run the editor `{shown(editor)}`",
                    "set EDITOR to a program that is there",
                ) from None
        if done.returncode != 0:
            raise CaissonError(f"the editor failed with exit code {done.returncode}")
        text = self._content()
        if text is None:
            raise CaissonError("the editor removed the file")
        return text

    def drop(self) -> None:
        """The text is not needed any more."""
        os.unlink(self._path)  # noqa: PTH108 - as above

    def set_aside(self, token: str, before: bytes) -> None:
        """Keep the text beside, and begin again with what the file is now."""
        self._aside.append(f"{self._path}.mine-{len(self._aside) + 1}")
        os.rename(self._path, self._aside[-1])  # noqa: PTH104 - as above
        terminal.say(f"your text is in `{self._aside[-1]}`; the editor opens the new version")
        self._begin(token, before)

    def _begin(self, token: str, before: bytes) -> None:
        self.token, self.before = token, before
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(self._path, flags, 0o600), "wb") as opened:
            opened.write(before)

    def _content(self) -> bytes | None:
        """By name: many editors put a new file in the place of the old one."""
        try:
            with open(self._path, "rb") as opened:  # noqa: PTH123 - as above
                return opened.read()
        except FileNotFoundError:
            return None


@contextmanager
def _terminal_lent() -> Iterator[None]:
    """Give the terminal to a program; it comes back as it was, and Ctrl-C is the program's."""
    import signal
    import termios

    settings = termios.tcgetattr(_STDIN) if os.isatty(_STDIN) else None
    # A handler, not SIG_IGN, which the program would inherit.
    before = signal.signal(signal.SIGINT, _nothing)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if settings is not None:
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, settings)


def _nothing(*_: object) -> None:
    return


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
