"""What holds for every policy, every system and every request."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from caisson.policy import (
    Ask,
    BrokenPolicy,
    Decision,
    Deny,
    PolicyError,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)

NIL = "00000000-0000-0000-0000-000000000000"
NAMES = ["dom0", "work", "vault", "net", "dvm", "dvm2", "rem"]
UUIDS = {
    name: NIL if name == "dom0" else f"00000000-0000-4000-8000-{i:012}"
    for i, name in enumerate(NAMES)
}
REFERENCES = [*NAMES, *(f"uuid:{u}" for u in UUIDS.values()), "nosuch", "uuid:nosuch"]
TAGS = ["t1", "t2"]
TYPES = ["AdminVM", "AppVM", "RemoteVM"]

references = st.sampled_from(REFERENCES)
disposables = st.builds("@dispvm:{}".format, references)
redirects = references | st.sampled_from(["@adminvm", "@dispvm"]) | disposables
sources = (
    references
    | st.sampled_from(["*", "@anyvm", "@adminvm", "@tag:t1", "@tag:t2", "@dispvm:dvm"])
    | st.sampled_from([f"@type:{t}" for t in TYPES])
)
targets = sources | disposables | st.sampled_from(["@default", "@dispvm", "@dispvm:@tag:t1"])
services = st.sampled_from(["* *", "s.X *", "s.X *", "s.X +", "s.X +a", "s.Y +b"])
flags = st.sampled_from(["", " notify=yes", " notify=no"])
starts = st.sampled_from(["", " autostart=yes", " autostart=no"])


@st.composite
def rule_lines(draw: st.DrawFn) -> str:
    """A rule that the parser accepts."""
    action = draw(st.sampled_from(["allow", "ask", "deny"]))
    target = draw(targets)
    source = draw(st.sampled_from(["*", "@anyvm"]) | sources)
    line = f"{draw(services)} {source} {target} {action}{draw(flags)}"
    if action == "deny":
        return line
    line += draw(starts) + draw(st.sampled_from(["", " user=root", " user="]))
    if (action == "allow" and target == "@default") or draw(st.integers(0, 3)) == 0:
        line += f" target={draw(redirects)}"
    if action == "ask" and draw(st.booleans()):
        line += f" default_target={draw(redirects)}"
    return line


@st.composite
def systems(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """A system as `internal.GetSystemInfo` tells it; dom0 always exists."""
    missing = draw(st.lists(st.sampled_from(NAMES[1:]), max_size=2))
    names = [name for name in NAMES if name not in missing]
    return {
        name: {
            "type": {"dom0": "AdminVM", "rem": "RemoteVM"}.get(name, "AppVM"),
            "uuid": UUIDS[name],
            "tags": draw(st.lists(st.sampled_from(TAGS), unique=True)),
            "internal": draw(st.sampled_from([None, None, None, "1", ""])),
            "template_for_dispvms": name != "dom0" and draw(st.booleans()),
            "default_dispvm": draw(st.sampled_from([None, "dvm", "dvm2", "work", "nosuch"])),
            "relayvm": draw(st.sampled_from(["net", None])) if name == "rem" else None,
            "transport_rpc": draw(st.sampled_from(["x.SSH", None])) if name == "rem" else None,
            "power_state": draw(st.sampled_from(["Running", "Halted"])),
        }
        for name in names
    }


requests = st.builds(
    Request,
    service=st.sampled_from(["s.X", "s.X", "s.Y", "s.Z"]),
    argument=st.sampled_from(["+", "+a", "+b"]),
    source=st.sampled_from(NAMES) | references,
    target=redirects | st.sampled_from(["", "@default", "@tag:t1", "@nosuch", "@dispvm:"]),
    requested_source=st.sampled_from(["", "", "", "", "", "", "rem", "work"]),
)


policies = st.builds(
    "\n".join,
    st.builds(
        lambda lines, last: [*lines, last],
        st.lists(rule_lines(), min_size=1, max_size=12),
        # Most calls reach a question, so that target lists are compared and not only denials.
        st.sampled_from(["", "* * * * ask", "s.X * @anyvm @anyvm ask autostart=no"]),
    ),
)


def _answers(decision: Decision) -> list[dict[str, Any]]:
    """A decision and what every choice would lead to."""
    if not isinstance(decision, Ask):
        return [decision.as_dict()]
    choices = [*decision.targets, "nosuch", "dom0"]
    return [decision.as_dict(), *(decision.choose(c).as_dict() for c in choices)]


@settings(max_examples=400, deadline=None)
@given(
    policies,
    systems(),
    st.lists(requests, min_size=1, max_size=6),
)
def test_fast_and_reference_evaluator_decide_the_same(
    text: str, domains: dict[str, dict[str, Any]], calls: list[Request]
):
    """Index and bit sets are an optimisation, never a second opinion."""
    policy = parse_policy({"30-user.policy": text})
    system = SystemInfo.from_dict(domains)
    for call in calls:
        expected = _answers(decide_by_reference(call, policy, system))
        assert _answers(decide(call, policy, system)) == expected


@settings(max_examples=100, deadline=None)
@given(
    policies,
    systems(),
    systems(),
    st.lists(requests, min_size=1, max_size=4),
)
def test_changed_snapshot_is_as_a_fresh_one(
    text: str,
    before: dict[str, dict[str, Any]],
    behind: dict[str, dict[str, Any]],
    calls: list[Request],
):
    """Nothing that was derived from an older snapshot leaks into a decision on a newer one."""
    policy = parse_policy({"30-user.policy": text})
    old = SystemInfo.from_dict(before)
    new = old.with_changes(behind, removed=before.keys() - behind.keys())
    fresh = SystemInfo.from_dict(behind)
    for call in calls:
        decide(call, policy, old)
        assert _answers(decide(call, policy, new)) == _answers(decide(call, policy, fresh))


@settings(max_examples=80, deadline=None)
@given(
    policies,
    systems(),
    st.lists(st.tuples(st.sampled_from(NAMES), systems()), min_size=1, max_size=5),
    st.lists(requests, min_size=1, max_size=4),
)
def test_snapshot_after_some_small_changes_is_as_a_fresh_one(
    text: str,
    domains: dict[str, dict[str, Any]],
    changes: list[tuple[str, dict[str, dict[str, Any]]]],
    calls: list[Request],
):
    """What is taken over from the snapshot before still holds: a qube at a time may change."""
    policy = parse_policy({"30-user.policy": text})
    snapshot = SystemInfo.from_dict(domains)
    for call in calls:
        decide(call, policy, snapshot)
    for name, others in changes:
        if name in domains and name in others:
            # Mostly a change that leaves the targets what they were.
            base = {"template_for_dispvms": domains[name]["template_for_dispvms"]}
            domains = domains | {name: others[name] | base}
            snapshot = snapshot.with_changes({name: domains[name]})
        elif name in domains and name != "dom0":
            domains = {other: info for other, info in domains.items() if other != name}
            snapshot = snapshot.with_changes({}, [name])
        fresh = SystemInfo.from_dict(domains)
        for call in calls:
            expected = _answers(decide_by_reference(call, policy, fresh))
            assert _answers(decide(call, policy, snapshot)) == expected


@settings(max_examples=100, deadline=None)
@given(policies, systems(), requests)
def test_offered_targets_are_sorted_and_never_the_caller(
    text: str, domains: dict[str, dict[str, Any]], call: Request
):
    """A list is fit to be shown as it is, and its default is one of it."""
    policy = parse_policy({"30-user.policy": text})
    decision = decide(call, policy, SystemInfo.from_dict(domains))
    if isinstance(decision, Ask):
        assert decision.targets
        assert list(decision.targets) == sorted(set(decision.targets))
        assert decision.default_target in (None, *decision.targets)


def _parse(files: dict[str, str | bytes]) -> PolicySet | BrokenPolicy:
    try:
        return parse_policy(files)
    except PolicyError as e:
        return BrokenPolicy(e)


WORDS = [
    "*",
    "+",
    "+a",
    "s.X",
    "work",
    "@anyvm",
    "@dispvm:",
    "allow",
    "ask",
    "deny",
    "target=work",
    "notify=yes",
    "#",
    ",",
]
DIRECTIVES = [
    "!include",
    "!include-service",
    "!include-dir",
    "!compat-4.0",
    "x",
    "a.policy",
    "$include:x",
]
BYTES = ["\n", "\r\n", "\t", "\0", "\x1b[", "\x85", "\u2028", "\ufeff", "é"]
words = st.sampled_from([*WORDS, *DIRECTIVES, *BYTES])
texts = st.lists(words, max_size=30).map(" ".join) | st.text(max_size=80) | st.binary(max_size=80)


@settings(max_examples=400, deadline=None)
@given(texts, texts, requests)
@example("s.X * * * allow\n!include x", b"\xff", Request("s.X", "+", "work", "vault"))
@example("!include-service s.X * x", "$include:x", Request("s.X", "+", "work", "vault"))
def test_any_bytes_are_a_policy_or_an_error_with_its_place(
    main: str | bytes, included: str | bytes, call: Request
):
    """No text crashes the parser, and a broken one denies."""
    policy = _parse({"a.policy": main, "x": included})
    decision = decide(call, policy, SystemInfo.from_dict({"dom0": {}, "work": {}, "vault": {}}))
    if isinstance(policy, BrokenPolicy):
        error = policy.error
        assert error.message.startswith(f"{error.file}:{error.line}:{error.column}: ")
        assert None not in (error.line, error.column)
        assert isinstance(decision, Deny)
        assert str(decision.reason) == "syntax"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_any_request_is_answered(service: str, argument: str, source: str, target: str):
    """What a hostile qube sends never crashes a decision, nor is it ever allowed by its form."""
    policy = parse_policy({"a.policy": "s.X * * * allow\n* * * * ask\n"})
    system = SystemInfo.from_dict({"dom0": {}, "work": {}, "vault": {"power_state": "Halted"}})
    for call in (
        Request(service, f"+{argument}", source, target, requested_source=target),
        Request(service, f"+{argument}", "work", target),
        Request("s.X", "+", "work", f"@dispvm:{target}"),
    ):
        answers = _answers(decide(call, policy, system))
        assert answers == _answers(decide_by_reference(call, policy, system))
