"""`caisson policy system-info` and `qubes-policy-lint` about the qubes of a real daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon
from admin_world import world_daemon


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with a few qubes."""
    async with world_daemon(tmp_path / "root") as running:
        yield running


async def test_running_system_is_written_down_for_others(daemon: Daemon, tmp_path: Path) -> None:
    """What is printed is what `--system-info` takes, and says the same as the daemon."""
    code, out, err = await daemon.command("caisson", "policy", "system-info")
    assert (code, err) == (0, "")
    domains = json.loads(out)["domains"]
    assert {"dom0", "work", "net"} <= set(domains)
    assert len(out.splitlines()) > len(domains)
    (tmp_path / "system.json").write_text(out)
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d/30-user.policy").write_text("s.X * work net allow\n")
    request = '{"service": "s.X", "argument": "+", "source": "work", "target": "net"}\n'
    words = ("caisson", "policy", "decide", "--policy-dir", str(tmp_path / "policy.d"))
    live = await daemon.command(*words, answer=request)
    kept = await daemon.command(
        *words, "--system-info", str(tmp_path / "system.json"), answer=request
    )
    assert live == kept
    assert json.loads(live[1])["decision"] == "allow"


async def test_lint_looks_names_up_in_the_running_system(daemon: Daemon, tmp_path: Path) -> None:
    """Also those of a text that has no file yet; `--syntax-only` asks nobody."""
    text = "s.X * wrk @anyvm ask\n"
    file = tmp_path / "a.policy"
    file.write_text(text)
    for name in (str(file), "-"):
        code, out, err = await daemon.command("qubes-policy-lint", name, answer=text)
        assert (code, err) == (0, "")
        assert "1: warning: there is no qube `wrk` (is `work` meant?)" in out
    assert await daemon.command("qubes-policy-lint", "--syntax-only", str(file)) == (0, "", "")
