"""Calls to qubes on other machines: what their relay is told, and when nobody is."""

from __future__ import annotations

from typing import Any

import pytest

from caisson.names import ServiceArgument
from caisson.policy import (
    Allow,
    Ask,
    Decision,
    Deny,
    Reason,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)


def system(**remote: Any) -> SystemInfo:
    """`work`, the relay `net`, and the remote qube `far`."""
    uuid = "00000000-0000-4000-8000-00000000000"
    relay_state = remote.pop("relay_state", "Running")
    return SystemInfo.from_dict(
        {
            "dom0": {"type": "AdminVM", "power_state": "Running"},
            "work": {"type": "AppVM", "uuid": f"{uuid}1", "power_state": "Running"},
            "net": {"type": "AppVM", "uuid": f"{uuid}2", "power_state": relay_state},
            "far": {
                "type": "RemoteVM",
                "uuid": f"{uuid}3",
                "power_state": "Halted",
                "relayvm": "net",
                "transport_rpc": "x.Ssh",
            }
            | remote,
        }
    )


@pytest.fixture(params=[decide, decide_by_reference])
def evaluate(request: pytest.FixtureRequest) -> Any:
    """One of the two evaluators, on one rule."""

    def ask(rule: str, target: str, domains: SystemInfo, service: str = "s.X", **more: Any) -> Any:
        policy = parse_policy({"30-user.policy": f"* * {rule}\n"})
        source = more.pop("source", "work")
        asked = Request(service, more.pop("argument", "+a"), source, target)
        return request.param(asked, policy, domains)

    return ask


def relayed(decision: Decision) -> tuple[str | None, str]:
    """Relay and service of a call that must be allowed."""
    assert isinstance(decision, Allow), decision
    return decision.relay, decision.service


@pytest.mark.parametrize(
    ("rule", "target"),
    [
        ("work far allow", "far"),
        ("work far allow", "uuid:00000000-0000-4000-8000-000000000003"),
        ("work @default allow target=far", ""),
        ("work @default allow target=far", "@default"),
        ("work @default allow target=far", "no-such-qube"),
        ("work @anyvm allow target=uuid:00000000-0000-4000-8000-000000000003", "net"),
    ],
)
def test_the_relay_is_told_which_qube_it_is_whatever_the_caller_called_it(
    evaluate: Any, rule: str, target: str
):
    """Never a keyword, nor a `uuid:` form, which the other machine could not know."""
    assert relayed(evaluate(rule, target, system())) == ("net", "x.Ssh+far+s.X+a")


def test_the_relay_is_told_what_a_person_picked(evaluate: Any):
    """Not what was asked for, nor the keyword that stood for it."""
    asked = evaluate("work @anyvm ask", "@default", system())
    assert isinstance(asked, Ask)
    assert relayed(asked.choose("far")) == ("net", "x.Ssh+far+s.X+a")


@pytest.mark.parametrize(
    "transport",
    ["x Ssh", "x.Ssh\n", "x/Ssh", "+x.Ssh", "x.Ssh+a b", "\x1b[2J", "ü", "x" * 256, "x\0"],
)
def test_a_transport_that_is_no_service_carries_nothing(evaluate: Any, transport: str):
    """The property is free text; the reason names the qube, on one line, without an escape."""
    decision = evaluate("work far allow", "far", system(transport_rpc=transport))
    assert isinstance(decision, Deny)
    assert decision.reason is Reason.RELAY
    assert decision.text.startswith("`far` cannot be told of the call")
    assert decision.text.isprintable()


def test_a_call_that_is_too_long_with_its_transport_is_denied(evaluate: Any):
    """The longest that fits is allowed; one character more is not."""
    room = ServiceArgument.longest - len("x.Ssh+far+s.X+")
    fits = evaluate("work far allow", "far", system(), argument="+" + "a" * room)
    assert ServiceArgument.parse(relayed(fits)[1].partition("+")[2])
    longer = evaluate("work far allow", "far", system(), argument="+" + "a" * (room + 1))
    assert isinstance(longer, Deny)
    assert longer.reason is Reason.RELAY


@pytest.mark.parametrize("relay", ["dom0", "far", "no-such-qube", None])
def test_only_a_qube_on_this_machine_is_a_relay(evaluate: Any, relay: str | None):
    """The admin qube runs no transport, and relays are no chain."""
    decision = evaluate("work far allow", "far", system(relayvm=relay))
    assert isinstance(decision, Deny)
    assert decision.reason is Reason.RELAY


def test_whether_something_is_started_is_about_the_relay(evaluate: Any):
    """Nobody here knows whether a qube on another machine runs."""
    rule = "work far allow autostart=no"
    assert relayed(evaluate(rule, "far", system()))[0] == "net"
    halted = evaluate(rule, "far", system(relay_state="Halted"))
    assert isinstance(halted, Deny)
    assert halted.reason is Reason.NOT_RUNNING
    offered = evaluate("work @anyvm ask autostart=no", "@default", system(relay_state="Halted"))
    assert isinstance(offered, Deny)


def test_a_relay_may_call_its_own_remote_qube(evaluate: Any):
    """It is no call of a qube to itself: the other machine is behind it."""
    decision = evaluate("net far allow", "far", system(), source="net")
    assert relayed(decision) == ("net", "x.Ssh+far+s.X+a")
