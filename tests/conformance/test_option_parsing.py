"""Options of the programs in a qube mean what `getopt_long` of the GNU C library makes of them."""

from __future__ import annotations

import random
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE

SHORT = "tTa:p:s:eh"
LONG = (
    "buffer-size:",
    "filter-escape-chars-stdout",
    "filter-escape-chars-stderr",
    "no-filter-escape-chars-stdout",
    "no-filter-escape-chars-stderr",
    "agent-socket:",
    "prefix-data:",
    "use-stdin-socket",
    "source-qube:",
    "just-exec",
    "help",
)
PROGRAM = "/bin/true"
PIECES = (
    *("-", "-", "--", "t", "T", "p", "s", "e", "x", "=", "1", "far"),
    *("--just", "-exec", "--filter", "--no-filter-escape-chars-std", "out", "err", "--no"),
    *("--source", "-qube", "--pre", "=far", "--b"),
)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[socket.socket]:
    """A broker that only hears requests."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "desk"))
        listening.listen()
        listening.settimeout(PATIENCE)
        yield listening


def of_getopt(words: list[str]) -> tuple[list[tuple[str, str]], list[str]] | None:
    """Options with their values and operands, as `getopt(1)` tells them; None for a mistake."""
    told = subprocess.run(
        ["getopt", "-u", "-q", "-o", f"+{SHORT}", "-l", ",".join(LONG), "--", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if told.returncode:
        return None
    left = iter(told.stdout.removesuffix("\n").removeprefix(" ").split(" "))
    options = []
    for word in left:
        if word == "--":
            break
        name = word.lstrip("-")
        takes = f"{name}:" in (LONG if len(name) > 1 else SHORT)
        options.append((name, next(left) if takes else ""))
    return options, list(left)


def expected(words: list[str]) -> bytes | None:
    """The request that words ask for; None for none."""
    read = of_getopt(words)
    if read is None:
        return None
    options, operands = read
    found = dict(options)
    once = [name for name, _ in options if name in {"p", "prefix-data", "s", "source-qube"}]
    wrong = (
        len({name[0] for name in once}) < len(once)
        or "use-stdin-socket" in found
        or {"h", "help"} & set(found)
        or len(operands) < 2
        or not operands[1]
        # The third is a local program, which must be there before the call is made.
        or operands[2:3] not in ([], [PROGRAM])
    )
    source = found.get("s", found.get("source-qube"))
    if wrong or source == "" or not re.fullmatch("[1-9][0-9]*", found.get("buffer-size", "1")):
        return None
    flags = "e" if {"e", "just-exec"} & set(found) else ""
    tail = f"\0{source}" if source is not None else ""
    return f"C{operands[0]}\0{operands[1]}\0{flags}{tail}".encode()


def test_a_command_line_means_what_the_library_makes_of_it(
    desk: socket.socket, tmp_path: Path
) -> None:
    """QSB-071, QSB-084: not one thing to who wrote it, and another to the program."""
    choice = random.Random(71)
    requests = 0
    for _ in range(400):
        words = ["".join(choice.choices(PIECES, k=choice.randint(1, 3))) for _ in range(3)]
        words += [PROGRAM, PROGRAM]
        request = expected(words)
        process = subprocess.Popen(
            ["qrexec-client-vm", f"--agent-socket={tmp_path}/desk", *words],
            executable=BINARY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if request is not None:
            requests += 1
            with desk.accept()[0] as client:
                client.settimeout(PATIENCE)
                assert client.recv(4096) == request, words
        codes = {255} if request is not None else {1, 2, 127}
        assert process.wait(PATIENCE) in codes, words
    assert requests > 10
