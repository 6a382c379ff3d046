"""A name that no qube has is answered with the nearest one, by who may list them."""

from __future__ import annotations

import pytest
from fake_daemon import LIST, Refusal, Start, start

__all__ = ["start"]

NOT_THERE = Refusal("QubesVMNotFoundError", "no qube `scr`\nhint: list the qubes with `qvm-ls`")


@pytest.mark.parametrize(
    ("words", "call", "code"),
    [
        (["qvm-features", "scr"], "admin.vm.feature.List@scr", 1),
        (["qvm-tags", "scr", "list"], "admin.vm.tag.List@scr", 1),
        (["qvm-run", "-p", "scr", "id"], "admin.vm.CurrentState@scr", 255),
    ],
)
def test_a_name_that_the_daemon_does_not_know_is_answered_with_the_nearest(
    start: Start, words: list[str], call: str, code: int
) -> None:
    """The daemon names no other qube than the one that it was asked for; who may list them is."""
    daemon = start({call: NOT_THERE, "admin.vm.List@dom0": LIST})
    result, out, err = daemon.run(*words)
    assert (result, out) == (code, b"")
    assert err == "error: no qube `scr`\nhint: did you mean `src`?\n"
    assert daemon.requests == [call, "admin.vm.List@dom0"]


def test_who_may_list_no_qubes_is_told_the_error_of_the_daemon(start: Start) -> None:
    """A second error would hide the first."""
    daemon = start({"admin.vm.feature.List@scr": NOT_THERE})
    result, out, err = daemon.run("qvm-features", "scr")
    assert (result, out) == (1, b"")
    assert err == "error: no qube `scr`\nhint: list the qubes with `qvm-ls`\n"
