"""The analysis of policies says what trying everything says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_policy_language import policies, systems, texts

from caisson.policy import (
    Decision,
    Domain,
    PolicyError,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)
from caisson.policy.analysis import (
    Change,
    Differences,
    Relation,
    differences,
    lint_policy,
    lint_text,
)
from caisson.policy.analysis.future import Forecast
from caisson.policy.analysis.never import redundant_rules, rules_that_never_match
from caisson.policy.analysis.outcome import content
from caisson.policy.analysis.slices import slices
from caisson.policy.rules import EVERY, Action
from caisson.policy.tokens import Kind, Token

NIL = "00000000-0000-0000-0000-000000000000"
ADMIN = Domain("dom0", "AdminVM", uuid=NIL, power_state="Running")
NOTHING = SystemInfo({"dom0": ADMIN})


def _parse(text: str) -> PolicySet:
    return parse_policy({"a.policy": text})


def _changed(decisions: tuple[Decision, Decision], system: SystemInfo) -> bool:
    old, new = decisions
    return content(old, system) != content(new, system)


# For the qubes that there are: every call, in a language with everything.


@st.composite
def changes_of_policies(draw: st.DrawFn) -> tuple[str, str]:
    """A policy, and another one or the same with a few lines changed."""
    one, other = draw(policies), draw(policies)
    if draw(st.booleans()):
        return one, other
    lines, others = one.split("\n"), other.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(lines)))
        lines[number : number + draw(st.integers(0, 1))] = [draw(st.sampled_from(others))]
    return one, "\n".join(lines)


CALLS = [
    (("s.X", "+"), "s.X", "+"),
    (("s.X", "+a"), "s.X", "+a"),
    (("s.X", EVERY), "s.X", "+any"),
    (("s.Y", "+b"), "s.Y", "+b"),
    (("s.Y", EVERY), "s.Y", "+any"),
    ((EVERY, EVERY), "s.Z", "+any"),
]


def _calls_of(change: Change) -> Iterator[tuple[str, str]]:
    own = {Relation.ITSELF_BY_UUID: "own uuid", Relation.ITSELF_BY_KEYWORD: "@adminvm"}
    for source in change.sources:
        if change.relation is not Relation.OTHERS:
            yield source, own.get(change.relation, source)
            continue
        for target in change.targets:
            if target != source and (source, target) != ("dom0", "@adminvm"):
                yield source, target


def _reported(found: Differences) -> dict[tuple[Any, str, str], Change]:
    reported = {}
    for change in found.existing:
        calls = list(_calls_of(change))
        assert len(calls) == change.calls()
        for label in change.services:
            for source, target in calls:
                assert (label, source, target) not in reported, "a call is told twice"
                reported[label, source, target] = change
    return reported


def _targets(domains: dict[str, dict[str, Any]], source: str) -> Iterator[tuple[str, str]]:
    """What a qube can ask for, and how the analysis calls it."""
    yield from ((name, name) for name in (*domains, "@adminvm", "@default", "@dispvm"))
    for name, qube in domains.items():
        if qube["template_for_dispvms"]:
            yield f"@dispvm:{name}", f"@dispvm:{name}"
    if source != "dom0":
        yield f"uuid:{domains[source]['uuid']}", "own uuid"


@settings(max_examples=250, deadline=None)
@given(changes_of_policies(), systems())
def test_diff_of_existing_qubes_is_every_changed_call_and_no_other(
    texts: tuple[str, str], domains: dict[str, dict[str, Any]]
):
    """Classes are exact: what they say is what trying every call with the reference says."""
    old, new = map(_parse, texts)
    system = SystemInfo.from_dict(domains)
    reported = _reported(differences(old, new, system, existing_only=True))
    named = {(rule.service, rule.argument) for rule in (*old.rules, *new.rules)}
    for label, service, argument in CALLS:
        if EVERY not in label and label not in named:
            continue  # it is one of any other argument
        asked = label if label[0] in {s for s, _ in named} else (EVERY, EVERY)
        for source in domains:
            for target, called in _targets(domains, source):
                request = Request(service, argument, source, target)
                before, behind = (
                    decide_by_reference(request, policy, system) for policy in (old, new)
                )
                change = reported.get((asked, source, called))
                assert (change is not None) == _changed((before, behind), system), request
                if change is not None:
                    kinds = (change.old.decision, change.new.decision)
                    assert kinds == tuple(d.as_dict()["decision"] for d in (before, behind))


# For qubes that do not exist yet: a smaller language, and all systems in it, or very many.

SOURCES = ["*", "@anyvm", "@tag:a", "@tag:b", "g", "@type:AppVM", "dom0", "@type:RemoteVM"]
UUID = "00000000-0000-4000-8000-00000000000a"
TARGETS = [*SOURCES, f"uuid:{UUID}", "@default", "@dispvm", "@dispvm:g", "@dispvm:@tag:a", "h"]
REDIRECTS = ["h", "@dispvm", "dom0", "@dispvm:g", "g", f"uuid:{UUID}"]
DEFAULTS = ["h", "@dispvm", "@dispvm:h", "g", "@dispvm:g", "dom0"]
FLAGS = ["", "", "", " notify=yes", " user=root", " autostart=no"]
TAGS = [frozenset(some) for n in range(3) for some in combinations("ab", n)]


@st.composite
def rule_lines(draw: st.DrawFn, sources: list[str], targets: list[str]) -> str:
    """A rule of one service."""
    action = draw(st.sampled_from(["allow", "deny", "ask"]))
    target = draw(st.sampled_from(targets))
    line = f"s.X * {draw(st.sampled_from(sources))} {target} {action}"
    if action == "deny":
        return line + draw(st.sampled_from(["", "", " notify=no"]))
    if (action, target) == ("allow", "@default") or draw(st.integers(0, 2)) == 0:
        line += f" target={draw(st.sampled_from(REDIRECTS))}"
    if action == "ask" and draw(st.integers(0, 3)) == 0:
        line += f" default_target={draw(st.sampled_from(DEFAULTS))}"
    return line + draw(st.sampled_from(FLAGS))


@st.composite
def pairs(draw: st.DrawFn, sources: list[str], targets: list[str], most: int) -> tuple[str, str]:
    """A policy and another, or the same with a line or two more, less or changed."""
    lines = draw(st.lists(rule_lines(sources, targets), min_size=1, max_size=most))
    others = draw(st.lists(rule_lines(sources, targets), min_size=1, max_size=most))
    if draw(st.integers(0, 2)):
        fresh, others = others, list(lines)
        for line in fresh[:2]:
            number = draw(st.integers(0, len(others)))
            added = [line] if draw(st.booleans()) else []
            others[number : number + draw(st.integers(0, 1))] = added
    return "\n".join(lines), "\n".join(others)


def _rules(change: Any) -> tuple[int | None, int | None]:
    rules = [outcome.rule for outcome in (change.old, change.new)]
    old, new = (None if rule is None else rule.location.line for rule in rules)
    return old, new


def _line(decision: Decision) -> int | None:
    return decision.location.line if decision.location else None


def _deciding(request: Request, policy: PolicySet, system: SystemInfo) -> int | None:
    """The line that decides a call, also where it has no consequence that names it."""
    plain = tuple(
        msgspec.structs.replace(rule, action=Action.DENY, redirect=None) for rule in policy.rules
    )
    return _line(decide(request, PolicySet(plain), system))


def _differing(
    old: PolicySet, new: PolicySet, system: SystemInfo
) -> Iterator[tuple[Request, tuple[int | None, int | None]]]:
    """All calls that two policies decide differently, with the rules that do."""
    bases = [q.name for q in system.domains.values() if q.template_for_dispvms]
    names = [*system.domains, "@adminvm", "@default", "@dispvm", *(f"@dispvm:{b}" for b in bases)]
    for source in system.domains.values():
        own = [] if source.name == "dom0" else [f"uuid:{source.uuid}"]
        for target in (*names, *own):
            request = Request("s.X", "+", source.name, target)
            decided = (decide(request, old, system), decide(request, new, system))
            if _changed(decided, system):
                yield (
                    request,
                    (_deciding(request, old, system), _deciding(request, new, system)),
                )


def _forecast(
    old: PolicySet, new: PolicySet, base: SystemInfo
) -> set[tuple[int | None, int | None]]:
    """The pairs of rules of all differences, each of which was checked."""
    found = differences(old, new, base)
    for possible in found.future:
        system = SystemInfo({qube.name: qube for qube in possible.qubes})
        request = Request("s.X", "+", possible.source.name, possible.target)
        if ("s.X", EVERY) in possible.services:
            decided = (decide(request, old, system), decide(request, new, system))
            assert _changed(decided, system), "the example shows no difference"
            assert {q.name for q in possible.made} == system.domains.keys() - base.domains.keys()
            for name in system.domains.keys() & base.domains.keys():
                assert _at_rest(system.domains[name]) == _at_rest(base.domains[name])
    return {_rules(change) for change in (*found.existing, *found.future)}


def _at_rest(qube: Domain) -> Domain:
    return msgspec.structs.replace(qube, power_state="Halted")


def _any_system(chance: random.Random, base: SystemInfo = NOTHING) -> SystemInfo:
    """A system that contains another one, whose qubes may run or not."""
    names = [n for n in ("g", "h", "x", "y", "z") if n in base.domains or chance.random() < 0.75]
    known = chance.choice(["g", "h", "x", "none"])
    qubes = [
        Domain(
            name,
            chance.choice(["AppVM", "AppVM", "TemplateVM", "RemoteVM"]),
            uuid=UUID if name == known else f"u-{name}",
            tags=chance.choice(TAGS),
            relayvm=chance.choice([*names, *names, "dom0", None]),
            transport_rpc=chance.choice(["x.Transport", "x.Transport", None]),
            internal=chance.choice([None, None, None, "1"]),
            template_for_dispvms=chance.random() < 0.6,
            default_dispvm=chance.choice([None, *names]),
            power_state=chance.choice(["Running", "Running", "Halted"]),
        )
        for name in names
    ]
    started = [
        msgspec.structs.replace(qube, power_state=chance.choice(["Running", "Halted"]))
        for qube in base.domains.values()
    ]
    return SystemInfo({qube.name: qube for qube in (*qubes, *started, ADMIN)})


@settings(max_examples=200, deadline=None)
@given(pairs(SOURCES, TARGETS, 5), st.integers(0, 2**32))
@example(  # the base is the caller, and no base of disposables
    (
        "s.X * g @dispvm:g ask target=h",
        "s.X * * @dispvm:@tag:a allow\ns.X * @tag:a * allow target=h",
    ),
    2,
)
def test_diff_of_future_qubes_has_every_pair_of_rules_that_some_system_shows(
    texts: tuple[str, str], seed: int
):
    """No system, of very many, has a changed decision by rules that were not reported."""
    old, new = map(_parse, texts)
    chance = random.Random(seed)
    base = chance.choice([NOTHING, _some_qubes(chance)])
    reported = _forecast(old, new, base)
    for _ in range(10):
        system = _any_system(chance, base)
        for request, rules in _differing(old, new, system):
            assert rules in reported, (request, rules, system.domains)


OFFERS = ["@tag:a", "@tag:b", "@type:AppVM", "@anyvm", f"uuid:{UUID}", "h"]
BASES = ["@dispvm", "@dispvm:@tag:a", f"@dispvm:uuid:{UUID}", "@dispvm:h"]


@st.composite
def questions(draw: st.DrawFn) -> str:
    """Rules of one service that mostly ask, and often preselect something."""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        source, target = draw(st.sampled_from(SOURCES)), draw(st.sampled_from(OFFERS + BASES))
        action = draw(st.sampled_from(["ask", "ask", "ask", "deny"]))
        default = draw(st.sampled_from([None, *DEFAULTS])) if action == "ask" else None
        lines.append(
            f"s.X * {source} {target} {action}" + (f" default_target={default}" if default else "")
        )
    return "\n".join(lines)


@settings(max_examples=200, deadline=None)
@given(questions(), st.data(), st.integers(0, 2**32))
def test_diff_of_what_is_preselected_has_every_pair_of_rules_that_some_system_shows(
    text: str, data: st.DataObject, seed: int
):
    """Whatever else a rule demands of the qube that another one preselects, it is found."""
    lines = text.split("\n")
    number = data.draw(st.integers(0, len(lines) - 1))
    line = lines[number].split(" default_target=")[0]
    default = data.draw(st.sampled_from(DEFAULTS))
    lines[number] = f"{line} default_target={default}" if line.endswith("ask") else line
    old, new = _parse(text), _parse("\n".join(lines))
    chance = random.Random(seed)
    reported = _forecast(old, new, NOTHING)
    for _ in range(10):
        system = _any_system(chance)
        for request, rules in _differing(old, new, system):
            assert rules in reported, (request, rules, system.domains)


def _some_qubes(chance: random.Random) -> SystemInfo:
    """A small system, of which nothing refers to what is not there."""
    system = _any_system(chance)
    names = set(chance.sample(["g", "h", "x", "y"], 2)) & system.domains.keys()
    qubes = [
        msgspec.structs.replace(
            system.domains[name],
            default_dispvm=chance.choice([None, *names]),
            relayvm=chance.choice([None, *names]),
            uuid=f"u-{name}",
        )
        for name in sorted(names)
    ]
    return SystemInfo({qube.name: qube for qube in (ADMIN, *qubes)})


def _all_systems() -> Iterator[SystemInfo]:
    """All systems of dom0 and two qubes, of which rules know one by name."""
    shapes = list(
        product(["AppVM", "TemplateVM"], [frozenset(), frozenset("a")], [False, True], [0, 1])
    )
    for one, two in product([None, *shapes], repeat=2):
        qubes = {"dom0": ADMIN}
        for name, shape in (("g", one), ("x", two)):
            if shape is not None:
                type_, tags, base, default = shape
                qubes[name] = Domain(
                    name,
                    type_,
                    uuid=f"u-{name}",
                    tags=tags,
                    template_for_dispvms=base,
                    default_dispvm=[None, "g"][default],
                    power_state="Running",
                )
        if all(q.default_dispvm in (None, *qubes) for q in qubes.values()):
            yield SystemInfo(qubes)


FEW = ["*", "@anyvm", "@tag:a", "g", "@type:AppVM"]


@settings(max_examples=20, deadline=None)
@given(pairs(FEW, [*FEW, "@default", "@dispvm", "@dispvm:@tag:a"], 3))
def test_diff_of_future_qubes_holds_for_all_small_systems(texts: tuple[str, str]):
    """The same, and not one small system is left out."""
    old, new = map(_parse, texts)
    reported = _forecast(old, new, NOTHING)
    for system in _all_systems():
        for request, rules in _differing(old, new, system):
            assert rules in reported, (request, rules, system.domains)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(rule_lines(SOURCES, TARGETS), min_size=2, max_size=8).map("\n".join),
    st.integers(0, 2**32),
)
def test_rules_that_never_match_decide_no_call_and_all_others_do(text: str, seed: int):
    """A rule is reported if and only if no system has a call for it."""
    policy = _parse(text)
    never = {rule.location.line for rule, _ in rules_that_never_match(policy.rules)}
    chance = random.Random(seed)
    all_marked = _replaced(policy, {rule.location.line for rule in policy.rules})
    alive: set[int | None] = set()
    for _ in range(8):
        system = _any_system(chance)
        alive |= {rules[0] for _, rules in _differing(policy, all_marked, system)}
    assert not alive & never
    # A rule that decides makes a difference to a policy in which it does what no other does.
    for number in {rule.location.line for rule in policy.rules} - never:
        marked = _replaced(policy, {number})
        forecast = Forecast(policy.rules, marked.rules, SystemInfo({}), any_admin=True)
        for slice_ in slices(policy.rules, marked.rules):
            forecast.compare(slice_)
        assert number in {line for change in forecast.changes() for line in _rules(change)}


def _replaced(policy: PolicySet, lines: set[int | None]) -> PolicySet:
    """The policy with rules that act as no rule of it does, for the same calls."""
    return PolicySet(
        tuple(
            msgspec.structs.replace(
                rule, action=Action.ASK, redirect=Token(Kind.NAME, "own"), user="mark"
            )
            if rule.location.line in lines
            else rule
            for rule in policy.rules
        )
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(rule_lines(SOURCES, TARGETS), min_size=2, max_size=5).map("\n".join) | questions(),
    st.integers(0, 2**32),
)
def test_redundant_rules_can_be_taken_out(text: str, seed: int):
    """Without a rule that was called redundant, no call of any system is decided differently."""
    policy = _parse(text)
    chance = random.Random(seed)
    for rule in redundant_rules(policy.rules):
        without = PolicySet(tuple(other for other in policy.rules if other is not rule))
        for _ in range(8):
            qubes = dict(_any_system(chance).domains)
            qubes["dom0"] = msgspec.structs.replace(ADMIN, tags=chance.choice(TAGS))
            assert not list(_differing(policy, without, SystemInfo(qubes)))


# The lint, for any text.


@settings(max_examples=250, deadline=None)
@given(texts | policies)
def test_lint_of_any_text_finds_an_error_if_and_only_if_it_does_not_load(text: str | bytes):
    """The first error is the one that loading names; nothing else is called an error."""
    found = lint_text("a.policy", text)
    loaded = _loaded(text)
    if isinstance(loaded, PolicyError):
        if "include" not in loaded.message:
            # Loading reads the whole file before it checks the first rule.
            assert (loaded.line, loaded.column) in {(f.line, f.column) for f in found}
        return
    rules = loaded.rules
    assert found == []
    findings = lint_policy(rules, {"a.policy": text}, SystemInfo({}), ["s.X"])
    assert all(finding.message.isprintable() for finding in findings)
    assert {finding.line for finding in findings} <= {rule.location.line for rule in rules}


def _loaded(text: str | bytes) -> PolicySet | PolicyError:
    try:
        return parse_policy({"a.policy": text})
    except PolicyError as error:
        return error
