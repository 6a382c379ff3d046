"""The directory of the prompt agents' sockets, which the broker's user can write to.

Class: files created on the host in a directory that somebody less trusted controls; TOCTOU.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from caisson.errors import CaissonError
from caisson.qrexec.prompt import beside
from caisson.tools.prompting import place
from caisson.tools.prompting.place import listening


def names(directory: Path) -> list[str]:
    """What lies there."""
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_socket_is_for_all_who_may_enter_its_directory(tmp_path: Path, umask: int):
    """The broker can connect, however the person's shell was set up."""
    before = os.umask(umask)
    try:
        with listening(tmp_path / "agent.sock"):
            assert os.umask(umask) == umask
            assert stat.S_IMODE((tmp_path / "agent.sock").stat().st_mode) == 0o666
    finally:
        os.umask(before)
    assert names(tmp_path) == []


def test_a_link_in_place_of_the_new_socket_opens_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A broker that was taken over waits for root to start `caisson prompt`."""
    secret = tmp_path / "shadow"
    secret.touch(mode=0o600)

    class Attacked(socket.socket):
        """The attacker is quick."""

        def bind(self, address: object, /) -> None:
            super().bind(address)  # type: ignore[arg-type]
            Path(os.fsdecode(address)).unlink()  # type: ignore[arg-type]
            Path(os.fsdecode(address)).symlink_to(secret)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "socket", Attacked)
    with listening(tmp_path / "agent.sock"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert secret.stat().st_nlink == 1


def test_agents_listen_beside_each_other(tmp_path: Path):
    """The first has the well-known name, each takes only its own away."""
    path = tmp_path / "agent.sock"
    with listening(path) as (_, first):
        with listening(path) as (_, second), listening(path) as (_, third):
            assert first == path
            assert beside(path) == sorted([second, third])
        assert names(tmp_path) == ["agent.sock"]
    assert names(tmp_path) == []


def test_sockets_of_agents_that_were_killed_are_swept(tmp_path: Path):
    """Also the well-known one, whose name is then free; the living and other files stay."""
    path = tmp_path / "agent.sock"
    for name in ("agent.sock", "agent-dead.sock", "other.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / name))
    (tmp_path / "agent-file.sock").touch()
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(tmp_path / "agent-alive.sock"))
        alive.listen()
        with listening(path) as (_, mine):
            assert mine == path
            assert names(tmp_path) == [
                "agent-alive.sock", "agent-file.sock", "agent.sock", "other.sock",
            ]  # fmt: skip


def test_socket_that_another_program_put_in_its_place_is_left_there(tmp_path: Path):
    """A program that knows only the well-known name may take it over."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        with listening(path):
            path.unlink()
            other.bind(str(path))
        assert names(tmp_path) == ["agent.sock"]


def test_lock_that_is_never_released_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever may read the directory could hold it."""
    monkeypatch.setattr(place, "_LOCK_PATIENCE", 0.0)
    holder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(CaissonError, match="cannot listen"), listening(tmp_path / "a.sock"):
            pytest.fail("it listens")
    finally:
        os.close(holder)


def test_missing_directory_has_a_remedy(tmp_path: Path):
    """The daemons make it."""
    with pytest.raises(CaissonError) as caught, listening(tmp_path / "no/agent.sock"):
        pytest.fail("it listens")
    assert caught.value.hint == "start the daemons: caisson up"
