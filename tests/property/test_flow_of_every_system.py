"""What is said of every system is true of each: all small ones are tried."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise, product
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from caisson.errors import CaissonError
from caisson.policy import Allow, Ask, PolicySet, Request, SystemInfo, decide, parse_policy
from caisson.policy.flow import (
    Answer,
    Assertion,
    Facts,
    Options,
    Power,
    Predicate,
    Verdict,
    check,
    newborn,
    parse_assertion,
    parse_assumption,
)
from caisson.policy.flow.concrete import Concrete
from caisson.policy.flow.newborn import Newborn
from caisson.policy.flow.predicates import Profile
from caisson.policy.flow.search import reach

POWERS = {"admin.U": Power.USES, "admin.C": Power.CHANGES, "admin.N": Power.NOTES}
OPTIONS = Options(power=lambda s: POWERS.get(s, Power.NONE), admin_services=frozenset(POWERS))
NAMES = ["a", "b"]
INTERNET = "@internet"

tokens = st.sampled_from(["a", "b", "@tag:t1", "@tag:t1", "@tag:t2", "@anyvm", "@type:DispVM"])
sources = tokens | st.sampled_from(["*", "@type:AppVM", "@tag:t2"])
targets = (
    tokens
    | st.sampled_from(["*", "@adminvm", "@default", "@dispvm", "@dispvm", "@dispvm:b"])
    | st.sampled_from(["@type:TemplateVM", "@dispvm:@tag:t2"])
)
redirects = st.sampled_from(["a", "b", "@dispvm", "@dispvm:a", "dom0"])
services = st.sampled_from(
    ["* *", "s.X *", "s.X *", "s.X *", "s.X +a", "s.Y *", "admin.U *", "admin.N *"]
)


@st.composite
def rule_lines(draw: st.DrawFn) -> str:
    """A rule that the parser accepts."""
    action = draw(st.sampled_from(["allow", "allow", "ask", "deny", "deny"]))
    target = draw(targets)
    line = f"{draw(services)} {draw(sources)} {target} {action}"
    redirected = action != "deny" and (target == "@default" or draw(st.integers(0, 4)) == 0)
    return line + (f" target={draw(redirects)}" if redirected else "")


policies = st.lists(rule_lines(), min_size=1, max_size=6).map(
    lambda lines: parse_policy({"30-user.policy": "\n".join(lines)})
)
literals = st.sampled_from(["tag:t1", "tag:t1", "tag:t2", "netvm", "a", "type:DispVM"])
predicates = literals | st.builds("{} and not {}".format, literals, literals)
ends = predicates | st.sampled_from(["internet", "any", "netvm", "not tag:t1", "b"])
assertions = st.builds(
    "{} never reaches {}".format, st.just("tag:t1") | predicates, st.just("netvm") | ends
).map(parse_assertion)
# Without such, nearly every assertion fails by a template.
assumptions = st.builds(
    lambda texts, more: [parse_assumption(text) for text in [*texts, *more]],
    st.sampled_from([["no type:TemplateVM"], ["no tag:t1 and type:TemplateVM"], []]),
    st.lists(
        st.sampled_from(
            [
                "no tag:t1 and tag:t2",
                "a has no netvm",
                "no b",
                "no type:DispVM",
                "no tag:t1 and base",
                "tag:t1 has no netvm",
                "no tag:t1 and relay",
                "no relay",
                "no tag:t1 and type:RemoteVM",
            ]
        ),
        unique=True,
        max_size=4,
    ),
)


def _checked(policy: PolicySet, assertion: Assertion, assumed: list[Predicate]) -> Verdict:
    try:
        return check(assertion, policy.rules, OPTIONS, assumed)
    except CaissonError as error:
        assume("nothing to check" not in error.message)
        raise


def _profile(name: str, domains: dict[str, dict[str, Any]]) -> Profile:
    own = domains[name]
    serves = {other["netvm"] for other in domains.values()}
    relays = {other.get("relayvm") for other in domains.values()}
    net = own["netvm"] is not None or own["provides_network"] or name in serves
    return Profile(
        name,
        own["type"],
        frozenset(own["tags"]),
        net,
        is_base=own["template_for_dispvms"],
        is_relay=name in relays,
    )


def _flow(verdict: Verdict, policy: PolicySet, domains: dict[str, dict[str, Any]]) -> bool:
    """Whether a system that fits the assumptions has the flow that must not be."""
    profiles = {name: _profile(name, domains) for name in domains}
    if any(each.holds(profile) for each in verdict.never for profile in profiles.values()):
        return False
    facts = Facts.from_dict(domains)
    system = Concrete(policy.rules, facts, OPTIONS)
    ends = _ends(verdict.assertion, profiles)
    never = {n for n, each in system.newborn.items() if _is_excluded(each, facts, verdict.never)}
    alive = system.living(sum(1 << number for number in never))
    edges = system.edges_among(alive)
    goals = {system.number(name) for name in ends[1]}
    for start in ends[0]:
        number = system.number(start)
        assert number is not None
        found = reach(edges, 1 << number, alive, system.population.dom0).members
        if any(found >> goal & 1 for goal in goals - {number} if goal is not None):
            return True
    return False


def _is_excluded(each: Newborn, facts: Facts, never: tuple[Predicate, ...]) -> bool:
    """Whether a disposable that may come to be is one that does not, by assumption."""
    seen, settings = newborn.member_of(each, facts), newborn.network_of(each, facts)
    net = settings is not None and (settings.netvm is not None or settings.provides_network)
    return any(p.holds(Profile(seen.name, seen.type, seen.tags, net)) for p in never)


def _ends(assertion: Assertion, profiles: dict[str, Profile]) -> tuple[set[str], set[str]]:
    """Between which qubes no data may flow; of two kinds one within the other, the rest of it."""
    source, target = (
        {INTERNET} if end.literals is None else {n for n, p in profiles.items() if end.is_end(p)}
        for end in (assertion.source, assertion.target)
    )
    if _is_kind_of(assertion.target, assertion.source):
        return source - target, target
    if _is_kind_of(assertion.source, assertion.target):
        return source, target - source
    return source, target


def _is_kind_of(one: Predicate, other: Predicate) -> bool:
    return one.literals is not None and other.literals is not None and one.literals > other.literals


_KINDS = [("AppVM", True), ("TemplateVM", False), ("DispVM", False)]
_LINKS = ["offline", "uplink"]
_TAGS = [[], ["t1"], ["t2"], ["t1", "t2"]]


@cache
def small_systems() -> list[dict[str, dict[str, Any]]]:
    """All systems of two qubes and the admin qube, wired as widely as they can be."""
    kinds = list(product(_KINDS, _LINKS, _TAGS))
    return [_wired(dict(zip(NAMES, each, strict=True))) for each in product(kinds, kinds)]


def _wired(chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {"dom0": _domain("AdminVM", [])}
    for name, ((kind, is_base), link, tags) in chosen.items():
        made[name] = _domain(kind, tags)
        made[name]["template_for_dispvms"] = is_base
        made[name]["provides_network"] = link == "uplink"
    one, other = (made[name] for name in NAMES)
    for (name, domain), peer in zip(list(made.items())[1:], [other, one], strict=True):
        peer_name = NAMES[1 - NAMES.index(name)]
        is_heir = domain["type"] == "DispVM" and set(peer["tags"]) <= set(domain["tags"])
        if domain["type"] == "AppVM" and peer["type"] == "TemplateVM":
            domain["template"] = peer_name
        if is_heir and peer["template_for_dispvms"]:
            domain["template"] = peer_name
        if peer["template_for_dispvms"]:
            domain["default_dispvm"] = peer_name
        elif domain["template_for_dispvms"]:
            domain["default_dispvm"] = name
    return made


def _domain(kind: str, tags: list[str]) -> dict[str, Any]:
    return {
        "type": kind,
        "tags": tags,
        "template_for_dispvms": False,
        "default_dispvm": None,
        "power_state": "Running",
        "netvm": None,
        "template": None,
        "provides_network": False,
    }


@settings(max_examples=150, deadline=None)
@given(policies, assertions, assumptions)
def test_what_holds_fails_in_no_system_of_two_qubes(
    policy: PolicySet, assertion: Assertion, assumed: list[Predicate]
) -> None:
    """Every system of two qubes is tried for the flow that must not be."""
    verdict = _checked(policy, assertion, assumed)
    if verdict.answer is Answer.HOLDS:
        for domains in small_systems():
            assert not _flow(verdict, policy, domains)


@st.composite
def larger_systems(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """A system of up to five qubes, one of them maybe elsewhere."""
    names = ["a", "b", "c", "d"]
    made: dict[str, dict[str, Any]] = {"dom0": _domain("AdminVM", draw(st.sampled_from(_TAGS)))}
    for name in names:
        kind, is_base = draw(st.sampled_from([*_KINDS, ("AppVM", False), ("StandaloneVM", True)]))
        made[name] = _domain(kind, draw(st.sampled_from(_TAGS)))
        made[name]["template_for_dispvms"] = is_base
    bases = [n for n in names if made[n]["template_for_dispvms"]]
    templates = [n for n in names if made[n]["type"] == "TemplateVM"]
    for name in names:
        own = made[name]
        own["default_dispvm"] = draw(st.sampled_from([None, *bases]))
        own["provides_network"] = draw(st.booleans())
        own["netvm"] = draw(st.sampled_from([None, None, *names]))
        fitting = templates if own["type"] == "AppVM" else []
        if own["type"] == "DispVM":
            fitting = [n for n in bases if set(made[n]["tags"]) <= set(own["tags"])]
        own["template"] = draw(st.sampled_from([None, *fitting]))
    if draw(st.booleans()):
        made["r"] = _domain("RemoteVM", draw(st.sampled_from(_TAGS)))
        made["r"] |= {"relayvm": draw(st.sampled_from(names)), "transport_rpc": "x.SSH"}
    return made


@settings(max_examples=120, deadline=None)
@given(policies, assertions, assumptions, st.lists(larger_systems(), min_size=4, max_size=4))
def test_what_holds_fails_in_no_larger_system_that_is_tried(
    policy: PolicySet,
    assertion: Assertion,
    assumed: list[Predicate],
    systems: list[dict[str, dict[str, Any]]],
) -> None:
    """Chains over more qubes, shared networks, default bases, relays: none is missed."""
    verdict = _checked(policy, assertion, assumed)
    if verdict.answer is Answer.HOLDS:
        for domains in systems:
            assert not _flow(verdict, policy, domains)


def _calls(verdict: Verdict) -> Iterator[tuple[Request, str, str]]:
    """The calls of a counter-example, and between whom."""
    assert verdict.example is not None
    for hop in verdict.example.hops:
        if hop.service is not None:
            service, plus, argument = hop.service.partition("+")
            assert hop.caller is not None
            assert hop.request is not None
            caller = verdict.example.domains[hop.caller]
            relay = caller["relayvm"]
            request = Request(
                service,
                plus + argument,
                relay or hop.caller,
                hop.request,
                hop.caller if relay else "",
            )
            yield request, hop.source, hop.target


@settings(max_examples=250, deadline=None)
@given(policies, assertions, assumptions)
def test_counter_example_is_a_system_with_that_flow(
    policy: PolicySet, assertion: Assertion, assumed: list[Predicate]
) -> None:
    """Its calls are let through, its steps join, its ends are as asserted, and it is allowed."""
    verdict = _checked(policy, assertion, assumed)
    if verdict.answer is not Answer.FAILS:
        return
    assert verdict.example is not None
    domains, hops = verdict.example.domains, verdict.example.hops
    assert _flow(verdict, policy, domains)
    assert all(one.target == other.source for one, other in pairwise(hops))
    assert assertion.source.literals is None or assertion.source.holds(
        _profile(hops[0].source, domains)
    )
    system = SystemInfo.from_dict(domains)
    for request, source, target in _calls(verdict):
        decision = decide(request, policy, system)
        chosen = [decision]
        if isinstance(decision, Ask):
            chosen = [decision.choose(t) for t in decision.targets]
        real = {each.target for each in chosen if isinstance(each, Allow)}
        bases = {domains[n]["template"] for n in (source, target) if n != INTERNET}
        assert real & {source, target, "dom0", *(f"@dispvm:{base}" for base in bases)}
