"""The graph of calls: every edge is a decision, and the few bundles say the same as all edges."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caisson.policy import Action, Allow, Ask, Deny, Reason, Request, Rule, SystemInfo, parse_policy
from caisson.policy.calls import kinds
from caisson.policy.graph import Edge, Filter, boxes, bundles, edges, rows
from caisson.policy.reference import decide

SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "tags": ["t1"], "default_dispvm": "dvm"},
        "vault": {"type": "AppVM", "tags": ["t1", "t2"]},
        "net": {"type": "AppVM"},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
)


def _edges(text: str, wanted: Filter | None = None) -> set[tuple[str, str, str, str]]:
    rules = parse_policy({"30-user.policy": text}).rules
    found = edges(rows(rules, SYSTEM, wanted or Filter()))
    return {(e.source, e.target, e.label, str(e.action)) for e in found}


def test_an_arrow_goes_where_the_call_really_goes() -> None:
    """A redirect moves the arrow; `@dispvm` becomes the base of the caller's disposables."""
    found = _edges("s.X + work @default allow target=vault\ns.Y + work @dispvm allow")
    assert found == {
        ("work", "vault", "s.X", "allow"),
        ("work", "@dispvm:dvm", "s.Y", "allow"),
    }


def test_a_question_has_an_arrow_to_every_target_that_is_offered() -> None:
    """What a person may pick is what can be reached."""
    found = _edges("s.X + work @tag:t2 ask\ns.X + work net allow")
    assert ("work", "vault", "s.X", "ask") in found
    assert ("work", "net", "s.X", "ask") in found, "an allow rule feeds the list"
    assert ("work", "net", "s.X", "allow") in found


def test_arguments_and_services_without_a_name_have_arrows_of_their_own() -> None:
    """The rest is not forgotten where some arguments have rules of their own."""
    found = _edges("s.X +a work vault deny\ns.X + work net allow\n* * work vault allow")
    assert {(label, action) for source, target, label, action in found if target == "vault"} == {
        ("any other service", "allow"),
        ("s.X", "allow"),
        ("s.X+a", "deny"),
        ("s.X+*", "allow"),
    }
    assert ("work", "net", "s.X", "allow") in found


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (Filter(services=["s.Y"]), {"s.Y"}),
        (Filter(sources=["net"]), {"s.Z"}),
        (Filter(targets=["vault"]), {"s.X", "s.Z"}),
        (Filter(actions=[Action.ASK]), {"s.Y"}),
    ],
)
def test_what_is_not_wanted_is_left_out(wanted: Filter, left: set[str]) -> None:
    """Filters name services, callers, targets and outcomes."""
    text = "s.X * work vault allow\ns.Y * work net ask\ns.Z * net vault deny"
    assert {label for _, _, label, _ in _edges(text, wanted)} == left


def test_a_picture_of_everyone_has_one_bundle() -> None:
    """Calls of anybody to anybody are one node between the boxes, not an arrow for each pair."""
    rules = parse_policy({"30-user.policy": "s.X * @anyvm @anyvm ask\ns.Y * @anyvm @anyvm ask"})
    found = bundles(rows(rules.rules, SYSTEM, Filter()))
    assert len(found) == 1
    assert found[0].labels == ("s.X", "s.Y")
    assert boxes(found) == [("@dispvm:dvm",), ("dvm", "net", "vault", "work")]
    assert len(boxes(found, alike=False)) == 5


_NAMES = ["a", "b", "c", "d"]
_EDGES = st.builds(
    Edge,
    source=st.sampled_from(_NAMES),
    target=st.sampled_from([*_NAMES, "@dispvm:a"]),
    label=st.sampled_from(["s.X", "s.Y"]),
    action=st.sampled_from(list(Action)),
).filter(lambda edge: edge.source != edge.target)


@given(st.sets(_EDGES))
def test_bundles_say_exactly_what_the_edges_say(found: set[Edge]) -> None:
    """Nothing is added or lost when edges are put together, also not by the boxes."""
    by_kind: dict[tuple[str, Action], dict[str, frozenset[str]]] = {}
    for edge in found:
        row = by_kind.setdefault((edge.label, edge.action), {})
        row[edge.source] = row.get(edge.source, frozenset()) | {edge.target}
    made = bundles(by_kind)
    again = {
        Edge(source, target, label, bundle.action)
        for bundle in made
        for source, target in itertools.product(bundle.sources, bundle.targets)
        for label in bundle.labels
        if source != target
    }
    assert again == found
    home = {name: box for box in boxes(made) for name in box}
    for bundle in made:
        for names in (bundle.sources, bundle.targets):
            assert all(set(home[name]) <= set(names) for name in names)


# Everything that a decision may depend on.
ODD = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM", "tags": ["t1"], "power_state": "Running"},
        "work": {"type": "AppVM", "tags": ["t1"], "default_dispvm": "dvm"},
        "vault": {"type": "AppVM", "tags": ["t1", "t2"], "power_state": "Running"},
        "net": {"type": "AppVM", "default_dispvm": "vault", "uuid": "1-2"},
        "hid": {"type": "AppVM", "internal": "1", "default_dispvm": "nosuch", "tags": ["t2"]},
        "dvm": {"type": "AppVM", "template_for_dispvms": True, "tags": ["t2"]},
        "rem": {"type": "RemoteVM", "relayvm": "net", "transport_rpc": "x.SSH"},
        "far": {"type": "RemoteVM", "relayvm": "vault", "transport_rpc": "x y"},
        "lost": {"type": "RemoteVM", "relayvm": "nosuch", "transport_rpc": "x.SSH"},
    }
)
_TOKENS = st.sampled_from(
    ["*", "@anyvm", "work", "vault", "@tag:t1", "@tag:t2", "@type:AppVM", "uuid:1-2", "rem"]
)
_RULES = st.lists(
    st.tuples(
        st.sampled_from(["s.X", "s.Y"]),
        st.sampled_from(["*", "+", "+a"]),
        _TOKENS,
        st.one_of(
            _TOKENS, st.sampled_from(["@dispvm", "@dispvm:dvm", "@adminvm", "@dispvm:@tag:t2"])
        ),
        st.sampled_from(["allow", "deny", "ask", "allow autostart=no", "ask autostart=no"]),
        st.sampled_from(["", "", "target=net", "target=@dispvm", "target=rem", "target=nosuch"]),
    )
    .map(lambda fields: " ".join(fields if fields[4] != "deny" else fields[:5]))
    .map(str.strip),
    max_size=8,
)


@given(_RULES)
def test_every_decision_is_an_edge_and_every_edge_a_decision(lines: list[str]) -> None:
    """The graph leaves nothing out to be quick: it is what the reference evaluator decides."""
    rules: tuple[Rule, ...] = parse_policy({"30-user.policy": "\n".join(lines)}).rules
    expected = set()
    targets = [*ODD.domains, "@dispvm:dvm", "@dispvm", "@default", "@adminvm"]
    told_apart = [kind for kind, _ in kinds(rules)]
    for kind, source, target in itertools.product(told_apart, ODD.domains, targets):
        decision = decide(Request(*kind.call, source, target), rules, ODD)
        match decision:
            case Allow():
                expected.add(Edge(source, decision.target, str(kind), Action.ALLOW))
            case Ask():
                expected |= {
                    Edge(source, t, str(kind), Action.ASK) for t in decision.targets if t != source
                }
            case Deny(reason=Reason.RULE) if target != source:
                expected.add(Edge(source, target, str(kind), Action.DENY))
    assert set(edges(rows(rules, ODD, Filter()))) == expected
