"""Addresses, names and texts of the network room; nothing here touches the kernel."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from caisson.errors import NetworkError
from caisson.network import Uplink, UplinkKind, addresses, resolvers, rules


@pytest.mark.parametrize(
    ("qid", "address"),
    [(1, "10.137.0.1"), (254, "10.137.0.254"), (255, "10.137.1.1"), (10000, "10.137.39.94")],
)
def test_a_qube_has_the_address_of_its_number(qid: int, address: str):
    """Sheet admin-api, section 5.1: no address ends in 0 or 255."""
    assert addresses.ipv4_of(qid) == IPv4Address(address)
    disposable = address.replace("10.137", "10.138")
    assert addresses.ipv4_of_disposable(qid) == IPv4Address(disposable)


@pytest.mark.parametrize("instance", ["", "0123abcd"])
@pytest.mark.parametrize("qid", [0, 1, 10000])
def test_interface_names_fit_into_linux(instance: str, qid: int):
    """A name has at most 15 bytes."""
    assert len(addresses.outer_interface(instance, qid)) <= 15
    assert len(addresses.provider_interface(qid)) <= 15


def test_interfaces_of_one_instance_are_never_taken_for_anothers():
    """The rules know an instance's interfaces by how their names start."""
    assert not addresses.outer_interface("0123abcd", 1).startswith(addresses.outer_prefix(""))
    assert not addresses.outer_interface("", 1).startswith(addresses.outer_prefix("0123abcd"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Uplink()),
        ("", Uplink()),
        ("nat", Uplink(UplinkKind.NAT)),
        ("none", Uplink(UplinkKind.NONE)),
        ("netns:lab-1", Uplink(UplinkKind.NAMESPACE, "lab-1")),
    ],
)
def test_the_uplink_feature_has_three_forms(text: str | None, expected: Uplink):
    """Without the feature it is `nat`."""
    assert Uplink.parse(text) == expected


@pytest.mark.parametrize("text", ["NAT", "nat:", "none:x", "netns", "netns:", "bridge", "nat\n"])
def test_any_other_uplink_is_refused_with_a_hint(text: str):
    """The error shows the value and what was expected."""
    with pytest.raises(NetworkError) as refused:
        Uplink.parse(text)
    assert refused.value.hint


def test_resolvers_that_a_qube_cannot_use_are_left_out():
    """A loopback address would be the qube itself; IPv6 does not pass."""
    text = (
        "# nameserver 9.9.9.9\nsearch example.org\nnameserver 127.0.0.53\n"
        "nameserver\t192.0.2.1 # home\nnameserver 2001:db8::1\nnameserver 192.0.2.1\n"
        "nameserver 0.0.0.0\nnameserver nonsense\nnameserver\nnameserver 192.0.2.2"
    )
    assert resolvers.parse(text) == (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))


def test_the_resolvers_behind_a_stub_are_found(tmp_path: Path):
    """systemd-resolved keeps the real ones in a file of its own."""
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    real.write_text("nameserver 192.0.2.1\n")
    assert resolvers.of_machine((tmp_path / "none", stub, real)) == (IPv4Address("192.0.2.1"),)
    assert resolvers.of_machine((stub,)) == ()


@pytest.mark.parametrize("lookup", [None, [], [IPv4Address("192.0.2.1")]])
def test_every_filter_chain_of_a_network_qube_drops_by_default(
    lookup: list[IPv4Address] | None,
):
    """IPv4 and IPv6, in every direction (QSB 004)."""
    chains = [
        command["add"]["chain"]
        for command in rules.provider([], lookup)
        if "chain" in command.get("add", {})
    ]
    filters = {chain["hook"]: chain for chain in chains if chain["type"] == "filter"}
    assert set(filters) == {"prerouting", "input", "forward", "output"}
    assert {chain["policy"] for chain in filters.values()} == {"drop"}
    assert {chain["family"] for chain in chains} == {"inet"}


def test_rules_do_not_grow_with_the_clients():
    """A client is one element; everything else stays the same."""
    few = rules.provider([("vif1", IPv4Address("10.137.0.1"))])
    many = rules.provider([(f"vif{n}", addresses.ipv4_of(n)) for n in range(1, 1001)])
    assert len(few) == len(many)
    assert few[:-1] == many[:-1]


def test_lookups_without_a_resolver_go_nowhere():
    """They must not leak to whoever has the stand-in's address upstream."""
    text = str(rules.provider([], []))
    assert "dnat" not in text
    assert "10.139.1.1" in text
