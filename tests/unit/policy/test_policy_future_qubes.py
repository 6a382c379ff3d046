"""What a change of policy does for qubes that do not exist yet: what is easily missed."""

from __future__ import annotations

import pytest

from caisson.policy import Request, SystemInfo, decide, parse_policy
from caisson.policy.analysis import Possible, differences
from caisson.policy.analysis.never import redundant_rules

SYSTEM = SystemInfo.from_dict(
    {"dom0": {"type": "AdminVM", "power_state": "Running"}, "work": {"type": "AppVM"}}
)


def _future(old: str, new: str) -> list[Possible]:
    one, other = (parse_policy({"a.policy": text}) for text in (old, new))
    return differences(one, other, SYSTEM).future


def _redundant(text: str) -> list[int | None]:
    return [r.location.line for r in redundant_rules(parse_policy({"a.policy": text}).rules)]


@pytest.mark.parametrize(
    "rule",
    [
        "s.X * @anyvm @type:RemoteVM allow",
        "s.X * @anyvm @type:RemoteVM allow autostart=no",
        "s.X * @type:RemoteVM @type:RemoteVM allow",
    ],
)
def test_new_allow_for_qubes_on_other_machines_is_told(rule: str):
    """The RemoteVM of the example has a relay that can be one, so the call is allowed."""
    found = _future("", rule)
    assert [change.new.decision for change in found] == ["allow"]
    system = SystemInfo({qube.name: qube for qube in found[0].qubes})
    request = Request("s.X", "+", found[0].source.name, found[0].target)
    decision = decide(request, parse_policy({"a.policy": rule}), system)
    assert decision.as_dict()["decision"] == "allow"


def test_allow_for_qubes_on_other_machines_is_not_redundant():
    """Without it they could not be called."""
    assert _redundant("s.X * @anyvm @type:RemoteVM allow") == []


PRESELECTED = [
    ("@tag:u", "r"),
    ("@type:TemplateVM", "r"),
    ("uuid:00000000-0000-4000-8000-00000000000a", "r"),
    ("@dispvm:@tag:u", "@dispvm:r"),
    ("@dispvm:@tag:u", "@dispvm"),
    ("@dispvm", "@dispvm:r"),
    ("@dispvm:uuid:00000000-0000-4000-8000-00000000000a", "@dispvm:r"),
]


@pytest.mark.parametrize(("target", "default"), PRESELECTED)
@pytest.mark.parametrize("feed", ["", "s.X * @tag:v {target} ask\n"])
def test_new_default_target_is_told(target: str, default: str, feed: str):
    """There can be a qube that both the list offers and the rule preselects."""
    asked = "@default" if feed else target
    rules = feed.format(target=target) + f"s.X * @anyvm {asked} ask"
    found = _future(rules, f"{rules} default_target={default}")
    assert {(change.old.decision, change.new.decision) for change in found} == {("ask", "ask")}
    assert any(change.new.default for change in found)


@pytest.mark.parametrize(("target", "default"), PRESELECTED)
def test_rule_that_preselects_is_not_redundant(target: str, default: str):
    """The same question without it has nothing preselected."""
    asking = f"s.X * work {target} ask default_target={default}\ns.X * @anyvm {target} ask"
    assert _redundant(asking) == []


def test_preselected_admin_qube_with_an_unknown_tag_is_not_redundant():
    """Which tags dom0 has is not known, so a list may offer it."""
    assert _redundant("s.X * work @tag:u ask default_target=dom0\ns.X * @anyvm @tag:u ask") == []


def test_disposables_of_the_admin_qube_are_not_redundant():
    """Which default_dispvm dom0 has is not known either."""
    assert _redundant("s.X * dom0 @dispvm allow") == []


def test_default_target_that_no_list_can_offer_is_no_change():
    """No rule offers a disposable, so none is preselected."""
    asking = "s.X * @anyvm @tag:u ask"
    assert not _future(asking, f"{asking} default_target=@dispvm")
