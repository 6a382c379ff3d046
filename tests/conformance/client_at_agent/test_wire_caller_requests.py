"""The caller on the wire: what it asks its agent for, and what comes of a refusal."""

from __future__ import annotations

import pytest
from agent_desk import Desk
from client_rig import finish
from wire_peer import PEER, TRIGGER_SERVICE4, message, numbers, trigger


def test_the_request_is_that_of_the_sheet(desk: Desk) -> None:
    """Ident `SOCKET`, every unused byte zero (QSB-009, QSB-106)."""
    process = desk.start("--source-qube=far", "$dispvm:x", "a.B+c")
    agent, body = desk.request()
    assert message(TRIGGER_SERVICE4, body) == trigger(b"a.B+c", b"@dispvm:x", b"far")
    agent.close()
    assert finish(process) == (126, b"", b"Request refused\n")


@pytest.mark.parametrize("length", [1, 3935, 3936, 64_999])
def test_services_of_any_length_can_be_asked_for(desk: Desk, length: int) -> None:
    """QSB-089: up to the most that fits; one more is not sent."""
    process = desk.start("work", "x" * length)
    agent, body = desk.request()
    assert body[160:] == b"x" * length + b"\0"
    agent.close()
    assert finish(process)[0] == 126


def test_too_long_a_service_is_not_asked_for(desk: Desk) -> None:
    """One byte more than fits."""
    assert finish(desk.start("work", "x" * 65_000))[0] == 1


def test_an_agent_that_dies_within_its_answer_is_no_refusal(desk: Desk) -> None:
    """Half of two numbers."""
    process = desk.start("work", "a.B")
    agent, _ = desk.request()
    agent.raw(numbers(PEER, 600)[:5])
    agent.close()
    assert finish(process)[0] == 255


def test_just_exec_has_no_form_on_the_wire(desk: Desk) -> None:
    """Rather than a call that waits."""
    returncode, _, err = finish(desk.start("-e", "work", "a.B"))
    assert returncode == 1
    assert err.startswith(b"error: ")
