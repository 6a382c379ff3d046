"""Commands that a person or a script interrupts, and what they leave."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest
from fake_daemon import BIN, LIST, SOON, Answer, Refusal, Start, start

__all__ = ["start"]

CREATE = "admin.vm.Create.AppVM@dom0"
SET = "admin.vm.property.Set+memory@new"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("during", [CREATE, SET])
def test_interrupted_creation_leaves_no_qube(
    start: Start, during: str, number: signal.Signals, code: int
) -> None:
    """Also when the daemon is just creating it: the answer is waited for."""
    go_on = threading.Event()

    def wait(_: bytes) -> Answer:
        go_on.wait(SOON)
        return ""

    daemon = start({CREATE: "", SET: "", "admin.vm.Remove@new": "", during: wait})
    argv = ["qvm-create", "new", "-l", "red", "--prop", "memory=500"]
    with subprocess.Popen(
        [BIN / argv[0], *argv[1:]], env=daemon.environment(), stderr=subprocess.PIPE
    ) as process:
        daemon.wait_for({CREATE: f"{CREATE} name=new label=red", SET: f"{SET} 500"}[during])
        process.send_signal(number)
        if during == CREATE:
            go_on.set()
        err = process.communicate(timeout=SOON)[1]
        go_on.set()
    assert (process.returncode, err) == (code, b"qube `new` was removed again\n")
    assert daemon.requests[-1] == "admin.vm.Remove@new"
    assert (SET in str(daemon.requests)) == (during == SET)


def test_creation_that_was_refused_removes_nothing(start: Start) -> None:
    """The qube that has the name is somebody's."""
    daemon = start({CREATE: Refusal("QubesVMAlreadyExistsError", "taken")})
    assert daemon.run("qvm-create", "new", "-l", "red") == (1, b"", "error: taken\n")
    assert len(daemon.requests) == 1


def test_interrupt_while_a_command_is_imported_is_silent(start: Start, tmp_path: Path) -> None:
    """A person who mistyped gets no traceback."""
    (tmp_path / "argparse.py").write_text(
        "import os, time\nos.write(1, b'here')\ntime.sleep(600)\n"
    )
    env = start({}).environment() | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [BIN / "qvm-ls"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"here"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SOON) == (b"", b"")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("words", [("qvm-start", "src"), ("qvm-start", "src", "tpl")])
def test_interrupted_command_ends_at_once_with_130(start: Start, words: tuple[str, ...]) -> None:
    """Though a call is under way that may last for minutes, in one thread or in several."""
    go_on = threading.Event()

    def wait(_: bytes) -> Answer:
        go_on.wait(SOON)
        return ""

    calls = {f"admin.vm.Start@{name}": wait for name in words[1:]}
    daemon = start({"admin.vm.List@dom0": LIST} | calls)
    with subprocess.Popen(
        [BIN / words[0], *words[1:]], env=daemon.environment(), stderr=subprocess.PIPE
    ) as process:
        for call in calls:
            daemon.wait_for(call)
        process.send_signal(signal.SIGINT)
        try:
            err = process.communicate(timeout=SOON)[1]
        finally:
            go_on.set()
    assert (process.returncode, err) == (130, b"")
