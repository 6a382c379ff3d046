"""The daemon under `kill -9` at every write of a session: each call happened, or it did not."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from admin_lab import running_daemon
from grounds.admin_session import SESSION, sight

from caisson.model import Host, Op, System
from caisson.store import Store

TESTS = Path(__file__).parent.parent
KILLED = -9


class Player:
    """The process that plays sessions."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process = subprocess.Popen(
            [sys.executable, TESTS / "grounds/admin_session.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TESTS.parent,
        )

    def play(self, number: int, when: str) -> tuple[int, Path]:
        """Play once; how the daemon ended, and where its instance is."""
        root = self._home / f"{number}-{when}"
        root.mkdir()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{root} {number} {when}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), root

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@dataclass(frozen=True)
class Recording:
    """A session that nothing interrupts.

    Attributes:
        replies: to each call.
        sights: what the API shows, before the first call and after each.
        writes: how many there are.
    """

    replies: list[str]
    sights: list[dict[str, Any]]
    writes: int


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    """The process that plays sessions, in memory: a kill needs no disk to survive."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as home:
        made = Player(Path(home))
        yield made
        made.close()


@pytest.fixture(scope="module")
def recording(player: Player) -> Recording:
    """The session as it is without a kill."""
    code, root = player.play(0, "never")
    assert code == 0
    return Recording(lines(root / "replies"), lines(root / "sights"), len(writes(root)) - 1)


def lines(path: Path) -> list[Any]:
    """What was written line by line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def writes(root: Path) -> list[list[Op]]:
    """What the store held at first, and the operations of each write that was begun."""
    found = []
    with suppress(EOFError, FileNotFoundError), (root / "writes").open("rb") as stream:
        while True:
            found.append(pickle.load(stream))
    return found


def facts(ops: list[Op]) -> dict[str, Any]:
    """All that a system knows, as plain data."""
    system = System(Host())
    system.load(ops)
    return {
        "globals": dict(system.stored(None)),
        "labels": {label.name: (label.index, label.color) for label in system.labels.values()},
        "pools": dict(system.pools),
        "qubes": {
            name: (q.uuid, q.klass, q.qid, q.stored, q.features, q.tags, q.volumes, q.notes)
            for name, q in system.qubes.items()
        },
    }


def kept(root: Path) -> dict[str, Any]:
    """What the store holds."""
    with Store.open(root / "var/lib/qubes/qubes.sqlite") as store:
        return facts(list(store.load()))


def joined(of: list[list[Op]]) -> dict[str, Any]:
    """What a store holds after some writes."""
    return facts([op for each in of for op in each])


def test_session_is_one_of_many_kinds(recording: Recording) -> None:
    """It changes what it is to change: some calls are refused, none is malformed or a bug."""
    assert len(recording.replies) == len(SESSION)
    assert len(recording.sights) == len(SESSION) + 1
    refused = {
        method: reply.split("\0")[1]
        for (method, *_), reply in zip(SESSION, recording.replies, strict=True)
        if reply.startswith("2\0")
    }
    assert set(refused) <= {
        "admin.vm.Create.AppVM",
        "admin.label.Remove+mint",
        "admin.vm.Remove",
    }, refused
    assert recording.writes > len(SESSION) * 3 // 4


@pytest.mark.parametrize(("when", "step"), [("before", 5), ("within", 1), ("after", 1)])
async def test_daemon_killed_at_a_write_did_the_call_or_did_not(
    player: Player, recording: Recording, when: str, step: int
) -> None:
    """The store holds the write or not, and the next daemon shows the call as done or not begun.

    What was replied to is never lost. Just before a write the store is as after the last one, so
    that a part of those moments is enough.
    """
    for number in range(1, recording.writes + 1, step):
        code, root = player.play(number, when)
        assert code == KILLED
        begun = writes(root)
        done = begun if when == "after" else begun[:number]
        assert kept(root) == joined(done), (number, when)
        replied = len(lines(root / "replies"))
        async with running_daemon(root) as daemon:
            shown = await sight(daemon)
            acceptable = recording.sights[replied : replied + 2]
            assert shown in acceptable, (number, when, SESSION[replied])
            await daemon.ok("admin.label.Create+after", payload=b"0x010203")
            if "qube work" in shown:
                await daemon.ok("admin.vm.Start", "work")
