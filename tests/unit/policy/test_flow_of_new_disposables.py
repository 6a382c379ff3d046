"""What the analysis of flows takes a new disposable for is what the model makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from model_world import World

from caisson.admin.methods import METHODS
from caisson.admin.registry import Access, Scope
from caisson.model import PowerState
from caisson.policy import parse_policy
from caisson.policy.flow import Facts, Flows, Options, Power, Way, newborn
from caisson.tools.policy.powers import power, powerful

RULES = parse_policy({"a.policy": "s.X * @anyvm @dispvm allow\n"}).rules
OPTIONS = Options(power=power, admin_services=powerful())


@pytest.fixture
def world() -> World:
    """Bases of disposables with and without a network, and qubes that use them."""
    made = World()
    made.network()
    made.app("online-base", template_for_dispvms="True")
    made.app("offline-base", template_for_dispvms="True", netvm="")
    made.app("gateway-base", template_for_dispvms="True", netvm="", provides_network="True")
    made.app("own-base", template_for_dispvms="True", default_dispvm="offline-base")
    made.app("last-base", template_for_dispvms="True", default_dispvm="")
    made.tag("online-base", "some")
    made.app("online", default_dispvm="online-base")
    made.app("offline", netvm="", default_dispvm="online-base")
    made.app("giver", default_dispvm="online-base")
    made.feature("giver", "tag-created-vm-with", "given created-by-dom0 more")
    made.app("shown", default_dispvm="online-base")
    made.feature("shown", "set-created-guivm", "sys-net")
    made.app("unshown", default_dispvm="online-base")
    made.feature("unshown", "set-created-guivm", "nosuch")
    return made


def _domains(world: World) -> dict[str, dict[str, Any]]:
    """What `internal.GetSystemInfo` tells."""
    told = world.system.info(lambda _: PowerState.RUNNING)
    return {
        str(name): {**told[str(name)], **world.system.wiring_of(qube)}
        for name, qube in world.system.qubes.items()
    }


BASES = ["online-base", "offline-base", "gateway-base", "own-base", "last-base"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("maker", ["online", "offline", "giver", "shown", "unshown", "sys-net"])
def test_new_disposable_is_what_the_model_makes(world: World, maker: str, base: str) -> None:
    """Its tags, what its `default_dispvm` may be, and how it is connected."""
    facts = Facts.from_dict(_domains(world))
    [expected] = [
        each
        for each in newborn.all_of(facts, RULES)
        if (each.root, each.base, each.deep) == (maker, base, False)
    ]
    made = world.disposable(maker, base)
    told = _domains(world)[str(made.name)]
    member = newborn.member_of(expected, facts)
    assert (member.type, sorted(member.tags)) == (told["type"], told["tags"])
    assert told["default_dispvm"] in newborn.default_bases(expected, facts)
    network = newborn.network_of(expected, facts)
    settings = (None, False) if network is None else (network.netvm, network.provides_network)
    assert (told["netvm"], told["provides_network"]) == settings
    assert told["template"] == base


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("maker", ["online", "offline"])
def test_disposable_of_a_disposable_is_what_the_model_makes(
    world: World, maker: str, base: str
) -> None:
    """It has no more than is expected of it, and no network where none is expected."""
    facts = Facts.from_dict(_domains(world))
    [expected] = [
        each
        for each in newborn.all_of(facts, RULES)
        if (each.root, each.base, each.deep) == (maker, base, True)
    ]
    first = world.disposable(maker, "online-base")
    made = world.disposable(str(first.name), base)
    told = _domains(world)[str(made.name)]
    own = {f"created-by-{first.name}", f"disp-created-by-{first.name}"}
    assert newborn.member_of(expected, facts).tags == set(told["tags"]) - own
    network = newborn.network_of(expected, facts)
    settings = (None, False) if network is None else (network.netvm, network.provides_network)
    assert (told["netvm"], told["provides_network"]) == settings


def test_disposable_of_a_base_without_a_default_has_none_either(world: World) -> None:
    """A rule that denies it what its base would be asked for does not speak of it."""
    world.app("work", default_dispvm="last-base")
    world.app("secret", netvm="")
    policy = (
        "s.Open * work @dispvm allow\n"
        "s.X * @type:DispVM @dispvm:last-base deny\n"
        "s.X * @type:DispVM @dispvm allow target=secret\n"
    )
    rules = parse_policy({"a.policy": policy}).rules
    flows = Flows(rules, Facts.from_dict(_domains(world)), OPTIONS)
    assert "secret" in {chain.end for chain in flows.onward("work")}


def test_offline_qube_reaches_no_network_through_its_disposables(world: World) -> None:
    """A disposable of an offline qube is offline, whatever its base is."""
    flows = Flows(RULES, Facts.from_dict(_domains(world)), OPTIONS)
    ends = {chain.end for chain in flows.onward("offline")}
    assert any("made by offline" in end for end in ends)
    assert "@internet" not in ends
    assert "@internet" in {chain.end for chain in flows.onward("online")}


def test_the_broker_is_not_told_of_the_wiring(world: World) -> None:
    """No decision depends on it, so no change of it has to reach the broker."""
    told = world.system.info_of(world.qube("online"), PowerState.RUNNING)
    assert not told.keys() & world.system.wiring_of(world.qube("online")).keys()


@pytest.mark.parametrize("is_disposable", [False, True])
def test_note_about_updates_gets_to_the_template(world: World, is_disposable: bool) -> None:
    """It is written down at the template of the caller (`caisson.admin.methods.misc`)."""
    caller = str(world.disposable("online", "online-base").name) if is_disposable else "online"
    rules = parse_policy({"a.policy": "qubes.NotifyUpdates * @anyvm @adminvm allow"}).rules
    flows = Flows(rules, Facts.from_dict(_domains(world)), OPTIONS)
    *_, template = world.system.template_chain(world.qube(caller))
    noted = {chain.end for chain in flows.onward(caller) if chain.hops[0].way is Way.NOTES}
    assert str(template.name) in noted


def test_every_method_that_changes_something_counts() -> None:
    """None that writes or acts is taken for harmless, and what is not known is not either."""
    for name, method in METHODS.methods.items():
        if method.scope in {Scope.GLOBAL, Scope.LOCAL}:
            reads = method.access is Access.READ
            assert (power(name) is Power.READS) is reads
            assert name in powerful()
        elif method.scope is Scope.POLICY:
            changes = method.access is not Access.READ
            assert (power(name) is Power.CHANGES) is changes
            assert (name in powerful()) is changes
        elif name != "qubes.NotifyUpdates":
            assert power(name) is Power.NONE
    assert power("qubes.NotifyUpdates") is Power.NOTES
    assert "qubes.NotifyUpdates" in powerful()
    assert power("admin.vm.tag.Set") is Power.CHANGES
    assert power("admin.vm.Start") is Power.USES
    assert power("admin.vm.Unheard.Of") is Power.CHANGES
    assert power("policy.Replace") is Power.CHANGES
    assert power("policy.Get") is Power.NONE
    assert power("qubes.Filecopy") is Power.NONE
