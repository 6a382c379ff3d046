"""Properties that make up the network (sheet `admin-api`, section 5)."""

from ipaddress import IPv4Address

import pytest
from model_world import World

from caisson.errors import NotStartedError, PropertyValueError, ValueRefusedError


def test_template_has_no_network_by_default(networked: World):
    """A template is offline whatever the default network qube is."""
    assert networked.value("debian", "netvm") == ""
    networked.set("debian", "netvm", "sys-firewall")
    networked.reset("debian", "netvm")
    assert networked.value("debian", "netvm") == ""


def test_network_never_loops(networked: World):
    """A loop is refused on every route: set, reset, and the default for all."""
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.set("sys-net", "netvm", "sys-firewall")
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.set("sys-net", "netvm", "sys-net")
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.reset("sys-net", "netvm")
    networked.app("sys-vpn", provides_network="True")
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.set(None, "default_netvm", "sys-vpn")
    networked.set("sys-vpn", "netvm", "sys-firewall")
    networked.set(None, "default_netvm", "sys-vpn")


def test_qube_goes_on_providing_network_while_it_is_used(networked: World):
    """Refused on every route: set and reset; by explicit clients, default clients, as default."""
    with pytest.raises(ValueRefusedError, match="sys-firewall"):
        networked.set("sys-net", "provides_network", "False")
    with pytest.raises(ValueRefusedError, match="default_netvm"):
        networked.reset("sys-firewall", "provides_network")
    networked.app("work")
    with pytest.raises(ValueRefusedError, match="work"):
        networked.reset("sys-firewall", "provides_network")
    networked.set(None, "default_netvm", "")
    networked.reset("sys-firewall", "provides_network")


def test_default_netvm_must_provide_network(networked: World):
    """A restriction of `netvm` holds for its default too."""
    networked.app("work", netvm="")
    with pytest.raises(ValueRefusedError, match="provide"):
        networked.set(None, "default_netvm", "work")


def test_running_qube_gets_a_running_network_qube(networked: World):
    """Refused on every route: set, reset, and the default for all."""
    work = networked.app("work")
    networked.running.add(work)
    with pytest.raises(NotStartedError):
        networked.set("work", "netvm", "sys-net")
    networked.set("work", "netvm", "")
    with pytest.raises(NotStartedError):
        networked.reset("work", "netvm")
    networked.running.add(networked.qube("sys-firewall"))
    networked.reset("work", "netvm")
    with pytest.raises(NotStartedError):
        networked.set(None, "default_netvm", "sys-net")


def test_address_belongs_to_one_qube(networked: World):
    """Two qubes with one address could take each other's traffic, whoever asked first."""
    work = networked.app("work")
    networked.app("other")
    networked.set("work", "ip", "10.137.0.77")
    with pytest.raises(PropertyValueError, match="work"):
        networked.set("other", "ip", "10.137.0.77")
    with pytest.raises(PropertyValueError, match="sys-net"):
        networked.set("other", "ip", f"10.137.0.{networked.qube('sys-net').qid}")
    with pytest.raises(PropertyValueError, match="work"):
        networked.set("other", "ip", f"10.137.0.{work.qid}")
    networked.set("other", "ip", f"10.137.0.{networked.qube('other').qid + 1}")
    late = networked.app("late")
    values = [
        networked.system.value(q, "ip")
        for q in networked.system.qubes.values()
        if networked.system.has(q, "ip")
    ]
    taken = [value for value in values if value is not None]
    assert late.qid == networked.qube("other").qid + 2
    assert len(taken) == len(set(taken))


def test_fake_addresses_that_are_none_are_ignored(networked: World):
    """A feature is free text; what becomes an address is an address."""
    networked.app("work")
    networked.feature("work", "net.fake-ip", "1.2.3.4; reboot")
    assert networked.value("work", "visible_ip") == networked.value("work", "ip")
    networked.feature("work", "net.fake-ip", "192.168.0.3")
    assert networked.system.value(networked.qube("work"), "visible_ip") == IPv4Address(
        "192.168.0.3"
    )


def test_addresses_and_gateways_follow_the_chain(networked: World):
    """Section 5.1: gateway of a client is the address of its network qube."""
    networked.app("work")
    assert networked.value("work", "visible_gateway") == networked.value("sys-firewall", "ip")
    assert networked.value("sys-firewall", "gateway") == networked.value("sys-firewall", "ip")
    assert networked.value("work", "gateway") == ""
    assert networked.value("work", "visible_netmask") == "255.255.255.255"
    assert networked.value("work", "dns") == "10.139.1.1 10.139.1.2"
    assert networked.value("work", "ip6") == ""
    networked.feature("sys-net", "ipv6", "1")
    qid = networked.qube("work").qid
    assert networked.value("work", "ip6") == f"fd09:24ef:4179::a89:{qid:x}"
    networked.set("work", "netvm", "")
    for name in ("ip", "ip6", "visible_ip", "visible_gateway", "visible_netmask", "dns"):
        assert networked.value("work", name) == ""
