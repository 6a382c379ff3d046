"""The directory of the prompt agent's socket, which the broker's user can write to.

Class: files created on the host in a directory that somebody less trusted controls; TOCTOU.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from caisson.tools import prompt


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_socket_is_for_all_who_may_enter_its_directory(tmp_path: Path, umask: int):
    """The broker can connect, however the person's shell was set up."""
    before = os.umask(umask)
    try:
        prompt._listen(tmp_path / "agent.sock").close()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "agent.sock").stat().st_mode) == 0o666


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
    prompt._listen(tmp_path / "agent.sock").close()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
