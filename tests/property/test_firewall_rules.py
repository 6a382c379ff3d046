"""Firewall rules: what is written is read back the same, and nothing else is a rule."""

from __future__ import annotations

import string
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caisson.errors import ProtocolError, ValueRefusedError
from caisson.model.firewall import (
    EVERYTHING,
    Action,
    Destination,
    Protocol,
    Rule,
    Special,
    listing,
    parse,
    parse_rule,
)

ports = st.integers(0, 65_535)
ranges = st.tuples(ports, ports).map(lambda pair: (min(pair), max(pair)))
comments = st.text(string.ascii_letters + string.digits + ":;,./-_[] ", min_size=1)
host_names = st.from_regex(r"[a-z0-9._-]{0,40}[a-z_-]", fullmatch=True)
networks = st.one_of(
    st.builds(
        lambda address, prefix: IPv4Network((address, prefix), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda address, prefix: IPv6Network((address, prefix), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)
destinations: st.SearchStrategy[Destination] = st.one_of(networks, host_names)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any rule that there can be."""
    protocol = draw(st.none() | st.sampled_from(Protocol))
    with_ports = protocol in {Protocol.TCP, Protocol.UDP}
    return Rule(
        action=draw(st.sampled_from(Action)),
        expire=draw(st.none() | st.integers(0, 10**19 - 1)),
        destination=draw(st.none() | destinations),
        protocol=protocol,
        special=draw(st.none() | st.sampled_from(Special)),
        ports=draw(st.none() | ranges) if with_ports else None,
        icmp_type=draw(st.none() | st.integers(0, 255)) if protocol is Protocol.ICMP else None,
        comment=draw(st.none() | comments),
    )


@settings(deadline=None)
@given(st.lists(rules()))
def test_rules_are_read_back_as_they_were_written(written: list[Rule]):
    """The canonical form says all of a rule, and one reading of it is the same rule."""
    assert parse(listing(written).encode()) == tuple(written)


@settings(deadline=None)
@given(rules(), st.randoms(use_true_random=False))
def test_order_of_words_does_not_matter(rule: Rule, rng):  # noqa: ANN001 - Hypothesis' own type
    """But for the comment, which is the last one; the answer has the order of the sheet."""
    head, comment, tail = str(rule).partition(" comment=")
    words = head.split(" ")
    rng.shuffle(words)
    assert parse_rule(" ".join(words) + comment + tail) == rule
    order = ["action", "expire", "dst", "proto", "specialtarget", "dstports", "icmptype"]
    keys = [word.partition("=")[0] for word in head.split(" ")]
    keys = ["dst" if key.startswith("dst") and key != "dstports" else key for key in keys]
    assert keys == [key for key in order if key in keys]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_whatever_comes_is_rules_or_refused_as_such(untrusted: bytes):
    """No other error, and what was accepted is stable."""
    try:
        found = parse(untrusted)
    except (ProtocolError, ValueRefusedError):
        return
    assert parse(listing(found).encode()) == found


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["action", "proto", "dst4", "dst6", "dsthost", "dstname", "dstports", "icmptype"]
            ),
            st.sampled_from(
                ["accept", "tcp", "icmp", "10.0.0.1", "::1/3", "a.b", "1.2.3.400", "80", "1-2", "-"]
            ),
        ),
        max_size=5,
    )
)
def test_words_in_any_combination_are_a_rule_or_refused_as_such(words: list[tuple[str, str]]):
    """Nearly rules: what is accepted keeps the invariants of a rule."""
    try:
        rule = parse_rule(" ".join(f"{key}={value}" for key, value in words))
    except ValueRefusedError:
        return
    assert rule.ports is None or rule.protocol in {Protocol.TCP, Protocol.UDP}
    assert rule.icmp_type is None or rule.protocol is Protocol.ICMP
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("line", "canonical"),
    [
        ("action=accept", "action=accept"),
        ("dst4=10.1.2.3/8 action=drop", "action=drop dst4=10.0.0.0/8"),
        ("action=accept dsthost=1.2.3.4", "action=accept dst4=1.2.3.4/32"),
        ("action=accept dsthost=FD00::1", "action=accept dst6=fd00::1/128"),
        ("action=accept dstname=qubes-os.org", "action=accept dsthost=qubes-os.org"),
        ("action=accept dst4=0.0.0.0/0", "action=accept dst4=0.0.0.0/0"),
        ("action=accept proto=tcp dstports=80", "action=accept proto=tcp dstports=80-80"),
        ("action=accept proto=icmp icmptype=0", "action=accept proto=icmp icmptype=0"),
        ("action=drop specialtarget=dns", "action=drop specialtarget=dns"),
        ("action=drop comment=", "action=drop"),
        ("action=drop comment=two words", "action=drop comment=two words"),
    ],
)
def test_canonical_forms(line: str, canonical: str):
    """Section 2.8: explicit prefixes, ranges of ports, one key for each kind of destination."""
    assert str(parse_rule(line)) == canonical


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "accept",
        "action=accept ",
        "action=accept  proto=tcp",
        "action=accept action=drop",
        "action=reject",
        "ACTION=accept",
        "proto=tcp",
        "action=accept nosuch=1",
        "action=accept dst4=10.0.0.1 dst6=::1",
        "action=accept dst4=10.0.0.1/33",
        "action=accept dst4=10.0.0.1/255.0.0.0",
        "action=accept dst4=10.0.0.01",
        "action=accept dst4=::1",
        "action=accept dst6=fe80::1%eth0",
        "action=accept dst6=10.0.0.1",
        "action=accept dsthost=UPPER.org",
        "action=accept dsthost=300.1.1.1",
        "action=accept dsthost=a/24",
        "action=accept dsthost=a;b",
        "action=accept dsthost=",
        "action=accept dstports=80",
        "action=accept proto=icmp dstports=80",
        "action=accept proto=tcp dstports=2-1",
        "action=accept proto=tcp dstports=65536",
        "action=accept proto=tcp dstports=080",
        "action=accept proto=tcp dstports=-1",
        "action=accept proto=tcp icmptype=1",
        "action=accept proto=icmp icmptype=256",
        "action=accept specialtarget=ntp",
        "action=accept expire=-1",
        "action=accept expire=10000000000000000000",
        "action=accept comment=a{b}",
        "action=accept comment=a comment=b",
        "action=accept\raction=accept",
        "\naction=accept",
    ],
)
def test_what_is_no_rule_is_refused_with_its_number(line: str):
    """Never guessed at: a rule that is misread protects nobody."""
    with pytest.raises(ValueRefusedError, match="rule 2: "):
        parse(f"action=accept\n{line}\n".encode())


def test_no_line_is_no_rule():
    """An empty payload is well-formed; it is not the rule that lets everything pass."""
    assert parse(b"") == ()
    assert parse(b"action=accept") == parse(b"action=accept\n") == EVERYTHING
    with pytest.raises(ProtocolError):
        parse("action=accept comment=ä".encode())
