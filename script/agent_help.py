"""What the commands say that need no Python: the agent's binary under its names, and scripts.

Their help is all there is to read, so it is taken apart into paragraphs and options.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from caisson.paths import AGENT_BINARY, QUBE_SOURCE
from caisson.storage.qube_files import AGENT_NAMES

IN_QUBES = tuple(
    sorted(
        {Path(name).name for name in AGENT_NAMES if name.startswith("usr/bin/")}
        | {path.name for path in (QUBE_SOURCE / "usr/bin").iterdir()}
    )
)
"""Everything that a qube has in its search path."""
IN_THE_ADMIN_QUBE = ("qfile-unpacker", "qrexec-client", "qrexec-run-service")
ON_A_WIRE = ("qrexec-agent",)
_SECONDS = 10
_OPTION = re.compile(r"  (-.*?)(?:  +(.*))?")
_WORD = re.compile(r"(--?[A-Za-z][A-Za-z-]*)")


@dataclass(frozen=True)
class Option:
    """An option as it is typed, with its value; without a help where the text has none."""

    typed: str
    help: str

    @property
    def words(self) -> list[str]:
        """Its names."""
        return [found[1] for part in self.typed.split(", ") if (found := _WORD.match(part))]

    @property
    def value(self) -> str:
        """What the value is called; empty where it takes none, or one that may be left out."""
        last = self.typed.rpartition(", ")[2]
        return _WORD.sub("", last, count=1).strip("= ") if "[" not in last else ""


@dataclass(frozen=True)
class Help:
    """The help of a command."""

    name: str
    usage: tuple[str, ...]
    before: tuple[str, ...]
    """The paragraphs before the options, the first of which says what the command is for."""
    options: tuple[Option, ...]
    after: tuple[str, ...]


@cache
def told(name: str) -> Help:
    """Ask a command for its help.

    Raises:
        SystemExit: the agent is not built.
    """
    script = QUBE_SOURCE / "usr/bin" / name
    if not script.is_file() and not AGENT_BINARY.is_file():
        sys.exit(f"error: the agent `{AGENT_BINARY}` is missing\nhint: run script/setup")
    # The binary is what it is called.
    command = ["sh", str(script)] if script.is_file() else [name]
    done = subprocess.run(
        [*command, "--help"],
        executable=None if script.is_file() else AGENT_BINARY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS,
        check=False,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    return _taken_apart(name, done.stdout)


def _taken_apart(name: str, text: str) -> Help:
    first, *rest = [part.splitlines() for part in text.strip("\n").split("\n\n")]
    if not first[0].startswith("usage: "):
        sys.exit(f"error: the help of `{name}` does not begin with its usage")
    usage = tuple(line.removeprefix("usage: ").strip() for line in first)
    prose: list[list[str]] = [[], []]
    options: list[Option] = []
    for lines in rest:
        if lines[0].startswith("  -"):
            options += _options(lines)
        else:
            prose[bool(options)].append(" ".join(line.strip() for line in lines))
    return Help(name, usage, tuple(prose[0]), tuple(options), tuple(prose[1]))


def _options(lines: list[str]) -> Iterator[Option]:
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if option := _OPTION.fullmatch(line):
            found.append((option[1], [option[2]] if option[2] else []))
        else:
            found[-1][1].append(line.strip())
    return (Option(typed, " ".join(helps)) for typed, helps in found)
